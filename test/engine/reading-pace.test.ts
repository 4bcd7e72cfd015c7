import { GenerateJob } from '../../lib/engine/generate-job';
import { ReadingPace } from '../../lib/engine/reading-pace';
import { Sequence } from '../../lib/engine/sequence';
import { normalizeGenerateOptions, type GenerateProgress } from '../../lib/runner/sampling';
import { Random } from '../../lib/selftest/random';

/** Milliseconds for the tokens up to `to`, where one at position p costs a + b·p. */
const readTo = (to: number, a: number, b: number) => a * to + (b * to * to) / 2;

describe('the rest of a prompt', () => {
  const chunk = 8192;
  const million = 128 * chunk;
  const estimate = (chunks: number, cost: (from: number, to: number) => number) => {
    const pace = new ReadingPace();
    for (let i = 1; i <= chunks; i++) {
      pace.add(i * chunk, (i + 1) * chunk, cost(i * chunk, (i + 1) * chunk));
    }
    return pace.estimate((chunks + 1) * chunk, million);
  };

  test.each([
    ['attention is all', 0, 1e-5],
    ['attention is nothing', 0.1, 0],
    ['both', 0.1, 1e-6],
  ])('%s: it takes what the chunks so far say', (_, a, b) => {
    const cost = (from: number, to: number) => readTo(to, a, b) - readTo(from, a, b);
    for (const chunks of [2, 3, 20, 120]) {
      const left = cost((chunks + 1) * chunk, million);
      expect(estimate(chunks, cost)! / left).toBeCloseTo(1, 6);
    }
  });

  test('times that vary by a tenth: within a fifth after a sixth of the prompt', () => {
    const random = new Random(5);
    const cost = (from: number, to: number) =>
      (readTo(to, 0.1, 1e-6) - readTo(from, 0.1, 1e-6)) * (0.95 + random.uniform() / 10);
    const left = readTo(million, 0.1, 1e-6) - readTo(22 * chunk, 0.1, 1e-6);
    expect(Math.abs(estimate(21, cost)! / left - 1)).toBeLessThan(0.2);
  });

  test('chunks that get faster are no reason to expect negative times', () => {
    expect(estimate(3, (from) => 1e6 / from)).toBeGreaterThan(0);
    expect(estimate(3, (from) => Math.max(0, from - 2 * chunk))).toBeGreaterThan(0);
  });

  test('one chunk tells nothing', () => {
    expect(estimate(0, () => 1)).toBeUndefined();
    expect(estimate(1, () => 1)).toBeUndefined();
  });
});

test('a generation reports how long its prompt will take, and nothing of what it reads again', () => {
  const seen: GenerateProgress[] = [];
  const options = {
    maxNewTokens: 5,
    onProgress: (progress: GenerateProgress) => seen.push(progress),
  };
  const defaults = { temperature: 0, topK: 0, topP: 1, repetitionPenalty: 1, eosIds: [] };
  const params = normalizeGenerateOptions(options, { ...defaults, vocabSize: 10 });
  const listener = { onPart: () => {}, onDone: () => {}, onError: () => {} };
  const job = new GenerateJob(new Int32Array(1000), params, 5, listener, 10, undefined);
  const sequence = new Sequence(job.prompt, []);
  const clock = jest.spyOn(performance, 'now');
  const read = (to: number) => {
    clock.mockReturnValue(5000 + readTo(to, 1, 0.01));
    sequence.computed = to;
    job.receive(sequence, {});
  };
  try {
    for (const to of [100, 200, 300, 400]) read(to);
    const left = (to: number) => readTo(1000, 1, 0.01) - readTo(to, 1, 0.01);
    expect(
      seen.map(({ done, total, leftMs }) => [done, total, leftMs && Math.round(leftMs)]),
    ).toEqual([
      [100, 1000, undefined],
      [200, 1000, undefined],
      [300, 1000, left(300)],
      [400, 1000, left(400)],
    ]);
    sequence.computed = 1000;
    job.receive(sequence, { sampled: { token: 1, logprob: 0, alternatives: [] } });
    const before = seen.length;
    for (const to of [500, 1000]) read(to); // it made room for others
    expect(seen.length).toBe(before);
  } finally {
    clock.mockRestore();
  }
});

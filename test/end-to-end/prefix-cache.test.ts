import path from 'node:path';
import {
  LanguageModel,
  type ChatMessage,
  type GenerateOptions,
  type GenerateResult,
  type LoadOptions,
} from '../../lib';
import type { LoadedModel } from '../../lib/load-model';
import { Random } from '../../lib/selftest/random';
import { goldenDir, tinyDir } from '../support/goldens';
import { randomTokens } from '../support/prompts';

const golden = path.join(goldenDir, 'longcat-zigzag-yarn');
const vocabulary = 320;
const greedy = { maxNewTokens: 12, ignoreEos: true, logprobs: true };
const sampled = { ...greedy, temperature: 0.9, topP: 0.95, seed: 11 };

const load = (options: LoadOptions = {}) =>
  LanguageModel.load(golden, { device: 'cpu', maxTokens: 8192, chunkTokens: 128, ...options });

/** The first `length` tokens of a text that differs from the others from position `from` on. */
function text(length: number, kind = 0, from = 0): Int32Array {
  const tokens = randomTokens(length, vocabulary, 1);
  tokens.set(randomTokens(length, vocabulary, 2 + kind).subarray(Math.min(from, length)), from);
  return kind === 0 ? randomTokens(length, vocabulary, 1) : tokens;
}

const cached = ({ usage }: GenerateResult) => usage.cachedTokens;
const bits = ({ tokens, logprobs }: GenerateResult) => ({ tokens, logprobs });

let plain: LanguageModel;
beforeAll(async () => {
  plain = await load({ prefixCache: false });
});
afterAll(() => plain.close());

/** What a model without a cache says. */
const expected = async (prompt: Int32Array, options: GenerateOptions = greedy) =>
  bits(await plain.generate(prompt, options).result());

test.each<[string, number, number, number, number]>([
  ['the same prompt', 1300, 1300, 1300, 1280],
  ['the same prompt of whole blocks', 1280, 1280, 1280, 1152],
  ['a longer prompt', 1300, 1390, 1300, 1280],
  ['a prompt that parts in the last window', 1300, 1400, 1290, 1280],
  ['a prompt that parts in the middle, within one window', 900, 950, 500, 384],
])('%s is read from the cache, and gives the same bits', async (_, first, length, from, reused) => {
  await using model = await load();
  expect(cached(await model.generate(text(first), greedy).result())).toBe(0);
  const prompt = text(length, 1, from);
  for (const options of [greedy, sampled]) {
    const result = await model.generate(prompt, options).result();
    expect(cached(result)).toBeGreaterThanOrEqual(reused);
    expect(bits(result)).toEqual(await expected(prompt, options));
  }
});

test('where two prompts have parted in the middle, a third goes on', async () => {
  await using model = await load();
  const prompts = [1, 2, 3].map((kind) => text(2600, kind, 1500));
  const results: GenerateResult[] = [];
  for (const prompt of prompts) results.push(await model.generate(prompt, greedy).result());
  expect(results.map(cached)).toEqual([0, 128, 1408]);
  for (const [i, prompt] of prompts.entries()) {
    expect(bits(results[i]!)).toEqual(await expected(prompt));
  }
});

test('prompts that come together are read once where they begin alike', async () => {
  await using model = await load();
  const prompts = [0, 0, 1, 2].map((kind) => text(1400, kind, 900));
  const answer = (prompt: Int32Array) => model.generate(prompt, greedy).result();
  const results = await Promise.all(prompts.map(answer));
  expect(results.map(cached)).toEqual([0, 1280, 896, 896]);
  for (const [i, prompt] of prompts.entries()) {
    expect(bits(results[i]!)).toEqual(await expected(prompt));
  }
  expect(model.memory.kv.full.resident + model.memory.kv.streaming.resident).toBe(0);
});

test('the next turn goes on from what was generated', async () => {
  await using model = await load();
  const first = await model.generate(text(1200), { ...greedy, maxNewTokens: 150 }).result();
  const turn = Int32Array.from([...text(1200), ...first.tokens, ...text(40, 5)]);
  const next = await model.generate(turn, greedy).result();
  expect(cached(next)).toBe(Math.floor((1200 + 149) / 128) * 128);
  const { tokens, logprobs } = await expected(turn);
  expect(next.tokens).toEqual(tokens);
  // Generated tokens were computed one by one, which sums in another order than a chunk.
  next.logprobs!.forEach((value, i) => expect(value).toBeCloseTo(logprobs![i]!, 4));
});

test('another cut of the prompt gives the same tokens', async () => {
  await using model = await load({ chunkTokens: 500 });
  await using other = await load({ chunkTokens: 500, prefixCache: false });
  for (const [length, kind, from] of [
    [1300, 0, 0],
    [1400, 1, 1200],
    [1300, 2, 700],
  ] as const) {
    const prompt = text(length, kind, from);
    for (const options of [greedy, sampled]) {
      const result = await model.generate(prompt, options).result();
      const wanted = await other.generate(prompt, options).result();
      expect(result.tokens).toEqual(wanted.tokens);
      result.logprobs!.forEach((value, i) => expect(value).toBeCloseTo(wanted.logprobs![i]!, 4));
    }
  }
});

test('scoring takes what lies before the first position that is wanted', async () => {
  await using model = await load();
  const prompt = text(1300);
  const first = await model.score(prompt, { positions: [1200, 1299] });
  const again = await model.score(prompt, { positions: [1200, 1299] });
  expect(again.logits).toEqual(first.logits);
  const all = await model.score(prompt, { positions: [0, 700, 1200, 1299] });
  expect(all.logits.slice(2 * vocabulary)).toEqual(first.logits);
});

test('churn: hits stay right and stay hits while others come, go and are aborted', async () => {
  await using model = await load({ maxTokens: 4096, maxSequences: 3 });
  poisonNewBlocks(model);
  const random = new Random('churn');
  const shared = text(1100);
  let hits = 0;
  const one = async () => {
    const own = 1 + random.below(2);
    const prompt = text(700 + random.below(900), own, 300 * (1 + random.below(3)));
    const options = random.below(2) === 0 ? greedy : sampled;
    const result = await model.generate(prompt, options).result();
    if (cached(result) > 0) hits++;
    expect(bits(result)).toEqual(await expected(prompt, options));
  };
  const doomed = async () => {
    const prompt = text(1500, 7, random.below(1500));
    const generation = model.generate(prompt, { ...greedy, maxNewTokens: 200 });
    for await (const { index } of generation) if (index > random.below(6)) break;
  };
  const again = async () => {
    const result = await model.generate(shared, greedy).result();
    expect(bits(result)).toEqual(await expected(shared));
  };
  for (let round = 0; round < 8; round++) {
    await Promise.all([one(), doomed(), again(), one()]);
  }
  expect(hits).toBeGreaterThan(4);
  const { full, streaming } = model.memory.kv;
  for (const { resident, cached, free, capacity } of [full, streaming]) {
    expect(resident).toBe(0);
    expect(cached).toBeGreaterThan(0);
    expect(cached + free).toBe(capacity);
  }
});

test('an aborted prompt is read on from where it was', async () => {
  await using model = await load();
  const abort = new AbortController();
  const prompt = text(3000);
  const onProgress = ({ done }: { done: number }) => done >= 900 && abort.abort();
  const result = model.generate(prompt, { ...greedy, signal: abort.signal, onProgress }).result();
  await expect(result).rejects.toMatchObject({ code: 'ERR_LOZA_ABORTED' });
  const again = await model.generate(prompt, greedy).result();
  expect(cached(again)).toBeGreaterThanOrEqual(896);
  expect(bits(again)).toEqual(await expected(prompt));
});

test('it can be turned off', async () => {
  const first = await plain.generate(text(600), greedy).result();
  const again = await plain.generate(text(600), greedy).result();
  expect([cached(first), cached(again)]).toEqual([0, 0]);
  expect(plain.memory.kv.full).toMatchObject({ resident: 0, cached: 0 });
  expect(plain.memory.kv.full.free).toBe(plain.memory.kv.full.capacity);
});

describe('several samples', () => {
  const options = { ...greedy, temperature: 1, seed: 5 };

  test.each([1, 128, 300, 1024, 1500])(
    'of a prompt of %i tokens are those of their seeds, bit for bit',
    async (length) => {
      await using model = await load();
      const results = await model.generate(text(length), { ...options, n: 4 }).results();
      expect(results.map(({ seed }) => seed)).toEqual([5, 6, 7, 8]);
      for (const result of results) {
        expect(bits(result)).toEqual(
          await expected(text(length), { ...options, seed: result.seed }),
        );
      }
      expect(results.map(cached)).toEqual([0, length, length, length]);
      expect(new Set(results.map(({ tokens }) => tokens.join())).size).toBe(4);
    },
  );

  test('share the blocks of the prompt', async () => {
    await using model = await load();
    const generation = model.generate(text(1500), { ...options, n: 4 });
    const seen = new Set<number | undefined>();
    for await (const { sample, index } of generation) {
      seen.add(sample);
      if (index !== 5) continue;
      const { full, streaming } = model.memory.kv;
      const block = full.capacity / 64;
      expect(full.resident / block).toBe(11 + 4);
      expect(streaming.resident / block).toBe(7 + 4);
    }
    expect([...seen].sort()).toEqual([0, 1, 2, 3]);
    expect((await generation.result()).seed).toBe(5);
    expect(model.memory.kv.full.resident).toBe(0);
  });

  test('leaving the loop ends all of them', async () => {
    await using model = await load();
    for await (const { sample } of model.generate(text(300), {
      ...options,
      maxNewTokens: 500,
      n: 3,
    }))
      if (sample === 2) break;
    await model.generate([1], { maxNewTokens: 1 }).result();
    expect(model.memory.kv.full.resident).toBe(0);
  });

  test('that end at once, or one after another', async () => {
    await using model = await load();
    const one = { ...options, maxNewTokens: 1, n: 3 };
    expect(
      (await model.generate(text(200), one).results()).map(({ tokens }) => tokens.length),
    ).toEqual([1, 1, 1]);
    const many = { ...options, maxNewTokens: 60, n: 6 };
    const [stop] = (await model.generate(text(200), many).result()).tokens.slice(3);
    const results = await model.generate(text(200), { ...many, stopTokenIds: [stop!] }).results();
    for (const { tokens, seed } of results) {
      const alone = { ...options, maxNewTokens: 60, stopTokenIds: [stop!], seed };
      expect(tokens).toEqual((await expected(text(200), alone)).tokens);
    }
    expect(model.memory.kv.full.resident).toBe(0);
  });

  test.each([0, -1, 1.5, 65, '2'])('n cannot be %p', async (n) => {
    const result = plain.generate([1], { n: n as number }).result();
    await expect(result).rejects.toMatchObject({ code: 'ERR_LOZA_INVALID_ARG' });
  });
});

test('the second turn of a long chat with loza-tiny computes little', async () => {
  const options = { maxNewTokens: 24, ignoreEos: true };
  const messages: ChatMessage[] = [];
  const say = (role: 'user' | 'assistant', content: string) => messages.push({ role, content });
  let second: GenerateResult;
  {
    await using model = await LanguageModel.load(tinyDir, { device: 'cpu' });
    const story = 'The Congress of the United States shall have power. '.repeat(1000);
    const tokens = await model.tokenizer!.encode(story);
    say('user', story.slice(0, Math.floor((story.length * 4680) / tokens.length)));
    const first = await model.generate(messages, options).result();
    say('assistant', first.text);
    say('user', 'And then?');
    second = await model.generate(messages, options).result();
  }
  expect(second.usage.promptTokens).toBeGreaterThan(4700);
  expect(second.usage.promptTokens - second.usage.cachedTokens).toBeLessThan(300);
  await using model = await LanguageModel.load(tinyDir, { device: 'cpu', prefixCache: false });
  expect((await model.generate(messages, options).result()).tokens).toEqual(second.tokens);
});

/** A block that is given out holds NaN, whatever it held before. */
function poisonNewBlocks(model: LanguageModel): void {
  const { groups, parts } = (model as unknown as { loaded: LoadedModel }).loaded;
  for (const group of groups) {
    const allocate = group.pool.allocate.bind(group.pool);
    group.pool.allocate = () => {
      const block = allocate();
      group.attentions.forEach((_, n) =>
        parts.ops.fill(group.cache(n).slice(0, block * 128, (block + 1) * 128), NaN),
      );
      return block;
    };
  }
}

import fc from 'fast-check';
import path from 'node:path';
import { LanguageModel, type GenerateOptions, type GeneratePart } from '../../lib';
import { expectLozaError } from '../support/errors';
import { goldenDir } from '../support/goldens';
import { randomTokens } from '../support/prompts';

/** Recorded decode steps are enqueued before the tokens of the step before are read. */
const load = (decodeGraphs: boolean, prefixCache: boolean) =>
  LanguageModel.load(path.join(goldenDir, 'longcat-zigzag-yarn'), {
    ...{ device: 'cpu', maxTokens: 8192, maxSequences: 4, chunkTokens: 128 },
    ...{ decodeGraphs, prefixCache },
  });

interface Request {
  prompt: number;
  count: number;
  temperature: number;
  seed: number;
  /** Ends at the token with this index, if the model gives it no sooner. */
  stopAt: number | undefined;
  /** The user leaves after so many tokens. */
  leaveAt: number | undefined;
  penalty: boolean;
  logprobs: number | boolean;
  /** Starts when the request before has given so many tokens. */
  after: number;
}

const request = fc.record<Request>({
  prompt: fc.oneof(fc.integer({ min: 1, max: 5 }), fc.integer({ min: 100, max: 260 })),
  count: fc.integer({ min: 1, max: 40 }),
  temperature: fc.constantFrom(0, 0.9),
  seed: fc.nat(2 ** 40),
  stopAt: fc.option(fc.nat(30), { nil: undefined }),
  leaveAt: fc.option(fc.integer({ min: 1, max: 20 }), { nil: undefined, freq: 3 }),
  penalty: fc.nat(5).map((value) => value === 0),
  logprobs: fc.constantFrom(false, true, 2),
  after: fc.nat(15),
});

const promptOf = ({ prompt, seed }: Request) => randomTokens(prompt, 320, seed % 1000);

function optionsOf({ count, temperature, seed, penalty, logprobs }: Request): GenerateOptions {
  const common = { maxNewTokens: count, temperature, seed, logprobs, ignoreEos: true };
  return penalty ? { ...common, repetitionPenalty: 1.2 } : common;
}

/** What the request gives alone, without looking ahead; with the stop token that it asks for. */
async function alone(model: LanguageModel, one: Request) {
  const options = optionsOf(one);
  const { tokens } = await model.generate(promptOf(one), options).result();
  const stop = one.stopAt === undefined ? undefined : tokens[one.stopAt];
  const whole = stop === undefined ? options : { ...options, stopTokenIds: [stop] };
  return { options: whole, result: await model.generate(promptOf(one), whole).result() };
}

let plain: LanguageModel;
let ahead: LanguageModel;
beforeAll(async () => {
  [plain, ahead] = await Promise.all([load(false, false), load(true, true)]);
});
afterAll(() => Promise.all([plain.close(), ahead.close()]));

test('random joins, stops and leaves: everyone gets what it gets alone, nothing stays', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(request, { minLength: 1, maxLength: 7 }), async (requests) => {
      const expected: Awaited<ReturnType<typeof alone>>[] = [];
      for (const one of requests) expected.push(await alone(plain, one));
      const reached: (() => void)[] = [];
      const gates = requests.map(() => new Promise<void>((resolve) => reached.push(resolve)));
      await Promise.all(
        requests.map(async (one, i) => {
          if (i > 0) await gates[i - 1];
          const { options, result } = expected[i]!;
          const next = requests[i + 1]?.after ?? 0;
          const generation = ahead.generate(promptOf(one), options);
          const parts: GeneratePart[] = [];
          if (next === 0) reached[i]!();
          for await (const part of generation) {
            parts.push(part);
            if (parts.length >= next) reached[i]!();
            if (parts.length === one.leaveAt) break;
          }
          reached[i]!();
          const tokens = Array.from(result.tokens).slice(0, one.leaveAt);
          expect(parts.map(({ token, index }) => [token, index])).toEqual(
            tokens.map((token, index) => [token, index]),
          );
          if (one.leaveAt !== undefined && one.leaveAt <= result.tokens.length) return;
          const { timings } = await generation.result();
          // Chunks are whole blocks: what the cache holds has the bits that it would have here.
          const usage = { ...result.usage, cachedTokens: expect.any(Number) as number };
          expect(await generation.result()).toEqual({ ...result, timings, usage });
        }),
      );
      await ahead.generate([1], { maxNewTokens: 1 }).result();
      const { full, streaming } = ahead.memory.kv;
      expect([full.resident, streaming.resident]).toEqual([0, 0]);
    }),
    { numRuns: 20 },
  );
});

test('closing while a step is ahead fails what runs, and nothing is left running', async () => {
  const model = await load(true, true);
  const results = [3, 200].map((length) =>
    model.generate(randomTokens(length, 320, 1), { maxNewTokens: 2000, ignoreEos: true }).result(),
  );
  const failed = results.map((result) => expectLozaError(() => result, 'ERR_LOZA_CLOSED', ''));
  await new Promise((resolve) => setTimeout(resolve, 40));
  await model.close();
  await Promise.all(failed);
});

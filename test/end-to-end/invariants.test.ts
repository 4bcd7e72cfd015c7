import path from 'node:path';
import { LanguageModel, type GenerateOptions, type LoadOptions } from '../../lib';
import { goldenDir } from '../support/goldens';
import { randomTokens } from '../support/prompts';

const zigzag = path.join(goldenDir, 'longcat-zigzag-yarn');
const deepseek = path.join(goldenDir, 'deepseek-v3-zigzag');
const glm = path.join(goldenDir, 'glm4-moe-lite');
const vocabulary = 320;
/** fp32 forms of one computation that sum in another order. */
const rounding = 2e-4;

async function withModel<T>(
  dir: string,
  options: LoadOptions,
  use: (model: LanguageModel) => Promise<T>,
): Promise<T> {
  // Whatever is compared here is computed.
  const load = { device: 'cpu', prefixCache: false, ...options } as const;
  const model = await LanguageModel.load(dir, load);
  try {
    return await use(model);
  } finally {
    await model.close();
  }
}

function logitsOf(
  dir: string,
  tokens: Int32Array,
  options: LoadOptions = {},
): Promise<Float32Array> {
  const positions = [...new Set([0, 1, 127, 128, 1023, 1024, 1025, tokens.length - 1])];
  const within = positions.filter((position) => position < tokens.length);
  return withModel(
    dir,
    options,
    async (model) => (await model.score(tokens, { positions: within })).logits,
  );
}

function expectClose(actual: Float32Array, expected: Float32Array, tolerance: number): void {
  expect(actual).toHaveLength(expected.length);
  const worst = actual.reduce((most, value, i) => {
    const error = Math.abs(value - (expected[i] ?? NaN));
    return error <= most ? most : error;
  }, 0);
  expect(worst).toBeLessThanOrEqual(tolerance);
}

describe.each([
  ['longcat-zigzag-yarn', zigzag, 1300],
  ['deepseek-v3-zigzag', deepseek, 1300],
  ['glm4-moe-lite', glm, 300],
])('%s', (_, dir, length) => {
  const tokens = randomTokens(length, vocabulary, 7);
  let whole: Float32Array;
  beforeAll(async () => {
    whole = await logitsOf(dir, tokens, { chunkTokens: length, expandedMinTokens: 2 });
  });

  test('absorbed attention equals expanded', async () => {
    const absorbed = { chunkTokens: length, expandedMinTokens: 2 ** 30 };
    expectClose(await logitsOf(dir, tokens, absorbed), whole, rounding);
  });

  test.each([1, 37, 128, 500, 1025])(
    'chunks of %i tokens equal the whole prompt',
    async (chunkTokens) => {
      const chunked = await logitsOf(dir, tokens, { chunkTokens, expandedMinTokens: 2 });
      expectClose(chunked, whole, rounding);
    },
  );

  test('chunks of both forms equal the whole prompt', async () => {
    const mixed = await logitsOf(dir, tokens, { chunkTokens: 130, expandedMinTokens: 100 });
    expectClose(mixed, whole, rounding);
  });

  test('a bf16 cache stays close', async () => {
    const bf16 = await logitsOf(dir, tokens, { dtype: 'bfloat16' });
    expect(cosine(bf16, whole)).toBeGreaterThan(0.999);
  });
});

test('decode gives the row that prefill gives', async () => {
  const tokens = randomTokens(1150, vocabulary, 3);
  await withModel(zigzag, { chunkTokens: 256 }, async (model) => {
    const { tokens: next } = await model
      .generate(tokens, { maxNewTokens: 30, ignoreEos: true })
      .result();
    const all = Int32Array.from([...tokens, ...next]);
    const positions = Array.from(next, (_, i) => tokens.length - 1 + i);
    const { logits } = await model.score(all, { positions });
    next.forEach((token, row) => {
      const scores = logits.subarray(row * vocabulary, (row + 1) * vocabulary);
      expect(scores.indexOf(Math.max(...scores))).toBe(token);
    });
  });
});

describe('recorded decode steps give what eager ones give, bit for bit', () => {
  const prompts = [1, 2, 130, 1020, 1300].map((length) => randomTokens(length, vocabulary, length));
  const run = (decodeGraphs: boolean, options: GenerateOptions) =>
    withModel(zigzag, { decodeGraphs, maxTokens: 16_384 }, async (model) => {
      const generate = (prompt: Int32Array) => model.generate(prompt, options).result();
      const together = await Promise.all(prompts.map(generate));
      const alone = await generate(prompts[3] ?? new Int32Array());
      return [...together, alone].map(({ tokens, logprobs }) => ({ tokens, logprobs }));
    });

  // 30 tokens: tables outgrow their bucket, batches shrink as sequences end.
  test.each<[string, GenerateOptions]>([
    ['greedy', { maxNewTokens: 30, ignoreEos: true, logprobs: true }],
    ['sampled', { maxNewTokens: 30, temperature: 0.8, topK: 40, topP: 0.9, seed: 5 }],
    ['with a penalty, which stays eager', { maxNewTokens: 12, repetitionPenalty: 1.3 }],
  ])('%s', async (_, options) => {
    expect(await run(true, options)).toEqual(await run(false, options));
  });
});

describe('a batch gives each sequence what it gets alone', () => {
  const lengths = [1, 2, 40, 127, 128, 129, 300, 1023, 1025, 1200];
  const prompts = lengths.map((length) => randomTokens(length, vocabulary, length));
  const options = { maxNewTokens: 12, ignoreEos: true };

  test.each([
    ['longcat-zigzag-yarn', zigzag],
    ['deepseek-v3-zigzag', deepseek],
  ])('%s', async (_, dir) => {
    await withModel(dir, { maxTokens: 16_384, chunkTokens: 200 }, async (model) => {
      const together = await Promise.all(
        prompts.map((prompt) => model.generate(prompt, { ...options, logprobs: true }).result()),
      );
      for (const [i, prompt] of prompts.entries()) {
        const alone = await model.generate(prompt, { ...options, logprobs: true }).result();
        expect(together[i]?.tokens).toEqual(alone.tokens);
        expect(together[i]?.logprobs).toEqual(alone.logprobs);
      }
    });
  });

  test('the same chunks give the same bits', async () => {
    // Each prompt fits a chunk of its own, so that only the company differs.
    const short = prompts.filter((prompt) => prompt.length < 200);
    await withModel(zigzag, { chunkTokens: 1024 }, async (model) => {
      const score = (tokens: Int32Array) => model.score(tokens).then(({ logits }) => logits);
      const together = await Promise.all(short.map(score));
      for (const [i, prompt] of short.entries()) expect(together[i]).toEqual(await score(prompt));
    });
  });
});

describe('streaming', () => {
  test('that covers everything equals full attention', async () => {
    const tokens = randomTokens(1400, vocabulary, 5);
    const full = await logitsOf(zigzag, tokens, { attention: 'full' });
    const wide = { layerType: '1111', sinkBlocks: 1, localBlocks: 11 };
    expectClose(await logitsOf(zigzag, tokens, { attention: wide }), full, rounding);
  });

  test('equals full attention up to 1,024 tokens, and not beyond', async () => {
    const tokens = randomTokens(1025, vocabulary, 6);
    const both = async (length: number) => [
      await logitsOf(zigzag, tokens.slice(0, length)),
      await logitsOf(zigzag, tokens.slice(0, length), { attention: 'full' }),
    ];
    const [loza, full] = await both(1024);
    expectClose(loza ?? new Float32Array(), full ?? new Float32Array(), rounding);
    const [sparse, dense] = await both(1025);
    const last = (logits: Float32Array | undefined) => logits?.slice(-vocabulary);
    expect(last(sparse)).not.toEqual(last(dense));
  });

  test.each([
    [1, 1],
    [2, 3],
    [1, 7],
  ])(
    'with %i sink and %i local blocks: any chunks, either form',
    async (sinkBlocks, localBlocks) => {
      const tokens = randomTokens(1200, vocabulary, 8);
      const attention = { layerType: '1111', sinkBlocks, localBlocks };
      const whole = await logitsOf(zigzag, tokens, {
        attention,
        chunkTokens: 1200,
        expandedMinTokens: 2,
      });
      for (const chunkTokens of [1, 100, 129]) {
        for (const expandedMinTokens of [2, 2 ** 30]) {
          const other = await logitsOf(zigzag, tokens, {
            attention,
            chunkTokens,
            expandedMinTokens,
          });
          expectClose(other, whole, rounding);
        }
      }
    },
  );
});

function cosine(a: Float32Array, b: Float32Array): number {
  const dot = (x: Float32Array, y: Float32Array) =>
    x.reduce((sum, value, i) => sum + value * (y[i] ?? 0), 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}

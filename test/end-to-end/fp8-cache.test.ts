import { LanguageModel, type LoadOptions } from '../../lib';
import { forEachDeviceKind } from '../support/devices';
import { readExpected, tinyDir } from '../support/goldens';

// kvDtype 'fp8' against the logits and tokens of Hugging Face in fp32, as the other caches are held.
forEachDeviceKind('an FP8 cache', (device) => {
  const load = (options: LoadOptions = {}) =>
    LanguageModel.load(tinyDir, { device, maxTokens: 8192, ...options });
  const expected = readExpected(tinyDir);
  const passkey = expected.find(({ name }) => name === 'passkey')!;

  test('finds the pass key, and stays near the logits', async () => {
    await using model = await load({ kvDtype: 'fp8', chunkTokens: 2048 });
    const { tokens, positions, greedy } = passkey;
    const { logits } = await model.score(tokens, { positions });
    expect(cosine(logits, passkey.logits)).toBeGreaterThan(0.999);
    const maxNewTokens = greedy.length;
    const result = model.generate(tokens, { maxNewTokens, ignoreEos: true }).result();
    expect((await result).tokens).toEqual(greedy);
  });

  test('takes a byte a latent value, two a rope value, and a scale', async () => {
    await using model = await load({ kvDtype: 'fp8' });
    await using plain = await load({ dtype: 'bfloat16' });
    const { latentDim, ropeDim } = model.info;
    expect(model.info.kvDtype).toBe('fp8');
    expect(plain.info.kvDtype).toBe('bfloat16');
    for (const kind of ['full', 'streaming'] as const) {
      const ratio = model.memory.kv[kind].capacity / plain.memory.kv[kind].capacity;
      expect(ratio).toBe((latentDim + 2 * ropeDim + 4) / (2 * (latentDim + ropeDim)));
    }
  });

  test('absorbed attention equals expanded, in any chunks', async () => {
    const tokens = passkey.tokens.subarray(0, 700);
    const logits = async (options: LoadOptions) => {
      await using model = await load({ kvDtype: 'fp8', dtype: 'float32', ...options });
      return (await model.score(tokens, { positions: [0, 300, 699] })).logits;
    };
    const whole = await logits({ chunkTokens: 700, expandedMinTokens: 2 });
    const absorbed = await logits({ chunkTokens: 130, expandedMinTokens: 2 ** 20 });
    expect(cosine(absorbed, whole)).toBeGreaterThan(0.99999);
  });
});

function cosine(a: Float32Array, b: Float32Array): number {
  const dot = (x: Float32Array, y: Float32Array) =>
    x.reduce((sum, value, i) => sum + value * (y[i] ?? NaN), 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}

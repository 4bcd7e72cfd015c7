import { openCheckpoint } from '../lib/checkpoint/checkpoint';
import type { TensorEntry } from '../lib/checkpoint/safetensors';
import { LozaError } from '../lib/errors';
import { cacheType, computeType, withDtypeHint, withMemoryHint } from '../lib/load-model';
import { goldenDir, tinyDir } from './support/goldens';

describe('what a model computes in', () => {
  const stored = (...dtypes: string[]) => ({
    tensors: new Map<string, TensorEntry>(
      dtypes.map((text, i) => {
        const [dtype, vector] = text.split(' ');
        const shape = vector === undefined ? [8, 8] : [8];
        const where = { file: '', begin: 0, end: 0 };
        return [`t${i}`, { name: `t${i}`, dtype: dtype as TensorEntry['dtype'], shape, ...where }];
      }),
    ),
  });

  test.each([
    ['all in float32', stored('F32', 'F32', 'F32 vector'), 'f32'],
    ['float32 matrices and bfloat16 norms', stored('F32', 'BF16 vector'), 'f32'],
    ['bfloat16 with a float32 router', stored('BF16', 'F32', 'BF16'), 'bf16'],
    ['fp8 with float32 scales', stored('F8_E4M3', 'F32', 'F32'), 'bf16'],
    ['bfloat16 with float32 norms', stored('BF16', 'F32 vector'), 'bf16'],
    ['nothing', stored(), 'bf16'],
  ])('a GPU, for a checkpoint with %s', (_, checkpoint, expected) => {
    expect(computeType('cuda', 'auto', checkpoint)).toBe(expected);
    expect(computeType('cuda', 'float32', checkpoint)).toBe('f32');
    expect(computeType('cuda', 'bfloat16', checkpoint)).toBe('bf16');
    expect(computeType('cpu', 'auto', checkpoint)).toBe('f32');
    expect(computeType('cpu', 'bfloat16', checkpoint)).toBe('bf16');
  });

  test('a golden is float32, loza-tiny bfloat16', async () => {
    expect(computeType('cuda', 'auto', await openCheckpoint(`${goldenDir}/deepseek-v2`))).toBe(
      'f32',
    );
    expect(computeType('cuda', 'auto', await openCheckpoint(tinyDir))).toBe('bf16');
  });
});

test('the KV cache has that type, or FP8 latents', () => {
  expect(cacheType('auto', 'bf16')).toBe('bf16');
  expect(cacheType('auto', 'f32')).toBe('f32');
  expect(cacheType('fp8', 'f32')).toBe('f8e4m3');
});

test('a GPU without room for float32 names bfloat16', () => {
  const full = new LozaError('ERR_LOZA_OUT_OF_MEMORY', 'no room');
  const other = new LozaError('ERR_LOZA_IO', 'no disk');
  const hinted = withDtypeHint(full, { kind: 'cuda', activation: 'f32' });
  expect(hinted).toMatchObject({
    code: full.code,
    message: expect.stringMatching(/no room.*'bfloat16'/),
  });
  expect(withDtypeHint(full, { kind: 'cuda', activation: 'bf16' })).toBe(full);
  expect(withDtypeHint(full, { kind: 'cpu', activation: 'f32' })).toBe(full);
  expect(withDtypeHint(other, { kind: 'cuda', activation: 'f32' })).toBe(other);
});

test('a device without room for a model: the error says what takes less', () => {
  const full = new LozaError('ERR_LOZA_OUT_OF_MEMORY', 'no room');
  const messageOn = (kind: 'cpu' | 'cuda', activation: 'f32' | 'bf16') =>
    (withMemoryHint(full, { kind, activation }) as LozaError).message;
  expect(messageOn('cuda', 'f32')).toMatch(/no room.*'bfloat16'/);
  expect(messageOn('cuda', 'bf16')).toMatch(/no room.*maxTokens/);
  expect(messageOn('cpu', 'f32')).toMatch(/no room.*maxTokens/);
  for (const other of [
    new LozaError('ERR_LOZA_IO', 'no disk'),
    new LozaError(full.code, 'no room', { hint: 'known' }),
  ])
    expect(withMemoryHint(other, { kind: 'cpu', activation: 'f32' })).toBe(other);
});

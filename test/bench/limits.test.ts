import {
  callShape,
  callWork,
  decodeWork,
  expertsHit,
  groupedLinearWork,
  h20,
  keysSeen,
  linearWork,
  pairsSeen,
  prefillWork,
  roofline,
} from '../../lib/bench/limits';
import { placeholder } from '../../lib/checkpoint/weights';
import { fullRange } from '../../lib/native/ops';
import type { DType } from '../../lib/native/tensor';

const paper = { sinkBlocks: 1, localBlocks: 7 };
const K = 1024;

test('keys of the paper pattern, as the model spec lists them', () => {
  const at = [0, 1023, 1024, 1100, 1151, 1152];
  expect(at.map((t) => keysSeen(t, t, paper))).toEqual([1, 1024, 897, 973, 1024, 897]);
  expect(keysSeen(128 * K - 1, 128 * K - 1, paper)).toBe(1024);
  expect(keysSeen(1151, 1152, paper)).toBe(1025); // two queries that straddle a block border
  expect(keysSeen(5000, 5000, fullRange)).toBe(5001);
  expect(pairsSeen(0, 8 * K, fullRange)).toBe((8 * K * (8 * K + 1)) / 2);
  expect(pairsSeen(0, 1024, paper)).toBe(pairsSeen(0, 1024, fullRange));
});

test('decode: the floors of issue 4', () => {
  const work = (batch: number, keys: number) =>
    decodeWork({
      ...{ rows: batch, heads: 64, latent: 512, rope: 64, element: 2, rowBytes: 1152 },
      keys: batch * keys,
      seen: keys,
    });
  const h100 = { bytes: 3.07e12, flops: 756e12 };
  const microseconds = (batch: number, keys: number) =>
    roofline(work(batch, keys), h100).seconds * 1e6;
  expect(microseconds(1, 8 * K)).toBeCloseTo(3.1, 0);
  expect(microseconds(1, 1024 * K)).toBeCloseTo(393.5, 0);
  expect(Math.round(microseconds(32, 8 * K))).toBeGreaterThanOrEqual(98);
  expect(Math.round(microseconds(32, 128 * K))).toBeCloseTo(1576, -1);
  expect(roofline(work(32, 128 * K), h20).bound).toBe('FLOPs'); // 121 FLOP a byte against 37
});

test('prefill: 8K causal tokens in 2.15 ms are 638 TFLOP/s', () => {
  const { flops } = prefillWork({
    ...{ rows: 8 * K, keys: 8 * K, pairs: pairsSeen(0, 8 * K, fullRange), heads: 64 },
    ...{ queryDim: 192, valueDim: 128, ropeDim: 64, element: 2 },
  });
  expect(flops / 2.15e-3 / 1e12).toBeCloseTo(639, 0);
});

test('matrices', () => {
  const sizes = { n: 12288, k: 6144, weight: 2, input: 2, output: 2 };
  expect(linearWork({ rows: 1, ...sizes })).toEqual({
    bytes: 12288 * 6144 * 2 + 6144 * 2 + 12288 * 2,
    flops: 2 * 12288 * 6144,
  });
  const added = linearWork({ rows: 2, ...sizes, output: 4, accumulate: true });
  expect(added.bytes).toBe(12288 * 6144 * 2 + 2 * 6144 * 2 + 2 * 12288 * 4 * 2);
  const grouped = { slots: 128, sources: 16, hit: 56, n: 4096, k: 6144 };
  expect(groupedLinearWork({ ...grouped, weight: 1, input: 2, output: 2 })).toEqual({
    bytes: 56 * 4096 * 6144 + 16 * 6144 * 2 + 128 * 4096 * 2,
    flops: 2 * 128 * 4096 * 6144,
  });
  expect(expertsHit(1, 64)).toBeCloseTo(1, 9);
  expect(expertsHit(1e6, 64)).toBeCloseTo(64, 9);
});

test('the roofline takes the slower of both, FP8 at twice the rate', () => {
  const limits = { bytes: 1e12, flops: 100e12 };
  expect(roofline({ bytes: 1e12, flops: 1 }, limits)).toEqual({ seconds: 1, bound: 'bytes' });
  expect(roofline({ bytes: 1, flops: 1e14 }, limits)).toEqual({ seconds: 1, bound: 'FLOPs' });
  expect(roofline({ bytes: 1, flops: 1e14, fp8: true }, limits).seconds).toBe(0.5);
});

describe('calls of a step', () => {
  const facts = { count: 1, position: 8191, realExperts: 2 / 3 };
  const tensor = (dtype: DType, ...shape: number[]) => placeholder(dtype, shape);

  test('linear and grouped linear', () => {
    const args = [tensor('f32', 4, 8), tensor('bf16', 4, 16), tensor('bf16', 8, 16)];
    const linear = [...args, undefined, true];
    const bytes = 8 * 16 * 2 + 4 * 16 * 2 + 2 * 4 * 8 * 4;
    expect(callWork('Linear', linear, facts)).toEqual({ bytes, flops: 1024, fp8: false });
    expect(callShape('Linear', linear)).toBe('4×16 · 8×16 bf16');
    const stack = [tensor('bf16', 12, 8), tensor('bf16', 1, 16), tensor('f8e4m3', 4, 8, 16)];
    const { flops, fp8 } = callWork('GroupedLinear', stack, facts);
    expect(flops).toBeCloseTo(2 * 8 * 8 * 16, 9);
    expect(fp8).toBe(true);
  });

  test('decode attention reads what the range shows', () => {
    const bf16 = tensor('bf16', 99999, 576);
    const args = (locals: number, cache = bf16) => [
      ...[tensor('bf16', 2, 64, 512), tensor('bf16', 2, 64, 576), cache],
      ...[tensor('i32', 2, 8), tensor('i32', 2), tensor('i32', 3), tensor('i32', 2)],
      ...[0.07, 1, locals],
    ];
    const moved = 2 * 64 * (576 + 512) * 2;
    const streaming = callWork('AttentionDecode', args(7), facts);
    expect(streaming.bytes).toBe(2 * 1024 * 1152 + moved);
    expect(callShape('AttentionDecode', args(7))).toBe('streaming, q 2×64×576');
    const full = callWork('AttentionDecode', args(2 ** 31 - 1), facts);
    expect(full.bytes).toBe(2 * 8192 * 1152 + moved);
    expect(full.flops).toBe(2 * 2 * 64 * 8192 * (576 + 512));
    const fp8 = callWork('AttentionDecode', args(7, tensor('f8e4m3', 99999, 644)), facts);
    expect(fp8.bytes).toBe(2 * 1024 * 644 + moved);
  });

  test('rounds of prefill attention sum up to all pairs', () => {
    const chunk = { count: 256, position: 0, realExperts: 1 };
    const args = (keys: number) => [
      ...[tensor('f32', 256, 4, 128), tensor('f32', 256, 4), tensor('bf16', 256, 4, 192)],
      ...[tensor('bf16', keys, 4, 256), tensor('bf16', keys, 64), tensor('i32', 1, 6)],
      ...[0.07, 0, 2 ** 31 - 1],
    ];
    const flops = [192, 64].map((keys) => callWork('AttentionPrefill', args(keys), chunk).flops);
    const pairs = pairsSeen(0, 256, fullRange);
    expect(flops.reduce((a, b) => a + b)).toBeCloseTo(2 * pairs * 4 * (192 + 128), 3);
  });

  test('what has no function of its own moves its tensors once', () => {
    const args = [tensor('bf16', 8, 4), tensor('f32', 8, 4), undefined, 3];
    expect(callWork('Cast', args, facts)).toEqual({ bytes: 8 * 4 * 6, flops: 0 });
  });
});

import type { DType, Tensor } from '../../native/tensor';
import { decodeF8, encodeF8, roundToBf16 } from '../host-tensor';
import { defineCases } from './operation';

interface Case {
  name: string;
  dtype: Extract<DType, 'f32' | 'bf16' | 'f8e4m3'>;
  elements: number;
  seed: readonly [number, number];
  deviation: number;
}

const seeds: readonly Case['seed'][] = [
  [0, 0],
  [-5, 7],
];
const rounded = {
  f32: (value: number) => value,
  bf16: roundToBf16,
  f8e4m3: (value: number) => decodeF8(encodeF8(value)),
};

export const fillRandom = defineCases({
  operation: 'fill_random',
  cases: (['f32', 'bf16', 'f8e4m3'] as const).flatMap((dtype) =>
    [1, 2, 1001, 300_000].flatMap((elements) =>
      seeds.map((seed): Case => {
        const deviation = dtype === 'f8e4m3' ? 64 : 0.02;
        return {
          name: `${dtype}[${elements}], seed ${seed.join()}`,
          dtype,
          elements,
          seed,
          deviation,
        };
      }),
    ),
  ),
  inputs: () => ({}),
  run: (ops, _, { dtype, elements, seed, deviation }): { out: Tensor } => {
    const out = ops.arena.allocate(dtype, [elements]);
    ops.fillRandom(out, seed, deviation);
    return { out };
  },
  reference: ({ dtype, elements, seed, deviation }) => {
    const unit = Math.fround(Math.fround(deviation) * Math.fround(Math.sqrt(3))) * 2 ** -23;
    const out = new Float64Array(elements);
    for (let i = 0; i < elements; i++) {
      const value = Math.fround(randomInteger(seed, i) * unit);
      out[i] = rounded[dtype](value);
    }
    return { out };
  },
  tolerance: () => ({ relative: 0 }),
});

const mask = (1n << 64n) - 1n;

/** random_pair of native/ops/fill_random/fill_random.h. */
function randomInteger([low, high]: Case['seed'], i: number): number {
  const seed = (BigInt(high >>> 0) << 32n) | BigInt(low >>> 0);
  const gamma = 0x9e3779b97f4a7c15n;
  let bits = (seed + gamma * BigInt((i >> 1) + 1)) & mask;
  bits = ((bits ^ (bits >> 30n)) * 0xbf58476d1ce4e5b9n) & mask;
  bits = ((bits ^ (bits >> 27n)) * 0x94d049bb133111ebn) & mask;
  bits ^= bits >> 31n;
  return Number(i % 2 === 0 ? bits & 0xffffffn : bits >> 40n) - 2 ** 23;
}

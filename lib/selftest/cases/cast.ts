import { host, roundToBf16 } from '../host-tensor';
import { defineCases } from './operation';

interface Case {
  name: string;
  from: 'f32' | 'bf16' | 'f8e4m3';
  to: 'f32' | 'bf16';
  shape: readonly number[];
  padding?: number;
  scaled?: boolean;
  transposed?: boolean; // the input is read as its transpose
}

const blocks = (extent: number) => Math.ceil(extent / 128);

export const cast = defineCases({
  operation: 'cast',
  cases: [
    { name: 'f32 to bf16', from: 'f32', to: 'bf16', shape: [70, 501] },
    { name: 'bf16 to f32', from: 'bf16', to: 'f32', shape: [3, 5, 7, 11] },
    { name: 'f32 to f32', from: 'f32', to: 'f32', shape: [1] },
    { name: 'bf16 to bf16, strided', from: 'bf16', to: 'bf16', shape: [4, 6, 9], padding: 3 },
    { name: 'f32 to bf16, strided', from: 'f32', to: 'bf16', shape: [2, 3, 4, 33], padding: 7 },
    { name: 'f8 to f32', from: 'f8e4m3', to: 'f32', shape: [17, 130] },
    { name: 'f8 to bf16', from: 'f8e4m3', to: 'bf16', shape: [17, 130] },
    { name: 'f8 with scales', from: 'f8e4m3', to: 'f32', shape: [256, 384], scaled: true },
    {
      name: 'f8 with scales, ragged blocks',
      from: 'f8e4m3',
      to: 'bf16',
      shape: [130, 257],
      scaled: true,
    },
    {
      name: 'f8 with scales, less than a block',
      from: 'f8e4m3',
      to: 'f32',
      shape: [1, 3],
      scaled: true,
    },
    { name: 'a transpose', from: 'f32', to: 'bf16', shape: [30, 70], transposed: true },
  ] as Case[],
  inputs: (c, random) => {
    const elements = c.shape.reduce((a, b) => a * b);
    const spread = random.normals(elements).map((x) => x * 2 ** (random.below(24) - 12));
    const [n = 1, k = 1] = c.shape;
    const scales = Float32Array.from(
      { length: blocks(n) * blocks(k) },
      () => 0.01 + random.uniform(),
    );
    return {
      input: host(c.from, c.shape, spread, c.padding),
      scale: c.scaled ? host('f32', [blocks(n), blocks(k)], scales) : undefined,
    };
  },
  run: (ops, { input, scale }, c) => {
    const [n = 1, k = 1] = c.shape;
    const from = c.transposed ? input.view(c.from, [k, n], [1, k], 0) : input;
    const out = ops.arena.allocate(c.to, from.shape);
    ops.cast(out, from, scale);
    return { out };
  },
  reference: (c, { input, scale }) => {
    const [n = 1, k = 1] = c.shape;
    const scaleAt = (i: number) => {
      const block = Math.floor(i / k / 128) * blocks(k) + Math.floor((i % k) / 128);
      return scale?.values[block] ?? 1;
    };
    const scaled = Float64Array.from(input.values, (x, i) => Math.fround(x * scaleAt(i)));
    const values = c.transposed
      ? scaled.map((_, i) => scaled[(i % n) * k + Math.floor(i / n)]!)
      : scaled;
    return { out: c.to === 'bf16' ? values.map(roundToBf16) : values };
  },
  tolerance: () => ({ relative: 0 }),
});

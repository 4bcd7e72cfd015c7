import {
  attentionBackward,
  attentionForward,
  type AttentionInputs,
} from '../../native/attention-gradient-ops';
import { fullRange, type KeyRange, type Ops } from '../../native/ops';
import type { DType } from '../../native/tensor';
import { host } from '../host-tensor';
import type { Random } from '../random';
import { softmaxOf, visibleKeys, zigzag } from './key-range';
import { dot } from './linear';
import { defineCases, type DeviceTensors } from './operation';

export interface AttentionSizes {
  heads: number;
  nope: number;
  rope: number;
  value: number;
  /** Tokens of each sequence, and how many of them (the last ones) are queries; without it, all. */
  sequences: readonly { length: number; queries?: number }[];
  range: KeyRange;
  /** Rows of no segment before each sequence: NaN. */
  gap?: number;
}

export interface AttentionBackwardCase extends AttentionSizes {
  name: string;
  /** The forward pass's result has the type of activations. */
  direct?: boolean;
  /** Gradients are added to ones. */
  accumulate?: boolean;
}

type Values = ArrayLike<number>;
export interface AttentionValues {
  q: Values;
  kv: Values;
  kRope: Values;
}

export const backwardScale = 24 ** -0.5;

/** [query_row, query_count, query_position, key_row, key_count, key_position] of each sequence. */
export function segmentsOf({ sequences, gap = 0 }: AttentionSizes): number[][] {
  let queryRow = 0;
  let keyRow = 0;
  return sequences.map(({ length, queries = length }) => {
    const segment = [queryRow + gap, queries, length - queries, keyRow + gap, length, 0];
    queryRow += gap + queries;
    keyRow += gap + length;
    return segment;
  });
}

export function rowsOf({ sequences, gap = 0 }: AttentionSizes): { rows: number; keys: number } {
  const sum = (counts: number[]) => counts.reduce((a, b) => a + b + gap, 0);
  return {
    rows: sum(sequences.map(({ length, queries = length }) => queries)),
    keys: sum(sequences.map(({ length }) => length)),
  };
}

/** Calls `body` with each query row and the key rows it sees. */
function forEachQuery(c: AttentionSizes, body: (row: number, keys: number[]) => void): void {
  for (const [queryRow = 0, queries = 0, position = 0, keyRow = 0] of segmentsOf(c))
    for (let i = 0; i < queries; i++)
      body(
        queryRow + i,
        visibleKeys(c.range, position + i).map((key) => keyRow + key),
      );
}

/** Where a row's values of one head begin. */
function places(c: AttentionSizes) {
  const [depth, width] = [c.nope + c.rope, c.nope + c.value];
  return {
    q: (row: number, head: number) => (row * c.heads + head) * depth,
    kv: (row: number, head: number) => (row * c.heads + head) * width,
    out: (row: number, head: number) => (row * c.heads + head) * c.value,
  };
}

/** The softmax of one row and head. */
function softmaxAt(
  c: AttentionSizes,
  x: AttentionValues,
  row: number,
  head: number,
  keys: number[],
) {
  const at = places(c);
  const from = at.q(row, head);
  return softmaxOf(
    keys.map((key) => {
      const nope = dot(x.q, from, x.kv, at.kv(key, head), c.nope);
      const rope = dot(x.q, from + c.nope, x.kRope, key * c.rope, c.rope);
      return Math.fround(backwardScale) * (nope + rope);
    }),
  );
}

/** out in float64; rows of no segment stay 0. */
export function attentionReference(c: AttentionSizes, x: AttentionValues): Float64Array {
  const at = places(c);
  const out = new Float64Array(rowsOf(c).rows * c.heads * c.value);
  forEachQuery(c, (row, keys) => {
    for (let head = 0; head < c.heads; head++) {
      const { weights } = softmaxAt(c, x, row, head, keys);
      keys.forEach((key, i) =>
        addScaled(out, at.out(row, head), weights[i]!, x.kv, at.kv(key, head) + c.nope, c.value),
      );
    }
  });
  return out;
}

/** The gradients of <out, dOut> in float64. */
export function attentionBackwardReference(c: AttentionSizes, x: AttentionValues, dOut: Values) {
  const at = places(c);
  const { rows, keys: keyRows } = rowsOf(c);
  const q = new Float64Array(rows * c.heads * (c.nope + c.rope));
  const kv = new Float64Array(keyRows * c.heads * (c.nope + c.value));
  const kRope = new Float64Array(keyRows * c.rope);
  forEachQuery(c, (row, keys) => {
    for (let head = 0; head < c.heads; head++) {
      const { weights } = softmaxAt(c, x, row, head, keys);
      const [atQ, atOut] = [at.q(row, head), at.out(row, head)];
      const products = keys.map((key) =>
        dot(dOut, atOut, x.kv, at.kv(key, head) + c.nope, c.value),
      );
      const mean = products.reduce((sum, product, i) => sum + weights[i]! * product, 0);
      keys.forEach((key, i) => {
        const atKey = at.kv(key, head);
        const ds = Math.fround(backwardScale) * weights[i]! * (products[i]! - mean);
        addScaled(q, atQ, ds, x.kv, atKey, c.nope);
        addScaled(q, atQ + c.nope, ds, x.kRope, key * c.rope, c.rope);
        addScaled(kv, atKey, ds, x.q, atQ, c.nope);
        addScaled(kRope, key * c.rope, ds, x.q, atQ + c.nope, c.rope);
        addScaled(kv, atKey + c.nope, weights[i]!, dOut, atOut, c.value);
      });
    }
  });
  return { q, kv, kRope };
}

function addScaled(
  to: Float64Array,
  at: number,
  factor: number,
  from: Values,
  fromAt: number,
  count: number,
): void {
  for (let i = 0; i < count; i++) to[at + i]! += factor * from[fromAt + i]!;
}

/** Random inputs; NaN wherever no query looks. */
export function backwardInputs(c: AttentionSizes, random: Random, act: DType) {
  const { rows, keys } = rowsOf(c);
  const [seenRows, seenKeys] = [new Set<number>(), new Set<number>()];
  forEachQuery(c, (row, visible) => {
    seenRows.add(row);
    visible.forEach((key) => seenKeys.add(key));
  });
  const make = (count: number, width: number, seen: Set<number>) => {
    const values = random.normals(count * width);
    for (let row = 0; row < count; row++)
      if (!seen.has(row)) values.fill(NaN, row * width, (row + 1) * width);
    return values;
  };
  const [depth, width] = [c.nope + c.rope, c.nope + c.value];
  return {
    q: host(act, [rows, c.heads, depth], make(rows, c.heads * depth, seenRows)),
    kv: host(act, [keys, c.heads, width], make(keys, c.heads * width, seenKeys)),
    kRope: host(act, [keys, c.rope], make(keys, c.rope, seenKeys), 16),
    dOut: host(act, [rows, c.heads, c.value], make(rows, c.heads * c.value, seenRows)),
  };
}

/** Forward and backward. */
export function runBackward(
  ops: Ops,
  { q, kv, kRope, dOut }: DeviceTensors<ReturnType<typeof backwardInputs>>,
  c: AttentionBackwardCase,
) {
  const segments = segmentsOf(c);
  const inputs: AttentionInputs = {
    q,
    kv,
    kRope,
    segments: ops.upload(Int32Array.from(segments.flat()), segments.length, 6),
    softmaxScale: backwardScale,
    range: c.range,
  };
  const out = c.direct ? ops.activation(...dOut.shape) : ops.float(...dOut.shape);
  const result = attentionForward(ops, inputs, out);
  if (!c.accumulate) return attentionBackward(ops, inputs, result, dOut);
  const into = {
    q: ops.activation(...q.shape),
    kv: ops.activation(...kv.shape),
    kRope: ops.float(...kRope.shape),
  };
  for (const tensor of [into.q, into.kv, into.kRope]) ops.fill(tensor, 1);
  return attentionBackward(ops, inputs, result, dOut, { into, accumulate: true });
}

const small = { heads: 2, nope: 16, rope: 8, value: 24, range: fullRange };
const tiny = { heads: 6, nope: 8, rope: 4, value: 8, range: zigzag };
const longcat = { heads: 2, nope: 128, rope: 64, value: 128, range: zigzag };
const glm = { heads: 1, nope: 192, rope: 64, value: 256, range: fullRange };
const lengths = (...list: number[]) => list.map((length) => ({ length }));
const narrow = { sinkBlocks: 0, localBlocks: 1 };
const wide = { sinkBlocks: 2, localBlocks: 3 };

export const attentionBackwardCases = defineCases<
  AttentionBackwardCase,
  ReturnType<typeof backwardInputs>
>({
  operation: 'attention_backward',
  cases: [
    { name: 'one token, and two', ...small, sequences: lengths(1, 2) },
    { name: 'packed lengths', ...small, sequences: lengths(1, 127, 128, 129, 300), direct: true },
    {
      name: 'packed lengths, accumulated',
      ...small,
      sequences: lengths(129, 1, 60),
      accumulate: true,
    },
    { name: 'rows of no segment', ...small, sequences: lengths(60, 1, 200), gap: 7, direct: true },
    {
      name: 'rows of no segment, accumulated',
      ...small,
      sequences: lengths(60, 200),
      gap: 70,
      accumulate: true,
    },
    {
      name: 'a chunk behind a prefix',
      ...small,
      sequences: [{ length: 400, queries: 90 }, { length: 60 }],
    },
    {
      name: 'zigzag, nine blocks',
      ...small,
      heads: 1,
      range: zigzag,
      sequences: lengths(1152, 129),
    },
    {
      name: 'zigzag, a chunk behind a prefix',
      ...small,
      range: zigzag,
      sequences: [{ length: 1500, queries: 140 }],
    },
    {
      name: 'no sinks, one local block',
      ...small,
      range: narrow,
      sequences: lengths(300, 129),
      direct: true,
    },
    {
      name: 'two sinks, three locals',
      ...small,
      heads: 1,
      range: wide,
      sequences: lengths(900),
      gap: 3,
    },
    { name: 'heads of the tests', ...tiny, sequences: lengths(127, 300) },
    { name: 'sixteen heads', ...tiny, heads: 16, sequences: lengths(128, 5), range: fullRange },
    { name: 'odd sizes', ...small, nope: 13, rope: 6, value: 7, sequences: lengths(130, 65) },
    {
      name: 'LongCat head sizes',
      ...longcat,
      sequences: lengths(1, 129, 300),
      range: narrow,
      direct: true,
    },
    { name: 'LongCat head sizes, one head', ...longcat, heads: 1, sequences: lengths(300), gap: 5 },
    { name: 'GLM head sizes', ...glm, sequences: lengths(129, 60), direct: true },
    {
      name: 'GLM head sizes, a chunk',
      ...glm,
      range: narrow,
      sequences: [{ length: 300, queries: 40 }],
      gap: 2,
    },
  ],
  inputs: backwardInputs,
  run: (ops, tensors, c) => ({ ...runBackward(ops, tensors, c) }),
  reference: (c, { q, kv, kRope, dOut }) => {
    const values = { q: q.values, kv: kv.values, kRope: kRope.values };
    const gradients = attentionBackwardReference(c, values, dOut.values);
    if (c.accumulate)
      for (const gradient of Object.values(gradients))
        gradient.forEach((value, i) => (gradient[i] = value + 1));
    return gradients;
  },
  tolerance: () => ({ relative: 1e-5, inBf16: { relative: 1e-2 } }),
});

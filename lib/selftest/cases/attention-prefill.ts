import { fullRange, type KeyRange, type Ops } from '../../native/ops';
import { host } from '../host-tensor';
import { softmaxOf, visibleKeys, zigzag } from './key-range';
import { dot } from './linear';
import { defineCases, type DeviceTensors } from './operation';
import type { DType } from '../../native/tensor';
import type { Random } from '../random';

export interface PrefillCase {
  name: string;
  heads: number;
  nope: number;
  rope: number;
  value: number;
  /** Tokens of each sequence, and how many of them (the last ones) are new. */
  sequences: readonly { length: number; queries: number }[];
  range: KeyRange;
  /** Keys a round; without it, one round. */
  piece?: number;
  /** All rounds in one call. */
  together?: boolean;
  /** The output has the type of activations; only for one round. */
  direct?: boolean;
}

export const prefillScale = 192 ** -0.5;

const small = { heads: 3, nope: 16, rope: 8, value: 24, range: fullRange };
const longcat = { heads: 2, nope: 128, rope: 64, value: 128, range: zigzag };
const glm = { heads: 3, nope: 192, rope: 64, value: 256, range: fullRange };
const mixed = [
  { length: 1, queries: 1 },
  { length: 200, queries: 200 },
  { length: 130, queries: 5 },
  { length: 300, queries: 1 },
];
const chunk = [
  { length: 1300, queries: 150 },
  { length: 60, queries: 60 },
];

/** The segments of each round: every sequence against its keys, a piece at a time. */
export function roundsOf(c: PrefillCase): number[][][] {
  const rounds: number[][][] = [];
  let queryRow = 0;
  let keyRow = 0;
  for (const { length, queries } of c.sequences) {
    const piece = c.piece ?? length;
    for (let key = 0, round = 0; key < length; key += piece, round++) {
      const count = Math.min(piece, length - key);
      (rounds[round] ??= []).push([queryRow, queries, length - queries, keyRow + key, count, key]);
    }
    queryRow += queries;
    keyRow += length;
  }
  return c.together ? [rounds.flat()] : rounds;
}

export function prefillInputs(c: PrefillCase, random: Random, act: DType) {
  const rows = c.sequences.reduce((sum, { queries }) => sum + queries, 0);
  const keys = c.sequences.reduce((sum, { length }) => sum + length, 0);
  const kv = random.normals(keys * c.heads * (c.nope + c.value));
  const kRope = random.normals(keys * c.rope);
  // Keys that no query sees are NaN.
  let keyRow = 0;
  for (const { length, queries } of c.sequences) {
    const seen = new Set<number>();
    for (let t = length - queries; t < length; t++)
      visibleKeys(c.range, t).forEach((key) => seen.add(key));
    for (let key = 0; key < length; key++, keyRow++) {
      if (seen.has(key)) continue;
      const width = c.heads * (c.nope + c.value);
      kv.fill(NaN, keyRow * width, (keyRow + 1) * width);
      kRope.fill(NaN, keyRow * c.rope, (keyRow + 1) * c.rope);
    }
  }
  return {
    q: host(
      act,
      [rows, c.heads, c.nope + c.rope],
      random.normals(rows * c.heads * (c.nope + c.rope)),
    ),
    kv: host(act, [keys, c.heads, c.nope + c.value], kv),
    kRope: host(act, [keys, c.rope], kRope, 16),
  };
}

/** Runs rounds of segments, from the empty state. */
export function runRounds(
  ops: Ops,
  { q, kv, kRope }: DeviceTensors<ReturnType<typeof prefillInputs>>,
  c: PrefillCase,
  rounds: readonly number[][][],
) {
  const shape = [q.dim(0), c.heads, c.value];
  const out = c.direct ? ops.activation(...shape) : ops.float(...shape);
  const lse = ops.float(q.dim(0), c.heads);
  ops.fill(lse, -Infinity);
  for (const segments of rounds) {
    const table = ops.upload(Int32Array.from(segments.flat()), segments.length, 6);
    ops.attentionPrefill({ out, lse }, q, kv, kRope, table, prefillScale, c.range);
  }
  return { out, lse };
}

function prefillReference(c: PrefillCase, { q, kv, kRope }: ReturnType<typeof prefillInputs>) {
  const out = new Float64Array(q.shape[0]! * c.heads * c.value);
  const lse = new Float64Array(q.shape[0]! * c.heads);
  const width = c.nope + c.value;
  let row = 0;
  let keyRow = 0;
  for (const { length, queries } of c.sequences) {
    for (let t = length - queries; t < length; t++, row++) {
      const keys = visibleKeys(c.range, t).map((key) => keyRow + key);
      for (let head = 0; head < c.heads; head++) {
        const at = (row * c.heads + head) * (c.nope + c.rope);
        const scores = keys.map((key) => {
          const nope = dot(q.values, at, kv.values, (key * c.heads + head) * width, c.nope);
          return (
            Math.fround(prefillScale) *
            (nope + dot(q.values, at + c.nope, kRope.values, key * c.rope, c.rope))
          );
        });
        const softmax = softmaxOf(scores);
        lse[row * c.heads + head] = softmax.lse;
        keys.forEach((key, i) => {
          const from = (key * c.heads + head) * width + c.nope;
          const to = (row * c.heads + head) * c.value;
          for (let v = 0; v < c.value; v++)
            out[to + v]! += softmax.weights[i]! * kv.values[from + v]!;
        });
      }
    }
    keyRow += length;
  }
  return { out, lse };
}

export const attentionPrefill = defineCases({
  operation: 'attention_prefill',
  cases: [
    { name: 'one token', ...small, sequences: [{ length: 1, queries: 1 }] },
    { name: 'mixed lengths', ...small, sequences: mixed },
    { name: 'mixed lengths in pieces', ...small, sequences: mixed, piece: 70 },
    {
      name: 'mixed lengths in pieces, one call',
      ...small,
      sequences: mixed,
      piece: 70,
      together: true,
    },
    { name: 'pieces of one key', ...small, sequences: [{ length: 9, queries: 4 }], piece: 1 },
    {
      name: 'zigzag, a whole prompt',
      ...small,
      heads: 1,
      range: zigzag,
      sequences: [{ length: 1400, queries: 1400 }],
    },
    { name: 'zigzag, a chunk behind a prefix', ...small, range: zigzag, sequences: chunk },
    { name: 'zigzag, a chunk in pieces', ...small, range: zigzag, sequences: chunk, piece: 256 },
    {
      name: 'zigzag, pieces that cut blocks',
      ...small,
      range: zigzag,
      sequences: chunk,
      piece: 190,
      together: true,
    },
    {
      name: 'no sinks, one local block',
      ...small,
      range: { sinkBlocks: 0, localBlocks: 1 },
      sequences: mixed,
    },
    {
      name: 'LongCat head sizes',
      ...longcat,
      sequences: [{ length: 1200, queries: 40 }],
      piece: 512,
    },
    { name: 'LongCat head sizes, mixed lengths', ...longcat, sequences: mixed, direct: true },
    {
      name: 'LongCat head sizes, zigzag, in pieces, one call',
      ...longcat,
      sequences: chunk,
      piece: 190,
      together: true,
      direct: true,
    },
    { name: 'LongCat head sizes, zigzag, in pieces', ...longcat, sequences: chunk, piece: 256 },
    {
      name: 'LongCat head sizes, a whole prompt',
      ...longcat,
      heads: 1,
      range: fullRange,
      sequences: [{ length: 700, queries: 700 }],
      direct: true,
    },
    { name: 'GLM head sizes, mixed lengths', ...glm, sequences: mixed, direct: true },
    { name: 'GLM head sizes, in pieces', ...glm, sequences: mixed, piece: 70 },
    { name: 'small heads, direct', ...small, sequences: mixed, direct: true },
    {
      name: 'odd sizes',
      heads: 5,
      nope: 13,
      rope: 6,
      value: 7,
      range: fullRange,
      sequences: mixed,
    },
  ] as PrefillCase[],
  inputs: prefillInputs,
  run: (ops, tensors, c) => runRounds(ops, tensors, c, roundsOf(c)),
  reference: prefillReference,
  tolerance: (_, output) => ({
    relative: 2e-6,
    ...(output === 'lse' ? { inBf16: { relative: 2e-3, absolute: 1e-3 } } : {}),
  }),
});

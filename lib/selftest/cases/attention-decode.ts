import { fullRange, type KeyRange } from '../../native/ops';
import { host } from '../host-tensor';
import type { DType } from '../../native/tensor';
import type { Random } from '../random';
import { asLatentCache, hostLatentCache, latentRows } from './latent-cache';
import { skipFloatCache } from './latent-store';
import { blockTokens, firstLocalBlock, softmaxOf, visibleKeys, zigzag } from './key-range';
import { dot } from './linear';
import { defineCases } from './operation';

export interface DecodeSequence {
  /** Tokens in the cache, the new ones included. */
  length: number;
  /** New tokens: the last ones of the sequence. */
  queries: number;
}

export interface DecodeCase {
  name: string;
  heads: number;
  latent: number;
  rope: number;
  /** 'act': of the type of activations. */
  cache: 'f32' | 'bf16' | 'fp8' | 'act';
  sequences: readonly DecodeSequence[];
  range: KeyRange;
  /** The table holds the sinks and the locals only. */
  shortTable?: boolean;
  /** Rows behind the last query, at position -1. */
  paddingRows?: number;
}

export const decodeScale = 192 ** -0.5;
const absurdBlocks = [1_000_000_000, -5, 2 ** 31 - 1];
const range17 = zigzag;

const small = { heads: 3, latent: 24, rope: 8, cache: 'act', range: fullRange } as const;
const longcat = { heads: 8, latent: 512, rope: 64, cache: 'bf16', range: range17 } as const;
const mixed = [1, 128, 5, 129, 1024, 127, 1300, 1152].map((length) => ({ length, queries: 1 }));
/** Query tokens on both sides of a block border. */
const straddling = [
  { length: 1154, queries: 4 },
  { length: 130, queries: 4 },
  { length: 3, queries: 3 },
  { length: 1281, queries: 2 },
];

/** The blocks that each table entry stands for; absent ones are unused. */
function tableOf(c: DecodeCase): { entries: number; first: number[]; blocks: number[][] } {
  const first = c.sequences.map(({ length, queries }) =>
    c.shortTable ? firstLocalBlock(c.range, length - queries) : c.range.sinkBlocks,
  );
  const blocks = c.sequences.map(({ length }, b) => {
    const all = Array.from({ length: Math.ceil(length / blockTokens) }, (_, block) => block);
    return all.filter((block) => block < c.range.sinkBlocks || block >= first[b]!);
  });
  return { entries: Math.max(...blocks.map((list) => list.length)) + 2, first, blocks };
}

/** Inputs of one step, and where key j of each sequence lies in the cache. */
export function decodeInputs(c: DecodeCase, random: Random, act: DType) {
  const width = c.latent + c.rope;
  const { entries, first, blocks } = tableOf(c);
  const needed = c.sequences.map((sequence) => visibleBlocks(c.range, sequence));
  const count = blocks.flat().length;
  const pool = random.permutation(count + 3);
  const cache = new Float32Array((count + 3) * blockTokens * width).fill(NaN);
  const table = Int32Array.from(
    { length: c.sequences.length * entries },
    (_, i) => absurdBlocks[i % 3]!,
  );
  let taken = 0;
  c.sequences.forEach(({ length }, b) => {
    blocks[b]!.forEach((block, i) => {
      // Blocks that the mask hides keep an absurd entry, whatever table they are in.
      if (!needed[b]!.has(block)) return;
      const id = pool[taken++]!;
      const entry = block < c.range.sinkBlocks || c.shortTable ? i : block;
      table[b * entries + entry] = id;
      const tokens = Math.min(blockTokens, length - block * blockTokens);
      cache.set(random.normals(tokens * width), id * blockTokens * width);
    });
  });
  const queries = c.sequences.reduce((sum, sequence) => sum + sequence.queries, 0);
  const rows = queries + (c.paddingRows ?? 0);
  const starts = [0];
  const positions: number[] = [];
  for (const { length, queries: own } of c.sequences) {
    starts.push(starts.at(-1)! + own);
    for (let i = length - own; i < length; i++) positions.push(i);
  }
  while (positions.length < rows) positions.push(-1);
  return {
    q: host(act, [rows, c.heads, width], random.normals(rows * c.heads * width)),
    cache:
      c.cache === 'fp8'
        ? hostLatentCache(cache, c)
        : host(c.cache === 'act' ? act : c.cache, [(count + 3) * blockTokens, width], cache),
    table: host('i32', [c.sequences.length, entries], table),
    first: host('i32', [c.sequences.length], first),
    starts: host('i32', [c.sequences.length + 1], starts),
    positions: host('i32', [rows], positions),
  };
}

function visibleBlocks(range: KeyRange, { length, queries }: DecodeSequence): Set<number> {
  const blocks = new Set<number>();
  for (let t = length - queries; t < length; t++)
    for (const key of visibleKeys(range, t)) blocks.add(Math.floor(key / blockTokens));
  return blocks;
}

type DecodeInputs = ReturnType<typeof decodeInputs>;

/** The cache row of key j of a sequence. */
export function slotOf(c: DecodeCase, host: DecodeInputs, sequence: number, j: number): number {
  const block = Math.floor(j / blockTokens);
  const sinks = c.range.sinkBlocks;
  const entry = block < sinks ? block : sinks + block - host.first.values[sequence]!;
  const id = host.table.values[sequence * host.table.shape[1]! + entry]!;
  return id * blockTokens + (j % blockTokens);
}

/** `lse` of the rows of sequences only: padding has none. */
function decodeReference(c: DecodeCase, host: DecodeInputs) {
  const width = c.latent + c.rope;
  const out = new Float64Array((host.q.values.length / width) * c.latent);
  const lse = new Float64Array(host.starts.values.at(-1)! * c.heads);
  const cache = c.cache === 'fp8' ? latentRows(host.cache, c) : host.cache.values;
  c.sequences.forEach((_, sequence) => {
    for (let t = host.starts.values[sequence]!; t < host.starts.values[sequence + 1]!; t++) {
      const slots = visibleKeys(c.range, host.positions.values[t]!).map((j) =>
        slotOf(c, host, sequence, j),
      );
      for (let head = 0; head < c.heads; head++) {
        const row = t * c.heads + head;
        const result = attendRow(c, { q: host.q.values, cache }, row * width, slots);
        out.set(result.out, row * c.latent);
        lse[row] = result.lse;
      }
    }
  });
  return { out, lse };
}

function attendRow(
  c: DecodeCase,
  { q, cache }: { q: ArrayLike<number>; cache: ArrayLike<number> },
  at: number,
  slots: number[],
) {
  const width = c.latent + c.rope;
  const scores = slots.map(
    (slot) => Math.fround(decodeScale) * dot(q, at, cache, slot * width, width),
  );
  const { weights, lse } = softmaxOf(scores);
  const out = new Float64Array(c.latent);
  slots.forEach((slot, i) => {
    for (let l = 0; l < c.latent; l++) out[l]! += weights[i]! * cache[slot * width + l]!;
  });
  return { out, lse };
}

export const attentionDecode = defineCases({
  operation: 'attention_decode',
  cases: [
    { name: 'one key', ...small, heads: 1, sequences: [{ length: 1, queries: 1 }] },
    { name: 'mixed lengths, full', ...small, sequences: mixed },
    { name: 'mixed lengths, masked full table', ...small, range: range17, sequences: mixed },
    {
      name: 'mixed lengths, short table',
      ...small,
      range: range17,
      sequences: mixed,
      shortTable: true,
    },
    { name: 'several tokens over block borders, full', ...small, sequences: straddling },
    {
      name: 'several tokens over block borders, short table',
      ...small,
      range: range17,
      sequences: straddling,
      shortTable: true,
    },
    {
      name: 'several tokens over block borders, masked full table',
      ...small,
      range: range17,
      sequences: straddling,
    },
    {
      name: 'two sinks and one local block',
      ...small,
      range: { sinkBlocks: 2, localBlocks: 1 },
      sequences: [...mixed, ...straddling],
      shortTable: true,
    },
    {
      name: 'no sinks',
      ...small,
      range: { sinkBlocks: 0, localBlocks: 2 },
      sequences: [...mixed, ...straddling],
      shortTable: true,
    },
    { name: 'padding rows', ...small, sequences: mixed.slice(0, 4), paddingRows: 3 },
    {
      name: 'LongCat, 8 heads, short table',
      ...longcat,
      sequences: [
        { length: 1200, queries: 1 },
        { length: 77, queries: 1 },
      ],
      shortTable: true,
    },
    {
      name: 'LongCat, 8 heads, two tokens, full',
      ...longcat,
      range: fullRange,
      sequences: [{ length: 1100, queries: 2 }],
    },
    {
      name: 'LongCat, 64 heads',
      ...longcat,
      heads: 64,
      sequences: [{ length: 300, queries: 1 }],
      shortTable: true,
    },
    { name: 'LongCat, 16 heads, mixed lengths', ...longcat, heads: 16, sequences: mixed },
    {
      name: 'LongCat, 13 heads, several tokens over block borders',
      ...longcat,
      heads: 13,
      sequences: straddling,
      shortTable: true,
      paddingRows: 2,
    },
    {
      name: 'LongCat, 32 heads, two sinks and one local block',
      ...longcat,
      heads: 32,
      range: { sinkBlocks: 2, localBlocks: 1 },
      sequences: straddling.slice(0, 2),
      shortTable: true,
    },
    {
      name: 'LongCat, a long sequence, full',
      ...longcat,
      heads: 2,
      range: fullRange,
      sequences: [
        { length: 9001, queries: 1 },
        { length: 40, queries: 1 },
      ],
    },
    {
      name: 'LongCat, 128 heads, two tokens',
      ...longcat,
      heads: 128,
      range: fullRange,
      sequences: [{ length: 1025, queries: 2 }],
    },
    {
      name: 'LongCat, 20 heads, four tokens, short table',
      ...longcat,
      heads: 20,
      sequences: straddling,
      shortTable: true,
      paddingRows: 1,
    },
    {
      name: 'LongCat, 6 heads, sequences without tokens',
      ...longcat,
      heads: 6,
      range: fullRange,
      sequences: [
        { length: 0, queries: 0 },
        { length: 1023, queries: 3 },
        { length: 500, queries: 0 },
        { length: 4096, queries: 1 },
        { length: 0, queries: 0 },
      ],
    },
    {
      name: 'LongCat, one head, short table',
      ...longcat,
      heads: 1,
      sequences: mixed,
      shortTable: true,
    },
    {
      name: 'LongCat, f32 cache',
      ...longcat,
      cache: 'f32',
      sequences: [{ length: 1030, queries: 1 }],
      shortTable: true,
    },
    { name: 'FP8, one key', ...longcat, cache: 'fp8', sequences: [{ length: 1, queries: 1 }] },
    {
      name: 'FP8, 8 heads, short table',
      ...longcat,
      cache: 'fp8',
      sequences: mixed,
      shortTable: true,
    },
    {
      name: 'FP8, 64 heads, full',
      ...longcat,
      cache: 'fp8',
      heads: 64,
      range: fullRange,
      sequences: [
        { length: 700, queries: 1 },
        { length: 64, queries: 1 },
      ],
    },
    {
      name: 'FP8, 20 heads, four tokens, short table',
      ...longcat,
      cache: 'fp8',
      heads: 20,
      sequences: straddling,
      shortTable: true,
      paddingRows: 2,
    },
    {
      name: 'FP8, 128 heads, two tokens',
      ...longcat,
      cache: 'fp8',
      heads: 128,
      range: fullRange,
      sequences: [{ length: 513, queries: 2 }],
    },
    {
      name: 'FP8, a long sequence, full',
      ...longcat,
      cache: 'fp8',
      heads: 2,
      range: fullRange,
      sequences: [
        { length: 9001, queries: 1 },
        { length: 0, queries: 0 },
        { length: 40, queries: 1 },
      ],
    },
    {
      name: 'FP8, two sinks and one local block',
      ...longcat,
      cache: 'fp8',
      heads: 32,
      range: { sinkBlocks: 2, localBlocks: 1 },
      sequences: straddling,
      shortTable: true,
    },
    {
      name: 'FP8, odd sizes',
      ...small,
      cache: 'fp8',
      heads: 13,
      latent: 37,
      rope: 6,
      sequences: [{ length: 259, queries: 3 }],
    },
    {
      name: 'odd sizes',
      ...small,
      heads: 13,
      latent: 37,
      rope: 6,
      sequences: [{ length: 259, queries: 3 }],
    },
    {
      name: 'a long sequence, full',
      ...small,
      heads: 2,
      sequences: [{ length: 9001, queries: 1 }],
    },
  ] as DecodeCase[],
  skip: ({ cache }, _kind, act) => skipFloatCache(cache, act),
  inputs: decodeInputs,
  run: (ops, { q, cache, table, first, starts, positions }, c) => {
    const { latent, range, heads } = c;
    const tables = { blockTable: table, firstLocal: first };
    const rows = c.cache === 'fp8' ? asLatentCache(cache, c) : cache;
    const plan = ops.attentionPlan(rows, tables, starts, positions, heads, range);
    const view = { ...tables, plan };
    const lse = ops.float(q.dim(0), heads);
    return {
      out: ops.attentionDecode(q, rows, latent, view, starts, positions, decodeScale, range, lse),
      lse,
    };
  },
  reference: decodeReference,
  // Scores are sums in f32 of products of what the cache holds, whatever the type.
  tolerance: (_, output) =>
    output === 'lse'
      ? { relative: 1e-5, absolute: 1e-4, inBf16: { relative: 1e-4, absolute: 1e-4 } }
      : { relative: 2e-6 },
});

import { blockTokens } from '../../kv/layer-group';
import { fullRange, type KeyRange } from '../../native/ops';
import type { KernelCase, Prepared, Sizes } from '../kernel-case';
import { decodeWork, keysSeen, pairsSeen } from '../limits';
import type { Workbench } from '../workbench';

/** LongCat's cache row, and the paper's pattern. */
export const latent = 512;
export const rope = 64;
export const paperRange: KeyRange = { sinkBlocks: 1, localBlocks: 7 };

export interface DecodeRow {
  range: KeyRange;
  heads: number;
  /** Values of a cache row: latent and rotated key. */
  latent: number;
  rope: number;
  queries: number;
  batch: number;
  /** Tokens of a sequence, the new ones counted. */
  context: number;
}

type Row = [
  kind: 'full' | 'streaming',
  heads: number,
  queries: number,
  batch: number,
  contextK: number,
  peer: string,
  us: number,
];

const rows: readonly Row[] = [
  ['full', 64, 1, 1, 8, '32.7 µs', 12],
  ['full', 64, 1, 1, 32, '56.8 µs', 24],
  ['full', 64, 1, 1, 128, '98.0 µs', 62],
  ['full', 64, 1, 1, 1024, '470 µs', 430],
  ['full', 64, 1, 32, 8, '129.9 µs', 112],
  ['full', 64, 1, 32, 128, '1652 µs', 1640],
  ['full', 64, 2, 32, 128, '1912 µs', 1850],
  ['full', 8, 2, 32, 128, '1642 µs', 1630],
  ['streaming', 64, 1, 1, 128, '17.2 µs', 6.5],
  ['streaming', 64, 1, 32, 128, '35.9 µs', 17],
  ['streaming', 64, 1, 128, 128, '76 µs', 58],
  ['streaming', 8, 2, 32, 128, '31.1 µs', 16],
];

export function decodeCases(sizes: Sizes): KernelCase[] {
  return rows.map(([kind, heads, queries, batch, contextK, peer, us]) => {
    const row = {
      range: kind === 'full' ? fullRange : paperRange,
      heads: sizes.heads(heads),
      queries,
      batch: sizes.batch(batch),
      context: sizes.tokens(contextK * 1024),
      ...{ latent, rope },
    };
    const length = contextK === 1024 ? '1M' : `${contextK}K`;
    const many = queries > 1 ? `, ${queries} queries` : '';
    return {
      table: 'decode',
      name: `${kind}, ${heads} heads${many}, batch ${batch}, ${length}`,
      peer,
      target: { us },
      ...decodeKernel(row),
    };
  });
}

/** Decode attention alone, on cold caches. */
export function decodeKernel(row: DecodeRow): Pick<KernelCase, 'work' | 'prepare'> {
  return { work: (element) => work(row, element), prepare: (bench) => prepare(row, bench) };
}

function work(row: DecodeRow, element: number) {
  const { range, heads, queries, batch, context, latent, rope } = row;
  const first = context - queries;
  return decodeWork({
    ...{ rows: batch * queries, heads, latent, rope, element },
    keys: batch * keysSeen(first, context - 1, range),
    seen: pairsSeen(first, queries, range) / queries,
    rowBytes: (latent + rope) * element,
  });
}

/** Sequences of one length; their blocks lie shuffled in a pool that holds no others. */
function prepare(row: DecodeRow, bench: Workbench): Prepared {
  const { range, heads, queries, batch, context, latent, rope } = row;
  const { ops } = bench;
  const first = context - queries;
  const block = (position: number) => Math.floor(position / blockTokens);
  const local = Math.max(range.sinkBlocks, block(first) - range.localBlocks + 1);
  const entries = Math.max(1, Math.min(range.sinkBlocks, local) + block(context - 1) + 1 - local);
  const poolRows = batch * entries * blockTokens;
  const each = Array.from({ length: batch * queries }, (_, i) => first + (i % queries));
  const starts = Int32Array.from({ length: batch + 1 }, (_, i) => i * queries);
  const queryStarts = bench.integers(starts);
  const positions = bench.integers(Int32Array.from(each));
  const firstLocal = bench.integers(new Int32Array(batch).fill(local));
  const order = bench.random.permutation(batch * entries);
  const blockTable = bench.integers(order, batch, entries);
  const q = bench.activations(batch * queries, heads, latent + rope);
  const width = latent + rope;
  const caches = bench.copies(poolRows * width * bench.activationBytes, () =>
    bench.activations(poolRows, width),
  );
  const tables = { blockTable, firstLocal };
  const plan = ops.attentionPlan(caches[0]!, tables, queryStarts, positions, heads, range); // once a step
  const view = { ...tables, plan };
  const scale = 192 ** -0.5;
  return {
    sets: caches.length,
    run: (set) => {
      const cache = caches[set]!;
      return [ops.attentionDecode(q, cache, latent, view, queryStarts, positions, scale, range)];
    },
  };
}

import { Config } from '../../checkpoint/config';
import { DummyLoader } from '../../checkpoint/dummy-weights';
import { readMlaConfig } from '../../checkpoint/mla-config';
import { Sequence } from '../../engine/sequence';
import { blocksFor, LayerGroup } from '../../kv/layer-group';
import { Mla, takeMla } from '../../layers/mla';
import { batchLimits } from '../../load-model';
import { resolveLoadOptions } from '../../load-options';
import { presets } from '../../model/presets';
import { fullRange, type KeyRange } from '../../native/ops';
import { planBatch } from '../../runner/batch';
import { uploadStep } from '../../runner/step';
import type { KernelCase, Prepared, Sizes, Target } from '../kernel-case';
import { keysSeen, pairsSeen, prefillWork, type Work } from '../limits';
import type { Workbench } from '../workbench';
import { latent, paperRange, rope } from './decode';

const heads = 64;
const nope = 128;
const value = 128;
/** At which attention FLOPs a chunk after a prefix is measured, and what it may cost beyond them. */
const chunkFlops = 620e12 / 1.08;

interface PrefillRow {
  kind: 'full' | 'streaming';
  heads: number;
  count: number;
  /** Tokens before the new ones; they come from the cache. */
  prefix: number;
}

const rangeOf = (kind: PrefillRow['kind']): KeyRange => (kind === 'full' ? fullRange : paperRange);

/** Attention alone over keys and values that are expanded already. */
const whole: readonly {
  kind: PrefillRow['kind'];
  countK: number;
  peer?: string;
  target?: Target;
  note?: string;
}[] = [
  { kind: 'full', countK: 8, peer: '2.15 ms', target: { us: 2080 } },
  { kind: 'full', countK: 32, peer: '35.3 ms', target: { us: 34_000 } },
  { kind: 'streaming', countK: 8 },
  { kind: 'streaming', countK: 32, peer: '3.56 ms', target: { us: 2500 } },
  { kind: 'streaming', countK: 128, note: '4 × the 32K time, within 3 %' },
];

/** A chunk of 8K as the runner does it: from the latent cache, with expansion and merge. */
const chunks: readonly [PrefillRow['kind'], prefixK: number, note: string][] = [
  ['full', 0, ''],
  ['full', 120, 'attention FLOPs at 620 TFLOP/s, and 8 %'],
  ['streaming', 0, ''],
  ['streaming', 8, 'the time without a prefix, within 10 %'],
  ['streaming', 120, 'the time without a prefix, within 10 %'],
];

export function prefillCases(sizes: Sizes): KernelCase[] {
  const table = 'prefill';
  const size = (kind: PrefillRow['kind'], countK: number, prefixK: number): PrefillRow => ({
    kind,
    heads: sizes.heads(heads),
    count: sizes.tokens(countK * 1024),
    prefix: sizes.tokens(prefixK * 1024),
  });
  const attention = whole.map(({ kind, countK, ...aims }): KernelCase => {
    const row = size(kind, countK, 0);
    return {
      ...{ table, name: `${kind}, ${countK}K`, ...aims },
      work: (element) => attentionWork(row, element),
      prepare: (bench) => prepareWhole(row, bench),
    };
  });
  const chunked = chunks.map(([kind, prefixK, note]): KernelCase => {
    const row = size(kind, 8, prefixK);
    const flops = attentionWork(row, 2).flops;
    const limited = kind === 'full' && prefixK > 0;
    return {
      ...{ table, name: `${kind}, chunk of 8K after ${prefixK}K, from the cache`, note },
      ...(limited && { target: { us: (flops / chunkFlops) * 1e6 } }),
      work: (element) => chunkWork(row, element),
      prepare: (bench) => prepareChunk(row, bench, sizes),
    };
  });
  return [...attention, ...chunked];
}

function attentionWork({ kind, heads, count, prefix }: PrefillRow, element: number): Work {
  const range = rangeOf(kind);
  return prefillWork({
    ...{ rows: count, heads, queryDim: nope + rope, valueDim: value, ropeDim: rope, element },
    keys: keysSeen(prefix, prefix + count - 1, range),
    pairs: pairsSeen(prefix, count, range),
  });
}

/** With the expansion of the keys, which need not leave the chip: their latents are read. */
function chunkWork(row: PrefillRow, element: number): Work {
  const { kind, heads, count, prefix } = row;
  const keys = keysSeen(prefix, prefix + count - 1, rangeOf(kind));
  const { flops } = attentionWork(row, element);
  const perRow = heads * (nope + rope + value) * element;
  return {
    bytes: keys * (latent + rope) * element + count * perRow,
    flops: flops + 2 * keys * latent * heads * (nope + value),
  };
}

function prepareWhole({ kind, heads, count }: PrefillRow, bench: Workbench): Prepared {
  const { ops } = bench;
  const q = bench.activations(count, heads, nope + rope);
  const kv = bench.activations(count, heads, nope + value);
  const kRope = bench.activations(count, rope);
  const out = bench.tensor(bench.activation, count, heads, value);
  const lse = bench.tensor('f32', count, heads);
  const segments = bench.integers(Int32Array.of(0, count, 0, 0, count, 0), 1, 6);
  const scale = (nope + rope) ** -0.5;
  ops.fill(out, 0);
  return {
    sets: 1,
    run: () => {
      ops.fill(lse, -Infinity);
      ops.attentionPrefill({ out, lse }, q, kv, kRope, segments, scale, rangeOf(kind));
      return [out, lse];
    },
  };
}

function prepareChunk(row: PrefillRow, bench: Workbench, sizes: Sizes): Prepared {
  const { ops, lasting, device } = bench;
  const { kind, heads, count, prefix } = row;
  const preset = { ...presets['longcat-flash'], num_attention_heads: heads };
  const hidden = { hidden_size: sizes.width(6144) };
  const text = JSON.stringify({ ...preset, ...hidden });
  const config = Config.parse(Buffer.from(text), 'longcat-flash');
  const mla = readMlaConfig(config);
  const weights = new DummyLoader(config, device, ops, 0);
  const scales = { query: 2, latent: 12 ** 0.5 };
  const attention = new Mla(
    takeMla(weights, 'model.layers.0.self_attn.0.', mla),
    mla,
    0,
    scales,
    1,
  );
  for (const { run } of weights.copies) run();

  const capacity = blocksFor(prefix + count) + 1;
  const range = rangeOf(kind);
  const width = latent + rope;
  const group = new LayerGroup(device, kind, range, [0], capacity, width, bench.activation);
  ops.fillRandom(group.cache(0), [1, 0], 1);
  const sequence = new Sequence(new Array<number>(prefix + count).fill(0), [group]);
  sequence.extend(prefix);
  sequence.advance(prefix);
  sequence.extend(count);
  const limits = batchLimits({ mla }, resolveLoadOptions({}), device);
  const batch = planBatch([{ sequence, count }], [group], { ...limits, expandedMinTokens: 1 });
  const frequencies = bench.normal('f32', [2, rope / 2]);
  const angles = { inverseFrequencies: frequencies, attentionScale: 1, exact: false };
  const step = { ...uploadStep(lasting, batch, angles), ops };
  const q = bench.activations(count, heads, nope + rope);
  const out = bench.tensor(bench.activation, count, heads, value);
  ops.fill(out, 0);
  return {
    sets: 1,
    run: () => {
      attention.expanded(step, step.attention(0), q, out);
      return [out];
    },
  };
}

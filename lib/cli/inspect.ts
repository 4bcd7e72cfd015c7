import type { Command } from 'commander';

import { cacheRowBytes, type CacheDtype } from '../kv/cache-row';
import { blocksFor, blockTokens } from '../kv/layer-group';
import type { LoadPlan } from '../load-model';
import { describePlan, dtypeNames, type ModelInfo, type RopeInfo } from '../model-info';
import type { Context } from './context';
import {
  formatBytes,
  formatCount,
  formatFields,
  formatLength,
  formatPercent,
  formatTable,
  plural,
} from './format';
import { addLoadFlags, dummyFlags, planFromFlags, type LoadFlags } from './options';
import { drawZigzag, zigzagLegend } from './zigzag';

interface DtypeWeights {
  dtype: string;
  tensors: number;
  bytes: number;
}

/** KV bytes of one sequence of `tokens`. */
interface KvRow {
  tokens: number;
  beyond: boolean;
  bytes: { dtype: (typeof dtypeNames)[CacheDtype]; full: number; loza: number }[];
}

const contextLengths = [8, 32, 128, 256, 1024].map((k) => k * 1024);

const examples = `
Reads config.json and the headers of the weights: quick, and needs no device and no memory.

Examples:
  loza inspect models/loza-tiny
  loza inspect DIR --attention 10111000     what another pattern would keep
  loza inspect DIR --yarn-factor 4          four times the positions, by YaRN
  loza inspect DIR --kv-dtype fp8           what an FP8 cache takes
  loza inspect longcat-flash --load-format dummy --layers 4
  loza inspect DIR --json | jq .model.parameters`;

export function registerInspect(program: Command, context: Context): void {
  const command = program
    .command('inspect')
    .description('Shows what a checkpoint is, its layer pattern and what its KV cache takes.')
    .argument('<dir>', 'checkpoint folder');
  const names = [
    ...(['attention', 'sinkBlocks', 'localBlocks'] as const),
    ...(['dtype', 'kvDtype', 'yarnFactor'] as const),
  ];
  addLoadFlags(command, [...names, ...dummyFlags])
    .addHelpText('after', examples)
    .action((dir: string, flags: LoadFlags) => inspect(dir, flags, context));
}

async function inspect(dir: string, flags: LoadFlags, context: Context): Promise<void> {
  const plan = await planFromFlags(dir, flags, context.signal);
  const model = describePlan(plan);
  const weights = weightsByDtype(plan);
  const dtypes: CacheDtype[] = [
    'bf16',
    ...(flags.dtype === 'float32' ? (['f32'] as const) : []),
    ...(flags.kvDtype === 'fp8' ? (['f8e4m3'] as const) : []),
  ];
  const kv = kvTable(model, dtypes, plan.maxPosition);
  if (context.json) {
    const files = plan.checkpoint.files.length;
    context.printJson({ dir, model, weights, files, kv });
    return;
  }
  const summary = formatFields(summaryFields(dir, plan, model, weights));
  const parts = [
    summary,
    `${drawZigzag(model.layerType, context.width)}\n${zigzagLegend(model)}`,
    describeKv(kv, model),
  ];
  context.print(parts.join('\n\n'));
}

function summaryFields(
  dir: string,
  plan: LoadPlan,
  model: ModelInfo,
  weights: readonly DtypeWeights[],
): [string, string][] {
  const { mla } = plan.model;
  const files = plural(plan.checkpoint.files.length, 'file');
  const where = plan.checkpoint.files.length === 0 ? 'dummy weights' : files;
  const size = `${formatCount(model.parameters)} parameters in ${where}`;
  const attentions = `${plural(model.layers, 'layer')}, ${plural(model.attentions, 'attention')} of ${plural(model.heads, 'head')}`;
  const experts = model.experts === 0 ? 'none (dense)' : `${formatCount(model.experts)} a layer`;
  const aside = Object.entries(model.leftAside).map(
    ([what, tensors]) => `${what}: ${plural(tensors, 'tensor')}`,
  );
  return [
    ['checkpoint', dir],
    ['architecture', model.architecture],
    ['size', size],
    ['weights', weights.map(describeWeights).join('\n')],
    ['layers', `${attentions}, hidden size ${formatCount(model.hiddenSize)}`],
    ['experts', experts],
    ['vocabulary', plural(model.vocabSize, 'token')],
    ['cache row', `${mla.kvLoraRank} latent + ${mla.ropeDim} rope values a token an attention`],
    ['positions', formatCount(model.maxPosition)],
    ['rope', describeRope(model.rope)],
    ['left aside', aside.join('\n') || 'nothing: every tensor is used'],
  ];
}

function describeWeights({ dtype, tensors, bytes }: DtypeWeights): string {
  return `${dtype.padEnd(8)} ${formatBytes(bytes)} in ${plural(tensors, 'tensor')}`;
}

function describeRope(rope: RopeInfo): string {
  const base = `theta ${formatCount(rope.theta)}`;
  if (rope.type === 'default') return `plain, ${base}`;
  const stretch = `YaRN: ${formatCount(rope.originalMaxPosition)} positions stretched ${round(rope.factor)} times, ${base}`;
  const pairs = rope.inverseFrequencies.length;
  const ramp = `of ${pairs} pairs, those below ${round(rope.low)} turn as before, those from ${round(rope.high)} on ${round(rope.factor)} times slower`;
  const scales = `scale of cos and sin ${round(rope.attentionScale)}, of the softmax ${round(rope.softmaxFactor)}`;
  return `${stretch}\n${ramp}\n${scales}`;
}

const round = (value: number): string => String(Number(value.toPrecision(5)));

function weightsByDtype({ checkpoint }: LoadPlan): DtypeWeights[] {
  const byDtype = new Map<string, DtypeWeights>();
  for (const { dtype, begin, end } of checkpoint.tensors.values()) {
    const sum = byDtype.get(dtype) ?? { dtype, tensors: 0, bytes: 0 };
    sum.tensors += 1;
    sum.bytes += end - begin;
    byDtype.set(dtype, sum);
  }
  return [...byDtype.values()].sort((a, b) => b.bytes - a.bytes);
}

function kvTable(model: ModelInfo, dtypes: readonly CacheDtype[], maxPosition: number): KvRow[] {
  const lengths = [...new Set([...contextLengths, maxPosition])].sort((a, b) => a - b);
  return lengths.map((tokens) => ({
    tokens,
    beyond: tokens > maxPosition,
    bytes: dtypes.map((dtype) => ({
      dtype: dtypeNames[dtype],
      ...kvBytes(model, tokens, dtype),
    })),
  }));
}

/** Streaming attentions keep their sink and local blocks, full ones every block. */
export function kvBytes(
  model: Pick<ModelInfo, 'layerType' | 'sinkBlocks' | 'localBlocks' | 'latentDim' | 'ropeDim'>,
  tokens: number,
  dtype: CacheDtype,
): { full: number; loza: number } {
  const { layerType, sinkBlocks, localBlocks, latentDim, ropeDim } = model;
  const block = blockTokens * cacheRowBytes(dtype, latentDim, ropeDim);
  const blocks = blocksFor(tokens);
  const kept = Math.min(blocks, sinkBlocks + localBlocks);
  const streaming = [...layerType].filter((type) => type === '1').length;
  const full = layerType.length * blocks * block;
  return { full, loza: full - streaming * (blocks - kept) * block };
}

function describeKv(rows: readonly KvRow[], model: ModelInfo): string {
  const streams = model.layerType.includes('1');
  const lines = ['KV cache of one sequence:', kvColumns(rows, streams)];
  if (rows.some(({ beyond }) => beyond)) {
    const positions = formatCount(model.maxPosition);
    lines.push(`* beyond the model's ${positions} positions; --yarn-factor stretches them`);
  }
  if (!streams) lines.push('No attention streams; --attention PATTERN shows what that would save.');
  return lines.join('\n');
}

function kvColumns(rows: readonly KvRow[], streams: boolean): string {
  const right = (title: string) => ({ title, align: 'right' as const });
  const dtypes = rows[0]?.bytes.map(({ dtype }) => dtype) ?? [];
  const columns = [
    right('context'),
    ...dtypes.flatMap((dtype) => {
      return [right(`full, ${dtype}`), ...(streams ? [right(`LoZA, ${dtype}`)] : [])];
    }),
    ...(streams ? [right('saved')] : []),
  ];
  const cells = rows.map(({ tokens, beyond, bytes }) => [
    `${formatLength(tokens)}${beyond ? '*' : ' '}`,
    ...bytes.flatMap(({ full, loza }) => {
      return [formatBytes(full), ...(streams ? [formatBytes(loza)] : [])];
    }),
    ...(streams ? [formatPercent(savedFraction(bytes))] : []),
  ]);
  return formatTable(columns, cells);
}

function savedFraction([first]: KvRow['bytes']): number {
  return first === undefined ? 0 : 1 - first.loza / first.full;
}

import { openCheckpoint, openDummy, type Checkpoint } from './checkpoint/checkpoint';
import { DummyList, DummyLoader } from './checkpoint/dummy-weights';
import type { RopeConfig } from './checkpoint/rope-config';
import { checkScales } from './checkpoint/scales';
import {
  readAttentionPattern,
  resolveAttentionPattern,
  type AttentionPattern,
} from './checkpoint/streaming-config';
import { WeightChecker, WeightLoader } from './checkpoint/weights';
import { Engine } from './engine/engine';
import type { SchedulerLimits } from './engine/scheduler';
import { LozaError, throwIfAborted } from './errors';
import { cacheRowWidth, type CacheDtype } from './kv/cache-row';
import {
  blocksFor,
  blockTokens,
  groupRange,
  LayerGroup,
  type LayerGroupKind,
} from './kv/layer-group';
import type { HostMemory } from './kv/host-cache';
import { checkpointBlocks, PrefixCache } from './kv/prefix-cache';
import { extendRope, ropeTable, type RopeTable } from './layers/rope';
import { stepLimits, type ResolvedLoadOptions } from './load-options';
import type { Model, ModelPlan } from './model/model';
import { presets } from './model/presets';
import { findFamily } from './model/registry';
import type { DeviceKind, NativeDeviceInfo } from './native/binding';
import { Device, listDevices } from './native/device';
import { Ops } from './native/ops';
import { bytesPerElement } from './native/tensor';
import type { BatchLimits } from './runner/batch';
import { DecodeGraphs } from './runner/decode-graphs';
import { ModelRunner } from './runner/model-runner';
import { attentionsOfKind, type RopeAngles } from './runner/step';

/** What a checkpoint and the load options decide, before any weight is touched. */
export interface LoadPlan {
  checkpoint: Checkpoint;
  model: ModelPlan;
  /** undefined: full attention everywhere. */
  pattern: AttentionPattern | undefined;
  rope: RopeConfig;
  table: RopeTable;
  maxPosition: number;
}

export interface LoadedModel {
  plan: LoadPlan;
  device: Device;
  deviceInfo: NativeDeviceInfo;
  /** Why 'auto' did not take a GPU. */
  deviceNote: string | undefined;
  /** What activations of a GPU are, and the KV cache unless it is FP8. */
  dtype: 'f32' | 'bf16';
  kvDtype: CacheDtype;
  maxTokens: number;
  groups: readonly LayerGroup[];
  engine: Engine;
  /** What the engine drives, for benchmarks that go around it. */
  parts: ModelParts;
}

export interface ModelParts {
  ops: Ops;
  model: Model;
  angles: RopeAngles;
  limits: BatchLimits;
  runner: ModelRunner;
}

/** Weights copied between two looks at the signal and reports of progress. */
const copyBatchBytes = 128 * 2 ** 20;
/**
 * Bytes of expanded keys and values that a round may take, and the most keys. On a GPU a chunk of 8K
 * tokens and the window of a streaming attention fit into one round of 64 heads.
 */
const workspaceLimits: Record<DeviceKind, { bytes: number; keys: number }> = {
  cpu: { bytes: 64 * 2 ** 20, keys: 8192 },
  cuda: { bytes: 640 * 2 ** 20, keys: 16384 },
};
/** The largest KV budget that is taken unasked. */
const mostDefaultTokens: Record<DeviceKind, number> = { cpu: 65_536, cuda: 131_072 };

/** The load options that a plan depends on. */
export type PlanOptions = Pick<ResolvedLoadOptions, 'attention' | 'rope' | 'signal'> &
  Partial<Pick<ResolvedLoadOptions, 'loadFormat' | 'configOverrides'>>;

/** Reads config.json and the tensor headers, and checks that they fit each other. */
export async function planLoad(dir: string, options: PlanOptions): Promise<LoadPlan> {
  const { checkpoint, model } =
    options.loadFormat === 'dummy' ? await planDummy(dir, options) : await planFiles(dir, options);
  const { mla, attentions } = model;
  const fromConfig = readAttentionPattern(mla.streaming, attentions);
  const { yarnFactor } = options.rope;
  const { rope, maxPosition } =
    yarnFactor === undefined ? mla : extendRope(mla.rope, mla.maxPosition, yarnFactor);
  return {
    checkpoint,
    model,
    pattern: resolveAttentionPattern(options.attention, fromConfig, attentions),
    rope,
    table: ropeTable(rope, mla.ropeDim),
    maxPosition,
  };
}

type Planned = Pick<LoadPlan, 'checkpoint' | 'model'>;

async function planFiles(dir: string, { signal }: PlanOptions): Promise<Planned> {
  const checkpoint = await openCheckpoint(dir, { signal });
  const model = findFamily(checkpoint).plan(checkpoint.config);
  const checker = new WeightChecker(checkpoint);
  model.build(checker, 1);
  checker.finish((name) => model.leftAside(name) !== undefined);
  return { checkpoint, model };
}

/** The tensors are those that the model asks for. */
async function planDummy(dir: string, { configOverrides }: PlanOptions): Promise<Planned> {
  const checkpoint = await openDummy(dir, presets, configOverrides);
  const model = findFamily(checkpoint).plan(checkpoint.config);
  const list = new DummyList(checkpoint.config);
  model.build(list, 1);
  return { checkpoint: { ...checkpoint, tensors: list.tensors }, model };
}

/** Opens a device and brings a model onto it. Whatever fails, nothing stays behind. */
export async function loadModel(dir: string, options: ResolvedLoadOptions): Promise<LoadedModel> {
  const plan = await planLoad(dir, options);
  if (options.loadFormat !== 'dummy') await checkScales(plan.checkpoint, options.signal);
  throwIfAborted(options.signal);
  const { info, note } = chooseDevice(options.device);
  const dtype = computeType(info.kind, options.dtype, plan.checkpoint);
  const device = new Device(info.kind, info.kind === 'cpu' ? 'f32' : dtype);
  try {
    const loaded = await loadOnto(device, plan, options, dtype);
    return { ...loaded, deviceInfo: info, deviceNote: note };
  } catch (error) {
    device.close();
    throw withMemoryHint(error, device);
  }
}

async function loadOnto(
  device: Device,
  plan: LoadPlan,
  options: ResolvedLoadOptions,
  dtype: 'f32' | 'bf16',
): Promise<Omit<LoadedModel, 'deviceInfo' | 'deviceNote'>> {
  const { model, table, maxPosition } = plan;
  const ops = new Ops(device.makeStream(), device.makeArena());
  const loader =
    options.loadFormat === 'dummy'
      ? new DummyLoader(plan.checkpoint.config, device, ops, options.seed)
      : new WeightLoader(plan.checkpoint, device, ops);
  const built = model.build(loader, table.softmaxFactor);
  await copyWeights(loader, ops, options);
  loader.finish();

  const maxTokens =
    options.maxTokens ?? Math.min(Math.max(maxPosition, 16_384), mostDefaultTokens[device.kind]);
  const kvDtype = cacheType(options.kvDtype, dtype);
  const step = stepLimits(options, device.kind);
  const { prefixCache } = options;
  const groups = makeGroups(device, plan, { ...step, prefixCache }, kvDtype, maxTokens);
  const angles = uploadAngles(device, ops, table, options.rope.exactAngles);
  const limits = batchLimits(model, options, device);
  const graphs = options.decodeGraphs ?? device.kind === 'cuda';
  const runner = new ModelRunner(
    ops,
    built,
    groups,
    angles,
    limits,
    model.mla.vocabSize,
    graphs ? new DecodeGraphs(device, ops, built, groups, angles) : undefined,
    prefixCache ? new PrefixCache(groups, hostMemory(ops, device, groups, options)) : undefined,
  );
  await ops.stream.synchronize();
  const engine = new Engine(runner, step);
  const parts = { ops, model: built, angles, limits, runner };
  return { plan, device, dtype, kvDtype, maxTokens, groups, engine, parts };
}

/** Room for so many tokens, and for the windows of streaming attentions at their checkpoints. */
function hostMemory(
  ops: Ops,
  device: Device,
  groups: readonly LayerGroup[],
  { hostTokens }: ResolvedLoadOptions,
): (HostMemory & { blocks: number[] }) | undefined {
  if (hostTokens === 0) return undefined;
  const all = blocksFor(hostTokens);
  const blocks = groups.map(({ kind, range: { sinkBlocks, localBlocks } }) => {
    if (kind === 'full') return all;
    return Math.min(all, Math.ceil(all / checkpointBlocks + 1) * (sinkBlocks + localBlocks));
  });
  return { ops, device, blocks };
}

/** 'auto' takes the best usable device; a named one is taken or its reason thrown. */
export function chooseDevice(wanted: ResolvedLoadOptions['device']): {
  info: NativeDeviceInfo;
  note: string | undefined;
} {
  const devices = listDevices();
  const find = (kind: string) => devices.find((device) => device.kind === kind);
  const cuda = find('cuda');
  const kind = wanted !== 'auto' ? wanted : cuda?.usable ? 'cuda' : 'cpu';
  const info = find(kind) as NativeDeviceInfo;
  const note = wanted === 'auto' && kind === 'cpu' ? cuda?.reason : undefined;
  return { info, note };
}

/** Type of activations on a GPU, and of the KV cache unless it is FP8; the CPU computes in f32. */
export function computeType(
  kind: DeviceKind,
  dtype: ResolvedLoadOptions['dtype'],
  checkpoint: Pick<Checkpoint, 'tensors'>,
): 'f32' | 'bf16' {
  if (dtype !== 'auto') return dtype === 'float32' ? 'f32' : 'bf16';
  return kind === 'cpu' || isFloat32(checkpoint) ? 'f32' : 'bf16';
}

/** Type of the KV cache. */
export function cacheType(
  kvDtype: ResolvedLoadOptions['kvDtype'],
  dtype: 'f32' | 'bf16',
): CacheDtype {
  return kvDtype === 'fp8' ? 'f8e4m3' : dtype;
}

/** Where a GPU has no room for a model in float32, the error names bfloat16. */
export function withDtypeHint(
  error: unknown,
  { kind, activation }: Pick<Device, 'kind' | 'activation'>,
): unknown {
  if (kind === 'cpu' || activation !== 'f32' || !LozaError.isInstance(error)) return error;
  if (error.code !== 'ERR_LOZA_OUT_OF_MEMORY') return error;
  const hint = "The model is loaded in float32: dtype 'bfloat16' takes as little as half";
  return new LozaError(error.code, error.message, { value: error.value, hint, cause: error });
}

/** Where a device has no room for a model, the error says what takes less. */
export function withMemoryHint(
  error: unknown,
  device: Pick<Device, 'kind' | 'activation'>,
): unknown {
  const full = LozaError.isInstance(error) && error.code === 'ERR_LOZA_OUT_OF_MEMORY';
  if (!full || error.hint !== undefined) return error;
  const hinted = withDtypeHint(error, device);
  if (hinted !== error) return hinted;
  const hint = 'Fewer maxTokens make the KV cache smaller; loza inspect shows what weights take';
  return new LozaError(error.code, error.message, { value: error.value, hint, cause: error });
}

/** Whether all matrices are stored in float32: then rounding them to bf16 could change the model. */
function isFloat32({ tensors }: Pick<Checkpoint, 'tensors'>): boolean {
  const matrices = [...tensors.values()].filter(({ shape }) => shape.length === 2);
  return matrices.length > 0 && matrices.every(({ dtype }) => dtype === 'F32');
}

/** One batch is on its way while the next is read, so that the bus does not wait. */
export async function copyWeights(
  loader: Pick<WeightLoader, 'copies'>,
  ops: Ops,
  { signal, onProgress }: Pick<ResolvedLoadOptions, 'signal' | 'onProgress'>,
): Promise<void> {
  const totalBytes = loader.copies.reduce((sum, copy) => sum + copy.bytes, 0);
  let loadedBytes = 0;
  let before = { bytes: 0, done: Promise.resolve() };
  const finish = async (batch: typeof before) => {
    await batch.done;
    throwIfAborted(signal);
    loadedBytes += batch.bytes;
    onProgress?.({ loadedBytes, totalBytes });
  };
  const enqueued = (bytes: number) => {
    const done = ops.stream.synchronize();
    done.catch(() => {}); // told when it is waited for, which the batch before it may prevent
    return { bytes, done };
  };
  let bytes = 0;
  for (const copy of loader.copies) {
    copy.run();
    bytes += copy.bytes;
    if (bytes < copyBatchBytes) continue;
    const batch = enqueued(bytes);
    bytes = 0;
    if (before.bytes > 0) await finish(before);
    before = batch;
  }
  if (before.bytes > 0) await finish(before);
  await finish(enqueued(bytes));
}

export type PoolLimits = Pick<SchedulerLimits, 'stepTokens' | 'maxSequences'> &
  Pick<ResolvedLoadOptions, 'prefixCache'>;

/** Part of the full group's blocks that a streaming group has more, for windows of its checkpoints. */
const checkpointShare = 1 / 16;

/** One group for full and one for streaming attentions, each with its own pool; empty ones are left out. */
export function makeGroups(
  device: Pick<Device, 'allocate' | 'release'>,
  { model, pattern }: LoadPlan,
  { stepTokens, maxSequences, prefixCache }: PoolLimits,
  dtype: CacheDtype,
  maxTokens: number,
): LayerGroup[] {
  const { mla, attentions } = model;
  const width = cacheRowWidth(dtype, mla.kvLoraRank, mla.ropeDim);
  const full = blocksFor(maxTokens);
  const kinds: LayerGroupKind[] = ['full', 'streaming'];
  return kinds.flatMap((kind) => {
    const indices = attentionsOfKind(kind, pattern?.layerType, attentions);
    if (indices.length === 0) return [];
    const range = groupRange(kind, pattern);
    // Chunks are in flight for a step only: then their blocks go, but for those of the window.
    const window = range.sinkBlocks + range.localBlocks + 2;
    const checkpoints = prefixCache ? Math.ceil(full * checkpointShare) : 0;
    const streaming = maxSequences * window + blocksFor(stepTokens) + checkpoints;
    const capacity = kind === 'full' ? full : Math.min(full, streaming);
    return [new LayerGroup(device, kind, range, indices, capacity, width, dtype)];
  });
}

export function uploadAngles(
  device: Pick<Device, 'allocate'>,
  ops: Ops,
  table: RopeTable,
  exact: boolean,
): RopeAngles {
  const pairs = table.inverseFrequencies.length;
  const inverseFrequencies = device.allocate('f32', [2, pairs], 'workspace');
  const values = new Float32Array(2 * pairs);
  table.inverseFrequencies.forEach((frequency, pair) => {
    const high = Math.fround(frequency);
    values[pair] = high;
    values[pairs + pair] = frequency - high;
  });
  ops.stream.write(inverseFrequencies, values);
  return { inverseFrequencies, attentionScale: table.attentionScale, exact };
}

/**
 * Expanding a key costs latent * (nope + value) multiplications a head, once for all queries; then
 * each pair of query and key costs nope + rope + value instead of 2 * latent + rope.
 */
export function batchLimits(
  { mla }: Pick<ModelPlan, 'mla'>,
  options: ResolvedLoadOptions,
  { kind, activation }: Pick<Device, 'kind' | 'activation'>,
): BatchLimits {
  const { heads, kvLoraRank, nopeDim, ropeDim, valueDim } = mla;
  const saved = 2 * kvLoraRank - nopeDim - valueDim;
  const breakEven = saved > 0 ? Math.ceil((kvLoraRank * (nopeDim + valueDim)) / saved) : Infinity;
  const limit = workspaceLimits[kind];
  const keyBytes =
    bytesPerElement[activation] * (heads * (nopeDim + valueDim) + kvLoraRank + ropeDim);
  const blocks = Math.floor(Math.min(limit.bytes / keyBytes, limit.keys) / blockTokens);
  return {
    expandedMinTokens: options.expandedMinTokens ?? Math.max(2, breakEven),
    workspaceKeys: Math.max(blocks, 2) * blockTokens,
  };
}

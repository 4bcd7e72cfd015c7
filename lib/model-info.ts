import type { LoadedModel, LoadPlan } from './load-model';
import type { DeviceKind } from './native/binding';

/** What a checkpoint is, and how it runs. */
export interface ModelInfo {
  architecture: string;
  /** Weights of the model, those left aside not counted. */
  parameters: number;
  layers: number;
  /** LongCat has two attentions a layer, others one. */
  attentions: number;
  /** Routed experts a layer; 0 for a dense model. */
  experts: number;
  hiddenSize: number;
  heads: number;
  vocabSize: number;
  /** Cache row of a token in one attention: latent and rotated key. */
  latentDim: number;
  ropeDim: number;
  /** One character an attention: '1' = streaming, '0' = full. */
  layerType: string;
  /** Blocks of 128 tokens that streaming attentions keep; 0 when none streams. */
  sinkBlocks: number;
  localBlocks: number;
  rope: RopeInfo;
  maxPosition: number;
  /** Tensors of the checkpoint that the model does not use: what they are, and how many. */
  leftAside: Record<string, number>;
}

/** The effective rotary embedding: after YaRN, and after the user's extension. */
export interface RopeInfo {
  type: 'default' | 'yarn';
  theta: number;
  factor: number;
  originalMaxPosition: number;
  /** Pairs below `low` keep their frequency, from `high` on they are divided by the factor. */
  low: number;
  high: number;
  attentionScale: number;
  softmaxFactor: number;
  /** Radians a position, one for each pair of dimensions. */
  inverseFrequencies: number[];
}

export interface LoadedModelInfo extends ModelInfo {
  dtype: 'float32' | 'bfloat16';
  /** What the KV cache is kept in. */
  kvDtype: 'float32' | 'bfloat16' | 'fp8';
  device: DeviceKind;
  deviceName: string;
  /** Why `device: 'auto'` did not take a GPU. */
  deviceNote?: string;
  /** The KV budget in tokens. */
  maxTokens: number;
}

/** Bytes, by what they are for. */
export interface MemoryReport {
  weights: number;
  /** Of the weights, what is read where it lies in the mapped files: page cache, shared with other processes. */
  mappedWeights: number;
  kv: { full: KvReport; streaming: KvReport };
  workspace: number;
  /** In the host's memory, for KV blocks that others needed the room of; not counted in `peak`. */
  host: number;
  /** Largest sum so far. */
  peak: number;
}

export interface KvReport {
  /** In blocks that sequences hold now, of requests or of sessions. */
  resident: number;
  /** Nobody's, but kept for prompts that begin alike until the room is needed. */
  cached: number;
  /** resident + cached + free = capacity. */
  free: number;
  /** Given back by running sequences because no later query can read them. */
  freed: number;
  /** What the pool can hold. */
  capacity: number;
}

export function describePlan(plan: LoadPlan): ModelInfo {
  const { model, pattern, rope, table, maxPosition } = plan;
  const { mla } = model;
  return {
    architecture: plan.checkpoint.architecture ?? plan.checkpoint.modelType ?? 'unknown',
    ...countTensors(plan),
    layers: model.layers,
    attentions: model.attentions,
    experts: model.experts,
    hiddenSize: mla.hiddenSize,
    heads: mla.heads,
    vocabSize: mla.vocabSize,
    latentDim: mla.kvLoraRank,
    ropeDim: mla.ropeDim,
    layerType: pattern?.layerType ?? '0'.repeat(model.attentions),
    sinkBlocks: pattern?.sinkBlocks ?? 0,
    localBlocks: pattern?.localBlocks ?? 0,
    rope: {
      type: rope.scaling === null ? 'default' : 'yarn',
      theta: rope.theta,
      factor: rope.scaling?.factor ?? 1,
      originalMaxPosition: rope.scaling?.originalMaxPosition ?? maxPosition,
      low: table.low,
      high: table.high,
      attentionScale: table.attentionScale,
      softmaxFactor: table.softmaxFactor,
      inverseFrequencies: [...table.inverseFrequencies],
    },
    maxPosition,
  };
}

/** As load options spell them. */
export const dtypeNames = { f32: 'float32', bf16: 'bfloat16', f8e4m3: 'fp8' } as const;

export function describeModel(loaded: LoadedModel): LoadedModelInfo {
  const { plan, deviceInfo, deviceNote, dtype, kvDtype, maxTokens } = loaded;
  return {
    ...describePlan(plan),
    dtype: dtypeNames[dtype],
    kvDtype: dtypeNames[kvDtype],
    device: deviceInfo.kind,
    deviceName: deviceInfo.name,
    ...(deviceNote === undefined ? {} : { deviceNote }),
    maxTokens,
  };
}

export function memoryReport({ device, groups, engine }: LoadedModel): MemoryReport {
  const { weights, mappedWeights, workspace, host, peak } = device.memory();
  const kv = (kind: 'full' | 'streaming'): KvReport => {
    const group = groups.find((one) => one.kind === kind);
    if (group === undefined) return { resident: 0, cached: 0, free: 0, freed: 0, capacity: 0 };
    const freed = engine.sequences.reduce((sum, one) => sum + one.blocksOf(group).freed, 0);
    const { pool, blockBytes } = group;
    return {
      resident: pool.inUse * blockBytes,
      cached: pool.cached * blockBytes,
      free: (pool.available - pool.cached) * blockBytes,
      freed: freed * blockBytes,
      capacity: pool.capacity * blockBytes,
    };
  };
  return {
    weights: weights + mappedWeights,
    mappedWeights,
    kv: { full: kv('full'), streaming: kv('streaming') },
    workspace,
    host,
    peak,
  };
}

function countTensors({
  checkpoint,
  model,
}: LoadPlan): Pick<ModelInfo, 'parameters' | 'leftAside'> {
  let parameters = 0;
  const leftAside: Record<string, number> = {};
  for (const { name, shape } of checkpoint.tensors.values()) {
    const what = model.leftAside(name);
    if (what !== undefined) leftAside[what] = (leftAside[what] ?? 0) + 1;
    else if (!name.endsWith('_scale_inv')) parameters += shape.reduce((n, extent) => n * extent, 1);
  }
  return { parameters, leftAside };
}

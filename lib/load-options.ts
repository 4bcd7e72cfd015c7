import { configCaps } from './checkpoint/config';
import type { ConfigOverrides } from './checkpoint/config-overrides';
import type { AttentionOption } from './checkpoint/streaming-config';
import type { SchedulerLimits } from './engine/scheduler';
import { LozaError, show } from './errors';
import type { DeviceKind } from './native/binding';
import { hintAtNames } from './nearest-name';

/** How far loading is, in bytes of weights that had to be copied; views of mapped files need none. */
export interface LoadProgress {
  loadedBytes: number;
  totalBytes: number;
}

/** How to load a checkpoint. Every option may be left out. */
export interface LoadOptions {
  /** 'auto' takes a GPU when one is usable and says in `model.info.device` why not. Others throw rather than fall back. */
  device?: 'auto' | 'cpu' | 'cuda' | undefined;
  /**
   * 'dummy' makes random weights on the device instead of reading any: for benchmarks. The folder
   * needs config.json only; the name of a preset, such as 'longcat-flash', does too.
   */
  loadFormat?: 'auto' | 'dummy' | undefined;
  /** Decides dummy weights (default 0). */
  seed?: number | undefined;
  /** Other sizes than the config's, with dummy weights only. */
  configOverrides?: ConfigOverrides | undefined;
  /** Which attentions stream: 'auto' as the checkpoint says, 'full' none, or a pattern of your own. */
  attention?: AttentionOption | undefined;
  /**
   * Type of the KV cache, and on a GPU of activations and float32 matrices too. 'auto' is float32 on
   * the CPU, which computes in fp32 either way. On a GPU it is float32 (exact, but slow) for a
   * checkpoint that is stored in float32, and bfloat16 for all others.
   */
  dtype?: 'auto' | 'float32' | 'bfloat16' | undefined;
  /**
   * 'fp8' keeps the latents of the KV cache as e4m3 with one scale a token: 56 % of bfloat16's bytes for
   * released models, and an output slightly off. 'auto' keeps them as `dtype` says.
   */
  kvDtype?: 'auto' | 'fp8' | undefined;
  /** Tokens that all sequences in flight may keep together: the KV budget. Default: the model's positions, within 16,384 and 65,536 (131,072 on a GPU). */
  maxTokens?: number | undefined;
  rope?: RopeOptions | undefined;
  /**
   * New tokens of a step, all sequences together (default 8,192; 512 on the CPU). Sequences that
   * decode come first, and prompts take turns in what is left.
   */
  stepTokens?: number | undefined;
  /**
   * Tokens of a prompt that are read in one step (default 8,192; 512 on the CPU; at most
   * `stepTokens`). Fewer let those that decode wait less, and a long prompt is read slower.
   */
  chunkTokens?: number | undefined;
  /** Sequences in flight; more wait (default 16). */
  maxSequences?: number | undefined;
  /** New tokens of a sequence from which attention expands keys and values. Default: where that is cheaper. */
  expandedMinTokens?: number | undefined;
  /** Record decode steps once and replay them (default: on a GPU). The tokens are the same. */
  decodeGraphs?: boolean | undefined;
  /** Keep the KV blocks of what was read and written for prompts that begin alike (default true). */
  prefixCache?: boolean | undefined;
  /**
   * Tokens whose KV blocks move to the host's memory where others need the room, and come back when
   * a prompt or a session goes on from them (default 0). Pinned on a GPU, and taken as it is needed.
   */
  hostTokens?: number | undefined;
  signal?: AbortSignal | undefined;
  onProgress?: ((progress: LoadProgress) => void) | undefined;
}

export interface RopeOptions {
  /** Extends the model's positions by YaRN with this factor, counted from its original length. */
  yarnFactor?: number | undefined;
  /** Rotary angles in float64 instead of the fp32 of Hugging Face; they part beyond about 100K positions. */
  exactAngles?: boolean | undefined;
}

/** `LoadOptions` with every default filled in that does not depend on the model. */
export interface ResolvedLoadOptions {
  device: 'auto' | 'cpu' | 'cuda';
  loadFormat: 'auto' | 'dummy';
  seed: number;
  configOverrides: ConfigOverrides;
  attention: AttentionOption;
  dtype: 'auto' | 'float32' | 'bfloat16';
  kvDtype: 'auto' | 'fp8';
  maxTokens: number | undefined;
  rope: { yarnFactor: number | undefined; exactAngles: boolean };
  stepTokens: number | undefined;
  chunkTokens: number | undefined;
  maxSequences: number;
  expandedMinTokens: number | undefined;
  decodeGraphs: boolean | undefined;
  prefixCache: boolean;
  hostTokens: number;
  signal: AbortSignal | undefined;
  onProgress: ((progress: LoadProgress) => void) | undefined;
}

/** Fills in defaults and checks types and ranges. Throws ERR_LOZA_INVALID_ARG with the option's name. */
export function resolveLoadOptions(options: LoadOptions = {}): ResolvedLoadOptions {
  checkObject('The load options', options, [
    'device',
    'loadFormat',
    'seed',
    'configOverrides',
    'attention',
    'dtype',
    'kvDtype',
    'maxTokens',
    'rope',
    'stepTokens',
    'chunkTokens',
    'maxSequences',
    'expandedMinTokens',
    'decodeGraphs',
    'prefixCache',
    'hostTokens',
    'signal',
    'onProgress',
  ]);
  const rope = options.rope ?? {};
  checkObject('rope', rope, ['yarnFactor', 'exactAngles']);
  const { signal, onProgress, attention = 'auto' } = options;
  if (signal !== undefined && typeof signal.addEventListener !== 'function') {
    throw invalid('signal', 'an AbortSignal', signal);
  }
  if (onProgress !== undefined && typeof onProgress !== 'function') {
    throw invalid('onProgress', 'a function', onProgress);
  }
  checkFlag('rope.exactAngles', rope.exactAngles);
  checkFlag('decodeGraphs', options.decodeGraphs);
  checkFlag('prefixCache', options.prefixCache);
  return {
    device: oneOf('device', options.device ?? 'auto', ['auto', 'cpu', 'cuda']),
    ...resolveFormat(options),
    attention,
    dtype: oneOf('dtype', options.dtype ?? 'auto', ['auto', 'float32', 'bfloat16']),
    kvDtype: oneOf('kvDtype', options.kvDtype ?? 'auto', ['auto', 'fp8']),
    maxTokens: integer('maxTokens', options.maxTokens, 2 ** 30),
    ...resolveStep(options),
    maxSequences: integer('maxSequences', options.maxSequences, 4096) ?? 16,
    expandedMinTokens: integer('expandedMinTokens', options.expandedMinTokens, 2 ** 30),
    rope: { yarnFactor: rope.yarnFactor, exactAngles: rope.exactAngles ?? false },
    decodeGraphs: options.decodeGraphs,
    prefixCache: options.prefixCache ?? true,
    hostTokens: integer('hostTokens', options.hostTokens, 2 ** 30, 0) ?? 0,
    signal,
    onProgress,
  };
}

function resolveStep(
  options: LoadOptions,
): Pick<ResolvedLoadOptions, 'stepTokens' | 'chunkTokens'> {
  const stepTokens = integer('stepTokens', options.stepTokens, 2 ** 20);
  const chunkTokens = integer('chunkTokens', options.chunkTokens, stepTokens ?? 2 ** 20);
  return { stepTokens, chunkTokens };
}

const defaultStepTokens: Record<DeviceKind, number> = { cpu: 512, cuda: 8192 };

/** What the scheduler keeps to on a device. */
export function stepLimits(options: ResolvedLoadOptions, kind: DeviceKind): SchedulerLimits {
  const { maxSequences, stepTokens = defaultStepTokens[kind] } = options;
  const chunkTokens = options.chunkTokens ?? Math.min(defaultStepTokens[kind], stepTokens);
  return { stepTokens: Math.max(stepTokens, chunkTokens), chunkTokens, maxSequences };
}

function resolveFormat({
  loadFormat = 'auto',
  seed,
  configOverrides = {},
}: LoadOptions): Pick<ResolvedLoadOptions, 'loadFormat' | 'seed' | 'configOverrides'> {
  const format = oneOf('loadFormat', loadFormat, ['auto', 'dummy']);
  checkObject('configOverrides', configOverrides, ['layers', 'experts', 'zeroExperts']);
  const { layers, experts, zeroExperts } = configOverrides;
  integer('configOverrides.layers', layers, configCaps.layers);
  integer('configOverrides.experts', experts, configCaps.experts);
  integer('configOverrides.zeroExperts', zeroExperts, configCaps.experts, 0);
  if (format !== 'dummy' && Object.values(configOverrides).some((value) => value !== undefined)) {
    const problem =
      'configOverrides need loadFormat: "dummy": weights of a file have their own sizes';
    throw new LozaError('ERR_LOZA_INVALID_ARG', problem, { value: configOverrides });
  }
  const largest = Number.MAX_SAFE_INTEGER;
  return { loadFormat: format, seed: integer('seed', seed, largest, 0) ?? 0, configOverrides };
}

/** Throws for anything that is not a plain object of the known keys. */
export function checkObject(name: string, value: unknown, keys: readonly string[]): void {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw invalid(name, 'an object', value);
  }
  const unknown = Object.keys(value).find((key) => !keys.includes(key));
  if (unknown === undefined) return;
  throw new LozaError('ERR_LOZA_INVALID_ARG', `${name}: there is no ${show(unknown)}`, {
    value: unknown,
    hint: hintAtNames(unknown, keys),
  });
}

function checkFlag(name: string, value: unknown): void {
  if (value !== undefined && typeof value !== 'boolean')
    throw invalid(name, 'true or false', value);
}

function integer(
  name: string,
  value: number | undefined,
  max: number,
  min = 1,
): number | undefined {
  if (value === undefined) return undefined;
  if (Number.isInteger(value) && value >= min && value <= max) return value;
  throw invalid(name, `an integer of ${min}..${max}`, value);
}

function oneOf<T extends string>(name: string, value: string, allowed: readonly T[]): T {
  const known = allowed.find((one) => one === value);
  if (known !== undefined) return known;
  throw invalid(name, `one of ${allowed.map(show).join(', ')}`, value);
}

function invalid(name: string, expected: string, value: unknown): LozaError {
  const problem = `${name} must be ${expected}, got ${show(value)}`;
  return new LozaError('ERR_LOZA_INVALID_ARG', problem, { value });
}

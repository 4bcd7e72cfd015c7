import { existsSync } from 'node:fs';
import path from 'node:path';
import bindings from 'bindings';
import { LozaError, type LozaErrorCode } from '../errors';

/** A tensor as it crosses the boundary: a place in the device's table. 0 is "no tensor". */
export type TensorHandle = number;
export type DeviceKind = 'cpu' | 'cuda';
export type TypedArray = Float32Array | Int32Array | Uint16Array | Uint8Array;

export interface NativeDeviceInfo {
  kind: DeviceKind;
  name: string;
  usable: boolean;
  reason: string;
  cores: number;
  memoryBytes: number;
}

export interface NativeMemory {
  weights: number;
  mappedWeights: number;
  kv: number;
  workspace: number;
  /** Of the host, for the device to read and write; not counted in the peak. */
  host: number;
  peak: number;
}

export interface NativeArena {
  allocate(dtype: number, shape: readonly number[]): TensorHandle;
  view: NativeDevice['view'];
  mark(): number;
  release(mark: number): void;
}

export type NativeGraph = object;

/** The operations, in the argument order of their params structs in native/ops. */
export const operations = [
  'AbsorbQuery',
  'Adamw',
  'AttentionBackward',
  'AttentionDecode',
  'AttentionPlan',
  'AttentionPrefill',
  'Blend',
  'Cast',
  'ClipFactor',
  'Clock',
  'Combine',
  'CombineGradient',
  'CrossEntropy',
  'Dot',
  'ExpertPlan',
  'Fill',
  'FillRandom',
  'GatherRows',
  'GatherRowsGradient',
  'GroupedLinear',
  'GroupedLinearInputGradient',
  'GroupedLinearWeightGradient',
  'HeadLinear',
  'LatentStore',
  'Linear',
  'LinearInputGradient',
  'LinearWeightGradient',
  'MixAttention',
  'MixAttentionBackward',
  'RmsNorm',
  'RmsNormGradient',
  'Rope',
  'RopeTable',
  'Route',
  'RouteGradient',
  'Sample',
  'SquaredDifference',
  'SumSlots',
  'Swiglu',
  'SwigluGradient',
] as const;

export type NativeOperation = (typeof operations)[number];

export type NativeStream = {
  write(to: TensorHandle, from: TypedArray): void;
  upload(to: TensorHandle, from: TensorHandle): void;
  read(from: TensorHandle): Promise<ArrayBuffer>;
  synchronize(): Promise<void>;
  beginGraph(): void;
  endGraph(): NativeGraph;
  launch(graph: NativeGraph): void;
} & Record<NativeOperation, (...args: (number | boolean)[]) => void>;

export interface NativeDevice {
  allocate(dtype: number, purpose: number, shape: readonly number[]): TensorHandle;
  mapFile(path: string, bytes: number): TensorHandle;
  view(
    parent: TensorHandle,
    dtype: number,
    byteOffset: number,
    shape: readonly number[],
    strides: readonly number[],
  ): TensorHandle;
  release(tensor: TensorHandle): void;
  arena(): NativeArena;
  stream(activation: number): NativeStream;
  memory(): NativeMemory;
  freeMemory(): number;
  failAllocationAfter(count: number): void;
  close(): void;
}

export interface Addon {
  Device: new (kind: DeviceKind) => NativeDevice;
  probeDevices(): NativeDeviceInfo[];
  /** What this process has got of malloc, and what malloc keeps of the memory that was freed. */
  mallocBytes(): { used: number; unused: number };
  cuda: boolean;
}

const packageRoot = path.join(__dirname, '..', '..');
let loaded: Addon | undefined;

/** The compiled addon, loaded at the first call. Throws ERR_LOZA_ADDON_NOT_FOUND. */
export function addon(): Addon {
  loaded ??= load();
  return loaded;
}

function load(): Addon {
  const override = process.env['LOZA_ADDON_PATH'];
  try {
    // eslint-disable-next-line @typescript-eslint/no-require-imports -- an addon is no module to import
    if (override !== undefined) return require(path.resolve(override)) as Addon;
    return bindings({ bindings: 'loza', module_root: packageRoot }) as Addon;
  } catch (cause) {
    throw notFound(override ?? path.join(packageRoot, 'build', 'Release', 'loza.node'), cause);
  }
}

function notFound(file: string, cause: unknown): LozaError {
  const hint = `Build it with \`npm run build:native\` in ${packageRoot} (this needs CMake 3.24 and a C++20 compiler), or set LOZA_ADDON_PATH to a compiled loza.node`;
  const problem = existsSync(file)
    ? `The compiled addon ${file} cannot be loaded: ${cause instanceof Error ? cause.message : String(cause)}`
    : `The compiled addon is missing: ${file} does not exist`;
  return new LozaError('ERR_LOZA_ADDON_NOT_FOUND', problem, { value: file, hint, cause });
}

/**
 * The LozaError for what native code threw. Native errors carry a code; they are made anew here
 * because an error from C++ belongs to no JavaScript class of ours.
 */
export function fromNative(error: unknown): LozaError {
  if (LozaError.isInstance(error)) return error;
  const { code, message } = error as { code?: unknown; message?: unknown };
  const known = typeof code === 'string' && code.startsWith('ERR_LOZA_');
  return new LozaError(
    known ? (code as LozaErrorCode) : 'ERR_LOZA_INTERNAL',
    typeof message === 'string' ? message : String(error),
    { cause: error },
  );
}

/** Calls native code; what it throws becomes a LozaError. */
export function native<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw fromNative(error);
  }
}

import type { Checkpoint } from '../checkpoint/checkpoint';
import { readExactly, withFile } from '../checkpoint/files';
import { readSafetensorsHeader, type TensorEntry } from '../checkpoint/safetensors';
import { WeightList } from '../checkpoint/weights';
import { LozaError, throwIfAborted } from '../errors';
import type { Device } from '../native/device';
import type { Ops, Weight } from '../native/ops';
import { rowMajor, type DType, type Tensor } from '../native/tensor';
import { decode, encode } from '../selftest/host-tensor';
import { writeSafetensors, type TensorToWrite, type WrittenDtype } from './safetensors-writer';
import type { SessionOptions, SessionWeights } from './session';

/** A weight that is trained, or a stack of them. */
export interface Parameter {
  /** In the checkpoint; the parts of a stack lie one behind the other. */
  names: readonly string[];
  entries: readonly TensorEntry[];
  /** In fp32, whatever is stored and whatever the model computes with. */
  master: Tensor;
  /** The master of each name. */
  parts: readonly Tensor[];
  /** What the model reads: the master itself, or a rounded copy. */
  working: Tensor;
  /** Undefined: it is never changed. */
  training: { gradient: Tensor; m: Tensor; v: Tensor } | undefined;
  /** Whether it decays: matrices do, norms do not. */
  decays: boolean;
}

const dtypes = { F32: 'f32', BF16: 'bf16' } as const;

/** Weights with all that AdamW needs beside them, by their names in the checkpoint. */
export class TrainableWeights extends WeightList implements SessionWeights {
  readonly parameters: Parameter[] = [];
  private readonly byWorking = new Map<Tensor, Parameter>();

  constructor(
    private readonly checkpoint: Checkpoint,
    private readonly device: Device,
    private readonly ops: Ops,
  ) {
    super();
  }

  get source(): this {
    return this;
  }

  matrix(name: string, rows: number, columns: number): Weight {
    return { tensor: this.add([name], [rows, columns], this.device.activation).working };
  }

  /** In the type it is stored in. */
  exactMatrix(name: string, rows: number, columns: number): Weight {
    const stored = dtypes[storedType(this.entry(name))];
    const type = this.device.activation === 'f32' ? 'f32' : stored;
    return { tensor: this.add([name], [rows, columns], type).working };
  }

  stack(names: readonly string[], rows: number, columns: number): Weight {
    const shape = [names.length, rows, columns];
    return { tensor: this.add(names, shape, this.device.activation).working };
  }

  vector(name: string, size: number): Tensor {
    return this.add([name], [size], 'f32').working;
  }

  /** The router's correction bias, which has no gradient. */
  floatVector(name: string, size: number): Tensor {
    return this.add([name], [size], 'f32', false).working;
  }

  gradientOf(weight: Tensor): Tensor | undefined {
    return this.byWorking.get(weight)?.training?.gradient;
  }

  private add(
    names: readonly string[],
    shape: readonly number[],
    type: DType,
    isTrained = true,
  ): Parameter {
    const float = () => this.device.allocate('f32', shape, 'weights');
    const master = float();
    const working = type === 'f32' ? master : this.device.allocate(type, shape, 'weights');
    const entries = names.map((name) => this.entry(name));
    const training = isTrained ? { gradient: float(), m: float(), v: float() } : undefined;
    const decays = shape.length > 1;
    const parts = partsOf(master, names.length);
    const parameter = { names, entries, master, parts, working, training, decays };
    this.parameters.push(parameter);
    this.byWorking.set(working, parameter);
    return parameter;
  }

  private entry(name: string): TensorEntry {
    const entry = this.checkpoint.tensors.get(name);
    if (entry !== undefined) return entry;
    throw new LozaError('ERR_LOZA_INTERNAL', `${name} was not checked before loading`);
  }

  /** From the checkpoint's files, with moments of zero. */
  async load({ signal, onLoad }: SessionOptions): Promise<void> {
    const { ops } = this;
    const entries = this.parameters.flatMap((one) => one.entries);
    const totalBytes = entries.reduce((sum, { begin, end }) => sum + end - begin, 0);
    let loadedBytes = 0;
    for (const { entries, parts, master, working, training } of this.parameters) {
      for (const [i, entry] of entries.entries()) {
        throwIfAborted(signal);
        ops.stream.write(parts[i] as Tensor, await readTensor(entry));
        loadedBytes += entry.end - entry.begin;
      }
      if (working !== master) ops.cast(working, master);
      if (training) for (const tensor of Object.values(training)) ops.fill(tensor, 0);
      await ops.stream.synchronize();
      onLoad?.({ loadedBytes, totalBytes });
    }
  }

  clearGradients(): void {
    for (const { training } of this.parameters) if (training) this.ops.fill(training.gradient, 0);
  }

  /** The weights in the checkpoint's own names and dtypes. */
  async writeCheckpoint(path: string): Promise<void> {
    const tensors = this.parameters.flatMap(({ entries, parts }) =>
      entries.map((entry, i): TensorToWrite => {
        const dtype = storedType(entry);
        const read = async () => bytesOf(dtype, await this.read(parts[i] as Tensor));
        return { name: entry.name, dtype, shape: entry.shape, read };
      }),
    );
    await writeSafetensors(path, tensors, { format: 'pt' });
  }

  /** Everything that training goes on from, in fp32. */
  async writeState(path: string, metadata: Readonly<Record<string, string>>): Promise<void> {
    const tensors = this.stateTensors().map(({ name, tensor }): TensorToWrite => {
      const read = async () => bytesOf('F32', await this.read(tensor));
      return { name, dtype: 'F32', shape: tensor.shape, read };
    });
    await writeSafetensors(path, tensors, metadata);
  }

  async readState(path: string): Promise<void> {
    const { tensors } = await readSafetensorsHeader(path);
    for (const { name, tensor } of this.stateTensors()) {
      const entry = tensors.get(name);
      if (entry === undefined || entry.shape.join() !== tensor.shape.join()) {
        const problem = `${path}: ${name} is missing or misshapen`;
        throw new LozaError('ERR_LOZA_CHECKPOINT', problem, { value: name });
      }
      this.ops.stream.write(tensor, await readTensor(entry));
    }
    for (const { working, master } of this.parameters) {
      if (working !== master) this.ops.cast(working, master);
    }
    await this.ops.stream.synchronize();
  }

  private stateTensors(): { name: string; tensor: Tensor }[] {
    return this.parameters.flatMap(({ names, master, training }) => {
      const name = names[0] ?? '';
      const { m, v } = training ?? {};
      const moments = m && v ? [[`${name}:m`, m] as const, [`${name}:v`, v] as const] : [];
      return [[name, master] as const, ...moments].map(([name, tensor]) => ({ name, tensor }));
    });
  }

  private read(tensor: Tensor): Promise<Float32Array> {
    return this.ops.stream.readFloats(tensor);
  }
}

/** Bytes of a checkpoint in training, before any activation. */
export function trainingBytes(
  { tensors }: Pick<Checkpoint, 'tensors'>,
  activation: DType,
): { weights: number; optimizer: number } {
  let elements = 0;
  for (const { shape } of tensors.values()) elements += shape.reduce((n, extent) => n * extent, 1);
  const copy = activation === 'f32' ? 0 : 2;
  return { weights: elements * (4 + copy), optimizer: elements * 12 };
}

/** @throws LozaError ERR_LOZA_UNSUPPORTED for a checkpoint with quantised weights. */
export function checkTrainable({ tensors }: Pick<Checkpoint, 'tensors'>): void {
  for (const entry of tensors.values()) if (entry.dtype.startsWith('F8')) storedType(entry);
}

function storedType({ name, dtype }: TensorEntry): WrittenDtype {
  if (dtype === 'F32' || dtype === 'BF16') return dtype;
  const problem = `${name} has dtype ${dtype}; F32 and BF16 can be trained`;
  const hint = 'Convert the checkpoint to bfloat16; calibrate takes it as it is';
  throw new LozaError('ERR_LOZA_UNSUPPORTED', problem, { value: dtype, hint });
}

async function readTensor(entry: TensorEntry): Promise<Float32Array> {
  const { file, begin, end } = entry;
  const bytes = await withFile(file, (handle) => readExactly(handle, end - begin, begin, file));
  return decode(dtypes[storedType(entry)], bytes.buffer as ArrayBuffer) as Float32Array;
}

function bytesOf(dtype: WrittenDtype, values: Float32Array): Uint8Array {
  const encoded = encode(dtypes[dtype], values);
  return new Uint8Array(encoded.buffer, encoded.byteOffset, encoded.byteLength);
}

/** The matrices of a stack, or the one tensor itself. */
function partsOf(tensor: Tensor, count: number): Tensor[] {
  if (tensor.shape.length < 3) return [tensor];
  const shape = tensor.shape.slice(1);
  const size = tensor.elements / count;
  return Array.from({ length: count }, (_, i) =>
    tensor.view(tensor.dtype, shape, rowMajor(shape), i * size),
  );
}

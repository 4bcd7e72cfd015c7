import { LozaError } from '../errors';
import type { Device } from '../native/device';
import type { Joined, Ops, Weight } from '../native/ops';
import { bytesPerElement, rowMajor, Tensor, type DType } from '../native/tensor';
import type { Checkpoint } from './checkpoint';
import type { TensorEntry } from './safetensors';

/** Dtypes of safetensors that weights may have. */
const weightDtypes: Readonly<Record<string, DType>> = {
  F32: 'f32',
  BF16: 'bf16',
  F8_E4M3: 'f8e4m3',
};
export const scaleSuffix = '_scale_inv';
export const scaleBlock = 128;
/** Bytes that are copied at a time where a device has memory of its own. */
const pieceBytes = 32 * 2 ** 20;

/** A model takes its weights by name and shape from here; what it takes is what it is checked for. */
export interface WeightSource {
  /** A matrix that the device multiplies by: f32 becomes its type of activations. */
  matrix(name: string, rows: number, columns: number): Weight;
  /** A matrix in the dtype it is stored in; f8e4m3 comes with its block scales. */
  exactMatrix(name: string, rows: number, columns: number): Weight;
  /** One matrix a name, stacked [names, rows, columns]; all in one dtype, treated like `matrix`. */
  stack(names: readonly string[], rows: number, columns: number): Weight;
  /** Matrices that share their input, as few of them as can be. Treated like `matrix`. */
  joined(parts: readonly MatrixName[], columns: number): Joined;
  /** Stacks, by expert, of matrices that share their input; as few of them as can be. */
  joinedStack(names: readonly (readonly string[])[], rows: number, columns: number): Joined;
  /** Like `matrix`, but plain f32 or bf16: f8e4m3 is dequantised to the type of activations. */
  plainMatrix(name: string, rows: number, columns: number): Tensor;
  /** A vector, f32 or bf16. */
  vector(name: string, size: number): Tensor;
  /** A vector as f32, whatever it is stored in. */
  floatVector(name: string, size: number): Tensor;
}

/** A matrix by its name in the checkpoint. */
export interface MatrixName {
  name: string;
  rows: number;
}

/** What a tensor of a checkpoint is to the model. */
interface Found {
  entry: TensorEntry;
  dtype: DType;
  scale?: TensorEntry;
}

/**
 * Looks tensors up and remembers every complaint, so that one error can list all that is missing,
 * misshapen or left over.
 */
class Lookup {
  readonly complaints: string[] = [];
  private readonly taken = new Set<string>();

  constructor(private readonly tensors: ReadonlyMap<string, TensorEntry>) {}

  find(name: string, shape: readonly number[]): Found | undefined {
    const entry = this.take(name, shape);
    if (entry === undefined) return undefined;
    const dtype = weightDtypes[entry.dtype];
    if (dtype === undefined) {
      this.complaints.push(`${name} has dtype ${entry.dtype}, expected F32, BF16 or F8_E4M3`);
      return undefined;
    }
    if (dtype !== 'f8e4m3') return { entry, dtype };
    const scale = this.takeScale(name, shape);
    return scale && { entry, dtype, scale };
  }

  /** Throws ERR_LOZA_CHECKPOINT if anything was wrong or a tensor was left that `known` does not expect. */
  finish(dir: string, known: (name: string) => boolean): void {
    const unused = [...this.tensors.keys()].filter((name) => !this.taken.has(name) && !known(name));
    const complaints = [...this.complaints, ...unused.map((name) => `${name} is not used`)];
    if (complaints.length === 0) return;
    const shown = complaints.slice(0, 20).join('; ');
    const more = complaints.length > 20 ? `; and ${complaints.length - 20} more` : '';
    throw new LozaError(
      'ERR_LOZA_CHECKPOINT',
      `${dir}: the weights do not fit config.json: ${shown}${more}`,
      { value: complaints },
    );
  }

  private take(name: string, shape: readonly number[]): TensorEntry | undefined {
    const entry = this.tensors.get(name);
    this.taken.add(name);
    if (entry === undefined) {
      this.complaints.push(`${name} is missing`);
      return undefined;
    }
    if (entry.shape.length === shape.length && entry.shape.every((n, i) => n === shape[i]))
      return entry;
    this.complaints.push(
      `${name} has shape [${entry.shape.join(', ')}], expected [${shape.join(', ')}]`,
    );
    return undefined;
  }

  private takeScale(name: string, shape: readonly number[]): TensorEntry | undefined {
    const blocks = shape.map((extent) => Math.ceil(extent / scaleBlock));
    const scale = this.take(name + scaleSuffix, blocks);
    if (scale === undefined || scale.dtype === 'F32') return scale;
    this.complaints.push(`${scale.name} has dtype ${scale.dtype}, expected F32`);
    return undefined;
  }
}

/** A source that only notes what a model asks for: nothing is joined, as nothing lies anywhere. */
export abstract class WeightList implements WeightSource {
  abstract matrix(name: string, rows: number, columns: number): Weight;
  abstract exactMatrix(name: string, rows: number, columns: number): Weight;
  abstract stack(names: readonly string[], rows: number, columns: number): Weight;
  abstract vector(name: string, size: number): Tensor;
  abstract floatVector(name: string, size: number): Tensor;

  joined(parts: readonly MatrixName[], columns: number): Joined {
    return parts.map(({ name, rows }) => this.matrix(name, rows, columns));
  }

  joinedStack(names: readonly (readonly string[])[], rows: number, columns: number): Joined {
    return names.map((stack) => this.stack(stack, rows, columns));
  }

  plainMatrix(name: string, rows: number, columns: number): Tensor {
    return this.matrix(name, rows, columns).tensor;
  }
}

/** Checks a checkpoint against a model without touching a device. */
export class WeightChecker extends WeightList {
  private readonly lookup: Lookup;

  constructor(private readonly checkpoint: Checkpoint) {
    super();
    this.lookup = new Lookup(checkpoint.tensors);
  }

  matrix(name: string, rows: number, columns: number): Weight {
    this.lookup.find(name, [rows, columns]);
    return { tensor: placeholder('f32', [rows, columns]) };
  }

  exactMatrix(name: string, rows: number, columns: number): Weight {
    return this.matrix(name, rows, columns);
  }

  stack(names: readonly string[], rows: number, columns: number): Weight {
    const found = names.map((name) => this.lookup.find(name, [rows, columns]));
    const dtypes = new Set(found.flatMap((one) => one?.dtype ?? []));
    if (dtypes.size > 1)
      this.lookup.complaints.push(
        `${names[0]} and its siblings have several dtypes: ${[...dtypes].join(', ')}`,
      );
    return { tensor: placeholder('f32', [names.length, rows, columns]) };
  }

  vector(name: string, size: number): Tensor {
    const found = this.lookup.find(name, [size]);
    if (found?.dtype === 'f8e4m3')
      this.lookup.complaints.push(`${name} has dtype F8_E4M3, expected F32 or BF16`);
    return placeholder('f32', [size]);
  }

  floatVector(name: string, size: number): Tensor {
    return this.vector(name, size);
  }

  /** Throws ERR_LOZA_CHECKPOINT that lists every tensor missing, misshapen or unused. */
  finish(known: (name: string) => boolean): void {
    this.lookup.finish(this.checkpoint.dir, known);
  }
}

/** A tensor that is nowhere: views of it work, using it does not. */
export function placeholder(dtype: DType, shape: readonly number[]): Tensor {
  return new Tensor(0, dtype, shape, rowMajor(shape), { view: () => 0 });
}

/** One copy that makes a weight resident; `bytes` for progress. */
export interface Copy {
  bytes: number;
  run: () => void;
}

/**
 * Loads a checked checkpoint: weights are views of the mapped files wherever they can be; stacks,
 * dequantised and misaligned tensors are copied, when `copies` are run. A device with memory of its
 * own gets a copy of everything.
 */
export class WeightLoader implements WeightSource {
  readonly copies: Copy[] = [];
  private readonly lookup: Lookup;
  private readonly files = new Map<string, Tensor>();
  private readonly sources: Tensor[] = []; // views of the files that only copies use

  constructor(
    checkpoint: Checkpoint,
    private readonly device: Device,
    private readonly ops: Ops,
    /** `dequantise`: matrices in f8e4m3 become the type of activations. */
    private readonly options: { dequantise?: boolean } = {},
  ) {
    this.lookup = new Lookup(checkpoint.tensors);
    for (const { path, bytes } of checkpoint.files)
      this.files.set(path, device.mapFile(path, bytes));
  }

  /** Gives up the files that nothing reads any more; to be called when the copies were run. */
  finish(): void {
    if (this.device.readsMappedFiles) return;
    for (const tensor of [...this.sources, ...this.files.values()]) this.device.release(tensor);
  }

  matrix(name: string, rows: number, columns: number): Weight {
    const found = this.require(name, [rows, columns]);
    if (!this.converts(found.dtype)) return this.exact(found);
    return { tensor: this.converted([found], [rows, columns]) };
  }

  exactMatrix(name: string, rows: number, columns: number): Weight {
    const found = this.require(name, [rows, columns]);
    if (found.dtype !== 'f8e4m3' || !this.options.dequantise) return this.exact(found);
    return { tensor: this.converted([found], [rows, columns]) };
  }

  stack(names: readonly string[], rows: number, columns: number): Weight {
    const found = names.map((name) => this.require(name, [rows, columns]));
    return this.stacked(found, names.length);
  }

  /** One matrix, unless that would copy what a mapped file holds already, or tear scales apart. */
  joined(parts: readonly MatrixName[], columns: number): Joined {
    const found = parts.map(({ name, rows }) => this.require(name, [rows, columns]));
    if (this.device.readsMappedFiles || !joinable(found))
      return parts.map(({ name, rows }) => this.matrix(name, rows, columns));
    return [this.stacked(found)];
  }

  joinedStack(names: readonly (readonly string[])[], rows: number, columns: number): Joined {
    const stacks = names.map((stack) => stack.map((name) => this.require(name, [rows, columns])));
    const experts = stacks[0]?.length ?? 0;
    if (!joinable(stacks.map((stack) => stack[0] as Found)))
      return names.map((stack) => this.stack(stack, rows, columns));
    const byExpert = Array.from({ length: experts }, (_, e) =>
      stacks.map((stack) => stack[e] as Found),
    );
    return [this.stacked(byExpert.flat(), experts)];
  }

  plainMatrix(name: string, rows: number, columns: number): Tensor {
    const found = this.require(name, [rows, columns]);
    if (found.dtype === 'f8e4m3' || this.narrows(found.dtype))
      return this.converted([found], [rows, columns]);
    return this.resident(found.entry, found.dtype);
  }

  vector(name: string, size: number): Tensor {
    const { entry, dtype } = this.require(name, [size]);
    return this.resident(entry, dtype);
  }

  floatVector(name: string, size: number): Tensor {
    const stored = this.vector(name, size);
    if (stored.dtype === 'f32') return stored;
    const floats = this.device.allocate('f32', [size], 'weights');
    this.copies.push({ bytes: stored.bytes, run: () => this.ops.cast(floats, stored) });
    return floats;
  }

  private require(name: string, shape: readonly number[]): Found {
    const found = this.lookup.find(name, shape);
    if (found !== undefined) return found;
    throw new LozaError('ERR_LOZA_INTERNAL', `${name} was not checked before loading`);
  }

  /** Whether a matrix gets smaller by taking the type of activations, which tensor cores want. */
  private narrows(dtype: DType): boolean {
    return dtype === 'f32' && this.device.activation !== 'f32';
  }

  private converts(dtype: DType): boolean {
    return this.narrows(dtype) || (dtype === 'f8e4m3' && this.options.dequantise === true);
  }

  private exact({ entry, dtype, scale }: Found): Weight {
    const tensor = this.resident(entry, dtype);
    return scale ? { tensor, scale: this.resident(scale, 'f32') } : { tensor };
  }

  /** Matrices one below the other; with `experts`, an equal share of their rows for each. */
  private stacked(found: readonly Found[], experts?: number): Weight {
    const entries = found.map((one) => one.entry);
    const dtype = found[0]?.dtype ?? 'f32';
    if (this.converts(dtype))
      return { tensor: this.converted(found, stackShape(entries, experts)) };
    const tensor = this.stackEntries(entries, dtype, experts);
    const scales = found.flatMap((one) => one.scale ?? []);
    return scales.length > 0
      ? { tensor, scale: this.stackEntries(scales, 'f32', experts) }
      : { tensor };
  }

  private stackEntries(entries: readonly TensorEntry[], dtype: DType, experts?: number): Tensor {
    const stack = this.device.allocate(dtype, stackShape(entries, experts), 'weights');
    let offset = 0;
    for (const entry of entries) {
      this.copyBytes(stack, offset, entry);
      offset += entry.end - entry.begin;
    }
    return stack;
  }

  /** Matrices in the type of activations, one after the other; f8e4m3 ones are dequantised. */
  private converted(found: readonly Found[], shape: readonly number[]): Tensor {
    const dtype = this.device.activation;
    const whole = this.device.allocate(dtype, shape, 'weights');
    let offset = 0;
    for (const one of found) {
      const { shape: matrix } = one.entry;
      this.convert(whole.view(dtype, matrix, rowMajor(matrix), offset), one);
      offset += matrix.reduce((product, extent) => product * extent, 1);
    }
    return whole;
  }

  private convert(to: Tensor, found: Found): void {
    if (!this.device.readsMappedFiles) {
      this.convertPieces(to, found);
      return;
    }
    const { tensor, scale } = this.exact(found);
    this.copies.push({ bytes: tensor.bytes, run: () => this.ops.cast(to, tensor, scale) });
  }

  /** Through the arena, some rows at a time: the device never holds the stored matrix. */
  private convertPieces(to: Tensor, { entry, dtype, scale }: Found): void {
    const [rows = 0, columns = 0] = entry.shape;
    const rowBytes = columns * bytesPerElement[dtype];
    const step = Math.max(Math.floor(pieceBytes / (rowBytes * scaleBlock)), 1) * scaleBlock;
    for (let from = 0; from < rows; from += step) {
      const count = Math.min(step, rows - from);
      const target = to.slice(0, from, from + count);
      const stored = this.staging(entry, dtype, from, count);
      const scales =
        scale && this.staging(scale, 'f32', from / scaleBlock, Math.ceil(count / scaleBlock));
      const run = () =>
        this.ops.arena.scope(() => this.ops.cast(target, stored(), scales && scales()));
      this.copies.push({ bytes: count * rowBytes, run });
    }
  }

  /** Brings some rows of a stored matrix into the arena, when called. */
  private staging(entry: TensorEntry, dtype: DType, from: number, count: number): () => Tensor {
    const [, columns = 0] = entry.shape;
    const rowBytes = columns * bytesPerElement[dtype];
    const source = this.source(entry, from * rowBytes, count * rowBytes);
    return () => {
      const staged = this.ops.arena.allocate(dtype, [count, columns]);
      this.ops.stream.upload(staged.view('f8e4m3', source.shape, [1], 0), source);
      return staged;
    };
  }

  /** A view of the mapped file; a copy where that cannot be read. */
  private resident(entry: TensorEntry, dtype: DType): Tensor {
    const size = bytesPerElement[dtype];
    if (this.device.readsMappedFiles && entry.begin % size === 0)
      return this.file(entry).view(dtype, entry.shape, rowMajor(entry.shape), entry.begin / size);
    const copy = this.device.allocate(dtype, entry.shape, 'weights');
    this.copyBytes(copy, 0, entry);
    return copy;
  }

  private copyBytes(to: Tensor, offset: number, entry: TensorEntry): void {
    const all = entry.end - entry.begin;
    const step = this.device.readsMappedFiles ? Math.max(all, 1) : pieceBytes;
    for (let from = 0; from < all; from += step) {
      const bytes = Math.min(step, all - from);
      const target = to.view('f8e4m3', [bytes], [1], offset + from);
      const source = this.source(entry, from, bytes);
      this.copies.push({ bytes, run: () => this.ops.stream.upload(target, source) });
    }
  }

  /** Bytes of a stored tensor in its file. */
  private source(entry: TensorEntry, offset: number, bytes: number): Tensor {
    const source = this.file(entry).view('f8e4m3', [bytes], [1], entry.begin + offset);
    this.sources.push(source);
    return source;
  }

  private file(entry: TensorEntry): Tensor {
    const file = this.files.get(entry.file);
    if (file !== undefined) return file;
    throw new LozaError('ERR_LOZA_INTERNAL', `${entry.file} is not mapped`);
  }
}

/** Whether matrices may lie one below the other: one dtype, and no block of scales spans two. */
function joinable(found: readonly Found[]): boolean {
  return found.every(({ entry, dtype, scale }, i) => {
    const last = i === found.length - 1;
    return (
      dtype === found[0]?.dtype && (last || !scale || (entry.shape[0] ?? 0) % scaleBlock === 0)
    );
  });
}

/** [all rows, columns], or [experts, rows of one, columns]. */
function stackShape(entries: readonly TensorEntry[], experts?: number): number[] {
  const rows = entries.reduce((sum, { shape }) => sum + (shape[0] ?? 0), 0);
  const columns = entries[0]?.shape[1] ?? 0;
  return experts === undefined ? [rows, columns] : [experts, rows / experts, columns];
}

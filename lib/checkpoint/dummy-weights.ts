import type { Device } from '../native/device';
import type { Joined, Ops, Weight } from '../native/ops';
import { bytesPerElement, type DType, type Tensor } from '../native/tensor';
import type { Config } from './config';
import type { TensorEntry } from './safetensors';
import {
  placeholder,
  scaleBlock,
  scaleSuffix,
  WeightList,
  type Copy,
  type MatrixName,
  type WeightSource,
} from './weights';

/** Which dtypes a model's weights would have, were they published. */
interface DummyDtypes {
  /** Matrices inside layers are f8e4m3 with block scales. */
  quantised: boolean;
  router: 'f32' | 'bf16';
}

const spelled = { f32: 'F32', bf16: 'BF16', f8e4m3: 'F8_E4M3' } as const;
/** Standard deviation of f8e4m3 values before their scale: the largest is 111 of 448. */
const f8Deviation = 64;

function readDtypes(config: Config): DummyDtypes {
  const router = config.string(['router_dtype', 'rounter_params_dtype'], { default: 'bfloat16' });
  return {
    quantised: config.object('quantization_config') !== undefined,
    router: router === 'float32' ? 'f32' : 'bf16',
  };
}

const isQuantised = (name: string, { quantised }: DummyDtypes): boolean =>
  quantised && name.includes('.layers.');

const scaleShape = (shape: readonly number[]): number[] =>
  shape.map((extent, i) => (i < shape.length - 2 ? extent : Math.ceil(extent / scaleBlock)));

/** Writes down every tensor that a model asks for: what a checkpoint of it would hold. */
export class DummyList extends WeightList {
  readonly tensors = new Map<string, TensorEntry>();
  private readonly dtypes: DummyDtypes;

  constructor(config: Config) {
    super();
    this.dtypes = readDtypes(config);
  }

  matrix(name: string, rows: number, columns: number): Weight {
    const shape = [rows, columns];
    if (isQuantised(name, this.dtypes)) {
      this.add(name + scaleSuffix, 'f32', scaleShape(shape));
      return { tensor: this.add(name, 'f8e4m3', shape) };
    }
    return { tensor: this.add(name, 'bf16', shape) };
  }

  exactMatrix(name: string, rows: number, columns: number): Weight {
    return { tensor: this.add(name, this.dtypes.router, [rows, columns]) };
  }

  stack(names: readonly string[], rows: number, columns: number): Weight {
    for (const name of names) this.matrix(name, rows, columns);
    return { tensor: placeholder('f32', [names.length, rows, columns]) };
  }

  vector(name: string, size: number): Tensor {
    return this.add(name, 'bf16', [size]);
  }

  floatVector(name: string, size: number): Tensor {
    return this.add(name, 'f32', [size]);
  }

  private add(name: string, dtype: keyof typeof spelled, shape: readonly number[]): Tensor {
    const tensor = placeholder(dtype, shape);
    const entry = { name, dtype: spelled[dtype], shape, file: '', begin: 0, end: tensor.bytes };
    this.tensors.set(name, entry);
    return tensor;
  }
}

/**
 * Weights without a checkpoint, made on the device: random matrices of standard deviation
 * 1 / sqrt(columns), so that activations stay near 1 and routing spreads; norms of 1, biases of 0.
 * Each tensor is a function of the seed and its name. They exist when `copies` were run.
 */
export class DummyLoader implements WeightSource {
  readonly copies: Copy[] = [];
  private readonly dtypes: DummyDtypes;

  constructor(
    config: Config,
    private readonly device: Pick<Device, 'allocate' | 'release'>,
    private readonly ops: Ops,
    private readonly seed: number,
  ) {
    this.dtypes = readDtypes(config);
  }

  finish(): void {}

  matrix(name: string, rows: number, columns: number): Weight {
    return this.make([{ name, rows }], [rows, columns]);
  }

  exactMatrix(name: string, rows: number, columns: number): Weight {
    return { tensor: this.random([{ name, rows }], this.dtypes.router, [rows, columns]) };
  }

  stack(names: readonly string[], rows: number, columns: number): Weight {
    const parts = names.map((name) => ({ name, rows }));
    return this.make(parts, [names.length, rows, columns]);
  }

  joined(parts: readonly MatrixName[], columns: number): Joined {
    if (!this.joinable(parts)) {
      return parts.map(({ name, rows }) => this.matrix(name, rows, columns));
    }
    return [this.make(parts, [parts.reduce((sum, { rows }) => sum + rows, 0), columns])];
  }

  joinedStack(names: readonly (readonly string[])[], rows: number, columns: number): Joined {
    const experts = names[0]?.length ?? 0;
    const byExpert = Array.from({ length: experts }, (_, e) =>
      names.map((stack) => ({ name: stack[e] ?? '', rows })),
    );
    if (!byExpert.every((parts) => this.joinable(parts))) {
      return names.map((stack) => this.stack(stack, rows, columns));
    }
    return [this.make(byExpert.flat(), [experts, names.length * rows, columns])];
  }

  plainMatrix(name: string, rows: number, columns: number): Tensor {
    return this.random([{ name, rows }], 'bf16', [rows, columns]);
  }

  vector(_name: string, size: number): Tensor {
    return this.constant('bf16', [size], 1);
  }

  floatVector(_name: string, size: number): Tensor {
    return this.constant('f32', [size], 0);
  }

  /** Whether no block of scales would span two of the matrices. */
  private joinable(parts: readonly MatrixName[]): boolean {
    return parts
      .slice(0, -1)
      .every(({ name, rows }) => !isQuantised(name, this.dtypes) || rows % scaleBlock === 0);
  }

  private make(parts: readonly MatrixName[], shape: readonly number[]): Weight {
    if (!isQuantised(parts[0]?.name ?? '', this.dtypes)) {
      return { tensor: this.random(parts, 'bf16', shape) };
    }
    const scale = 1 / (f8Deviation * Math.sqrt(shape.at(-1) ?? 1));
    return {
      tensor: this.random(parts, 'f8e4m3', shape),
      scale: this.constant('f32', scaleShape(shape), scale),
    };
  }

  /** Matrices one below the other, each decided by its own name. */
  private random(parts: readonly MatrixName[], dtype: DType, shape: readonly number[]): Tensor {
    const whole = this.device.allocate(dtype, shape, 'weights');
    const columns = shape.at(-1) ?? 1;
    const deviation = dtype === 'f8e4m3' ? f8Deviation : 1 / Math.sqrt(columns);
    let offset = 0;
    for (const { name, rows } of parts) {
      const from = offset;
      const run = () => {
        const part = whole.view(dtype, [rows, columns], [columns, 1], from);
        this.ops.fillRandom(part, seedOf(this.seed, name), deviation);
        this.device.release(part);
      };
      this.copies.push({ bytes: rows * columns * bytesPerElement[dtype], run });
      offset += rows * columns;
    }
    return whole;
  }

  private constant(dtype: DType, shape: readonly number[], value: number): Tensor {
    const tensor = this.device.allocate(dtype, shape, 'weights');
    this.copies.push({ bytes: tensor.bytes, run: () => this.ops.fill(tensor, value) });
    return tensor;
  }
}

/** 64 bits that seed and name decide: FNV-1a from two starts. */
function seedOf(seed: number, name: string): [number, number] {
  const hash = (start: number): number => {
    let value = start;
    for (const character of `${seed} ${name}`) {
      value = Math.imul(value ^ (character.codePointAt(0) ?? 0), 0x01000193);
    }
    return value | 0;
  };
  return [hash(0x811c9dc5), hash(0x9e3779b9)];
}

import { readFileSync } from 'node:fs';
import path from 'node:path';
import { parseFile, tensorFile, type TensorPart } from './safetensors-file';
import { tempFolder } from './temp-folder';

type Plain = Record<string, unknown>;

/** A checkpoint taken apart, to be changed and written anew. */
export interface Twin {
  config: Plain;
  tensors: TensorPart[];
}

export function readTwin(dir: string): Twin {
  const bytes = readFileSync(path.join(dir, 'model.safetensors'));
  const { tensors } = parseFile(bytes);
  return {
    config: JSON.parse(readFileSync(path.join(dir, 'config.json'), 'utf8')) as Plain,
    tensors: [...tensors.values()].map(({ name, dtype, shape, begin, end }) => ({
      name,
      dtype,
      shape,
      data: bytes.subarray(begin, end),
    })),
  };
}

/** A folder that holds the twin in one file. */
export function writeTwin({ config, tensors }: Twin, more: Record<string, Plain> = {}): string {
  return tempFolder({
    'config.json': config,
    'model.safetensors': tensorFile(tensors),
    ...more,
  });
}

/** A folder that holds the twin in shards, tensors dealt round. */
export function writeShards({ config, tensors }: Twin, count: number): string {
  const name = (shard: number) => `model-${shard + 1}-of-${count}.safetensors`;
  const files: Record<string, Plain | Uint8Array> = { 'config.json': config };
  const weightMap: Record<string, string> = {};
  for (let shard = 0; shard < count; shard++) {
    const part = tensors.filter((_, i) => i % count === shard);
    files[name(shard)] = tensorFile(part);
    for (const tensor of part) weightMap[tensor.name] = name(shard);
  }
  files['model.safetensors.index.json'] = { metadata: {}, weight_map: weightMap };
  return tempFolder(files);
}

/** The named tensors changed by `change`; undefined removes one. */
export function changeTensors(
  twin: Twin,
  names: RegExp,
  change: (tensor: TensorPart) => TensorPart | TensorPart[] | undefined,
): Twin {
  const tensors = twin.tensors.flatMap((tensor) =>
    names.test(tensor.name) ? (change(tensor) ?? []) : tensor,
  );
  return { ...twin, tensors };
}

export function floatsOf({ data }: TensorPart): Float32Array {
  return new Float32Array(new Uint8Array(data ?? []).buffer);
}

export function bytesOf(values: Float32Array | Uint16Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}

/** Rounds to bf16 by cutting: any bf16 value will do, as long as both twins hold the same one. */
export function cutToBf16(tensor: TensorPart): { bf16: TensorPart; f32: TensorPart } {
  const words = new Uint32Array(new Uint8Array(tensor.data ?? []).buffer);
  const upper = Uint16Array.from(words, (word) => word >>> 16);
  const floats = new Float32Array(Uint32Array.from(upper, (half) => half * 2 ** 16).buffer);
  return {
    bf16: { ...tensor, dtype: 'BF16', data: bytesOf(upper) },
    f32: { ...tensor, dtype: 'F32', data: bytesOf(floats) },
  };
}

/** Quantises a matrix to f8e4m3 with 128 x 128 block scales; `f32` is what the pair stands for. */
export function quantize(tensor: TensorPart): {
  f8: TensorPart;
  scale: TensorPart;
  f32: TensorPart;
} {
  const [rows = 0, columns = 0] = tensor.shape;
  const values = floatsOf(tensor);
  const blocks = [Math.ceil(rows / 128), Math.ceil(columns / 128)] as const;
  const scales = new Float32Array(blocks[0] * blocks[1]).fill(2 ** -12);
  values.forEach((value, i) => {
    const block = blockOf(i, columns, blocks[1]);
    scales[block] = Math.max(scales[block] ?? 0, Math.fround(Math.abs(value) / 448));
  });
  const codes = new Uint8Array(values.length);
  const back = new Float32Array(values.length);
  values.forEach((value, i) => {
    const scale = scales[blockOf(i, columns, blocks[1])] ?? 1;
    codes[i] = encodeE4m3(value / scale);
    back[i] = decodeE4m3(codes[i] ?? 0) * scale;
  });
  return {
    f8: { ...tensor, dtype: 'F8_E4M3', data: codes },
    scale: {
      name: `${tensor.name}_scale_inv`,
      dtype: 'F32',
      shape: blocks,
      data: bytesOf(scales),
    },
    f32: { ...tensor, dtype: 'F32', data: bytesOf(back) },
  };
}

function blockOf(index: number, columns: number, blocksAcross: number): number {
  const row = Math.floor(index / columns);
  return Math.floor(row / 128) * blocksAcross + Math.floor((index % columns) / 128);
}

/** OCP e4m3: sign, 4 exponent bits (bias 7), 3 mantissa bits; 0x7f is NaN. */
function decodeE4m3(code: number): number {
  const exponent = (code >> 3) & 15;
  const mantissa = code & 7;
  const size = exponent === 0 ? mantissa * 2 ** -9 : (8 + mantissa) * 2 ** (exponent - 10);
  return code & 128 ? -size : size;
}

const magnitudes = Array.from({ length: 127 }, (_, code) => decodeE4m3(code));

/** The nearest code, by bisection: magnitudes grow with their codes. */
function encodeE4m3(value: number): number {
  const target = Math.abs(value);
  let low = 0;
  let high = magnitudes.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if ((magnitudes[middle] ?? 0) <= target) low = middle;
    else high = middle;
  }
  const below = target - (magnitudes[low] ?? 0);
  const above = (magnitudes[high] ?? 0) - target;
  return (above < below ? high : low) | (value < 0 ? 128 : 0);
}

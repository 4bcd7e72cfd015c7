import type { SafetensorsFile } from '../../lib/checkpoint/safetensors';
import { parseHeaderLength, parseSafetensorsHeader } from '../../lib/checkpoint/safetensors';

/** One tensor to write. Without `data`, its bytes are zeros. */
export interface TensorPart {
  name: string;
  dtype: string;
  shape: readonly number[];
  data?: Uint8Array;
}

const bits: Record<string, number> = {
  ...{ F4: 4, F6_E2M3: 6, F6_E3M2: 6 },
  ...{ BOOL: 8, U8: 8, I8: 8, F8_E5M2: 8, F8_E4M3: 8, F8_E8M0: 8 },
  ...{ F8_E4M3FNUZ: 8, F8_E5M2FNUZ: 8, I16: 16, U16: 16, F16: 16, BF16: 16 },
  ...{ I32: 32, U32: 32, F32: 32, C64: 64, F64: 64, I64: 64, U64: 64 },
};
export const allDtypes = Object.keys(bits);

export function tensorBytes({ dtype, shape }: Pick<TensorPart, 'dtype' | 'shape'>): number {
  return (shape.reduce((product, dim) => product * dim, 1) * (bits[dtype] ?? NaN)) / 8;
}

/**
 * A whole file from a header (JSON text or raw bytes) and its data; `length` forges the header's
 * length.
 */
export function rawFile(
  header: string | Uint8Array,
  data: number | Uint8Array = 0,
  length?: bigint,
): Uint8Array {
  const json = typeof header === 'string' ? Buffer.from(header) : header;
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(length ?? BigInt(json.length));
  return Buffer.concat([prefix, json, typeof data === 'number' ? Buffer.alloc(data) : data]);
}

/** A well-formed file that holds the tensors in the order given. */
export function tensorFile(
  tensors: readonly TensorPart[],
  metadata?: Record<string, string>,
): Uint8Array {
  const header = new Map<string, unknown>();
  if (metadata !== undefined) header.set('__metadata__', metadata);
  let end = 0;
  for (const { name, dtype, shape } of tensors) {
    const begin = end;
    end += tensorBytes({ dtype, shape });
    header.set(name, { dtype, shape, data_offsets: [begin, end] });
  }
  const fields = [...header].map(
    ([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`,
  );
  const data = tensors.map((part) => part.data ?? Buffer.alloc(tensorBytes(part)));
  return rawFile(`{${fields.join(',')}}`, Buffer.concat(data));
}

/** Reads a file that lies in memory, by the same steps as one on disk. */
export function parseFile(file: Uint8Array, path = 'x.safetensors'): SafetensorsFile {
  const length = parseHeaderLength(file.subarray(0, 8), file.length, path);
  return parseSafetensorsHeader(file.subarray(8, 8 + length), file.length, path);
}

import type { FileHandle } from 'node:fs/promises';

import { writeAtomically } from './atomic-file';

/** Dtypes that are written, with the bytes of an element. */
const elementBytes = { F32: 4, BF16: 2 } as const;
export type WrittenDtype = keyof typeof elementBytes;

/** A tensor of a file to be; its bytes are asked for when they are written. */
export interface TensorToWrite {
  name: string;
  dtype: WrittenDtype;
  shape: readonly number[];
  read: () => Promise<Uint8Array>;
}

const lengthBytes = 8;

/**
 * Writes a safetensors file, atomically, one tensor after the other: at most one is in memory. Wider
 * elements come first, so that every tensor is aligned.
 */
export async function writeSafetensors(
  path: string,
  tensors: readonly TensorToWrite[],
  metadata: Readonly<Record<string, string>>,
): Promise<void> {
  const ordered = [...tensors].sort(
    (a, b) => elementBytes[b.dtype] - elementBytes[a.dtype] || (a.name < b.name ? -1 : 1),
  );
  const header = makeHeader(ordered, metadata);
  await writeAtomically(path, async (file) => {
    await writeAll(file, header);
    for (const { read } of ordered) await writeAll(file, await read());
  });
}

function makeHeader(
  tensors: readonly TensorToWrite[],
  metadata: Readonly<Record<string, string>>,
): Uint8Array {
  let end = 0;
  const entries = tensors.map(({ name, dtype, shape }) => {
    const begin = end;
    end += shape.reduce((product, extent) => product * extent, elementBytes[dtype] as number);
    return [name, { dtype, shape, data_offsets: [begin, end] }] as const;
  });
  const json = Buffer.from(
    JSON.stringify({ __metadata__: metadata, ...Object.fromEntries(entries) }),
  );
  const padded = Math.ceil(json.length / lengthBytes) * lengthBytes;
  const header = Buffer.alloc(lengthBytes + padded, ' ');
  header.writeBigUInt64LE(BigInt(padded));
  json.copy(header, lengthBytes);
  return header;
}

/** A write may take less than it was given. */
async function writeAll(file: FileHandle, bytes: Uint8Array): Promise<void> {
  let done = 0;
  while (done < bytes.length) {
    const { bytesWritten } = await file.write(bytes, done, bytes.length - done);
    done += bytesWritten;
  }
}

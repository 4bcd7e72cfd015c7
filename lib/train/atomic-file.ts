import { open, rename, rm, type FileHandle } from 'node:fs/promises';
import { dirname } from 'node:path';

import { LozaError } from '../errors';

/**
 * Writes a file so that whoever looks, also after a crash, finds the old content or all of the new:
 * beside it, to the disk, and then under its name.
 *
 * @throws LozaError ERR_LOZA_IO.
 */
export async function writeAtomically(
  path: string,
  content: string | ((file: FileHandle) => Promise<void>),
): Promise<void> {
  const temporary = `${path}.partial`;
  try {
    const file = await open(temporary, 'w');
    try {
      if (typeof content === 'string') await file.writeFile(content);
      else await content(file);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
    await syncFolder(dirname(path));
  } catch (error) {
    await rm(temporary, { force: true });
    throw writeError(error, path);
  }
}

/** The LozaError for an error of node:fs when something is written; others as they are. */
export function writeError(error: unknown, path: string): unknown {
  if (LozaError.isInstance(error) || !isSystemError(error)) return error;
  const problem = `${path} cannot be written: ${error.message}`;
  return new LozaError('ERR_LOZA_IO', problem, { value: path, cause: error });
}

function isSystemError(error: unknown): error is { syscall: string; message: string } {
  return typeof error === 'object' && error !== null && 'syscall' in error && 'message' in error;
}

/** The new name too is on the disk then. */
async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r');
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

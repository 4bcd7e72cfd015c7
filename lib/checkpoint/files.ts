import { open, stat, type FileHandle } from 'node:fs/promises';

import { LozaError, show, type LozaErrorCode } from '../errors';
import { parseJson, type JsonValue } from './json';

/** Runs `use` on an open regular file, closes it, and turns the system's errors into LozaErrors. */
export async function withFile<T>(
  path: string,
  use: (handle: FileHandle, bytes: number) => Promise<T>,
): Promise<T> {
  let handle: FileHandle | undefined;
  try {
    // Looked at before it is opened: opening a pipe would wait for ever for a writer.
    if (!(await stat(path)).isFile()) {
      throw new LozaError('ERR_LOZA_IO', `${path} is not a regular file`, { value: path });
    }
    handle = await open(path, 'r');
    return await use(handle, (await handle.stat()).size);
  } catch (error) {
    throw fileError(error, path);
  } finally {
    await handle?.close();
  }
}

/** Reads exactly `bytes` bytes from `position`. */
export async function readExactly(
  handle: FileHandle,
  bytes: number,
  position: number,
  path: string,
): Promise<Uint8Array> {
  const buffer = new Uint8Array(bytes);
  let done = 0;
  while (done < bytes) {
    const { bytesRead } = await handle.read(buffer, done, bytes - done, position + done);
    if (bytesRead === 0) {
      const got = `byte ${position + done}, expected ${position + bytes} bytes`;
      throw new LozaError('ERR_LOZA_IO', `${path} ended while it was read: at ${got}`);
    }
    done += bytesRead;
  }
  return buffer;
}

export interface JsonFileLimits {
  maxBytes: number;
  maxDepth: number;
  /**
   * The code of errors in the content; a missing file is ERR_LOZA_NOT_FOUND, an unreadable one
   * ERR_LOZA_IO.
   */
  code: LozaErrorCode;
}

/** Reads and parses one JSON file, refusing it by its size before it is read. */
export async function readJsonFile(path: string, limits: JsonFileLimits): Promise<JsonValue> {
  const { maxBytes, maxDepth, code } = limits;
  const content = await withFile(path, (handle, bytes) => {
    if (bytes > maxBytes) {
      const problem = `${path} must have at most ${maxBytes} bytes, got ${bytes}`;
      throw new LozaError(code, problem, { value: bytes });
    }
    return readExactly(handle, bytes, 0, path);
  });
  return parseJson(content, { file: path, maxDepth, code });
}

/** The LozaError for an error of node:fs; other errors are returned as they are. */
export function fileError(error: unknown, path: string): unknown {
  if (LozaError.isInstance(error) || !isSystemError(error)) return error;
  const details = { value: path, cause: error };
  if (error.code === 'ENOENT' || error.code === 'ENOTDIR') {
    return new LozaError('ERR_LOZA_NOT_FOUND', `${path} does not exist`, details);
  }
  if (error.code === 'ERR_INVALID_ARG_VALUE') {
    return new LozaError('ERR_LOZA_INVALID_ARG', `${show(path)} cannot be a path`, details);
  }
  return new LozaError('ERR_LOZA_IO', `${path} cannot be read: ${error.message}`, details);
}

function isSystemError(error: unknown): error is { code: string; message: string } {
  return typeof error === 'object' && error !== null && 'code' in error && 'message' in error;
}

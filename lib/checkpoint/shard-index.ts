import { realpath } from 'node:fs/promises';
import { basename, dirname, join, sep } from 'node:path';

import { LozaError, show, throwIfAborted } from '../errors';
import { fileError, readJsonFile } from './files';
import { JsonNumber, showJson, type JsonValue } from './json';
import {
  isTensorName,
  readSafetensorsHeader,
  type SafetensorsFile,
  type TensorEntry,
} from './safetensors';

export interface ShardIndex {
  /** The index file, named in errors. */
  readonly path: string;
  /** Tensor name to shard file name. */
  readonly weightMap: ReadonlyMap<string, string>;
  /** The distinct shard file names, in the order of their first tensor. */
  readonly shards: readonly string[];
}

const maxIndexBytes = 100_000_000;
const maxShards = 10_000;
const maxDepth = 8;
const openAtOnce = 8;

/**
 * Reads `model.safetensors.index.json`. `metadata.total_size` must be a byte count but need not be
 * the right one: many published indexes are slightly off, and the shards' own headers say it
 * exactly.
 *
 * @throws LozaError ERR_LOZA_NOT_FOUND, ERR_LOZA_IO or ERR_LOZA_CHECKPOINT.
 */
export async function readShardIndex(path: string): Promise<ShardIndex> {
  const limits = { maxBytes: maxIndexBytes, maxDepth, code: 'ERR_LOZA_CHECKPOINT' } as const;
  return parseShardIndex(await readJsonFile(path, limits), path);
}

function parseShardIndex(root: JsonValue, path: string): ShardIndex {
  if (!(root instanceof Map)) {
    throw malformed(path, `must be a JSON object, got ${showJson(root)}`, root);
  }
  checkMetadata(root.get('metadata') ?? null, path);
  const entries = root.get('weight_map');
  if (!(entries instanceof Map) || entries.size === 0) {
    const problem = `weight_map must be an object that is not empty, got ${showJson(entries)}`;
    throw malformed(path, problem, entries);
  }
  const weightMap = new Map<string, string>();
  const shards = new Set<string>();
  for (const [tensor, shard] of entries) {
    if (!isTensorName(tensor)) {
      throw malformed(path, `weight_map has an invalid tensor name: ${show(tensor)}`, tensor);
    }
    const name = checkShardName(shard, tensor, path);
    weightMap.set(tensor, name);
    shards.add(name);
  }
  if (shards.size > maxShards) {
    const problem = `weight_map must name at most ${maxShards} shards, got ${shards.size}`;
    throw malformed(path, problem, shards.size);
  }
  return { path, weightMap, shards: [...shards] };
}

/**
 * Reads the headers of all shards and checks them against the index: each tensor in exactly the
 * shard that the index says, and no others.
 */
export async function readShards(
  index: ShardIndex,
  signal?: AbortSignal,
): Promise<SafetensorsFile[]> {
  const roots = await allowedRoots(dirname(index.path));
  const files: SafetensorsFile[] = [];
  for (let first = 0; first < index.shards.length; first += openAtOnce) {
    throwIfAborted(signal);
    const names = index.shards.slice(first, first + openAtOnce);
    files.push(...(await Promise.all(names.map((name) => readShard(index, name, roots)))));
  }
  return files;
}

/** All tensors of the shards; see `readShards` for what is checked. */
export function mergeShards(
  index: ShardIndex,
  files: readonly SafetensorsFile[],
): Map<string, TensorEntry> {
  const tensors = new Map<string, TensorEntry>();
  for (const file of files) {
    for (const entry of file.tensors.values()) {
      const other = tensors.get(entry.name);
      if (other !== undefined) {
        const places = `${basename(other.file)} and ${basename(entry.file)}`;
        throw misplaced(index, entry.name, `is in two shards: ${places}`);
      }
      tensors.set(entry.name, entry);
    }
  }
  for (const [name, { file }] of tensors) {
    const listed = index.weightMap.get(name);
    if (listed === basename(file)) continue;
    const said = listed === undefined ? 'the index does not list it' : `the index says ${listed}`;
    throw misplaced(index, name, `is in ${basename(file)}, but ${said}`);
  }
  for (const [name, shard] of index.weightMap) {
    if (!tensors.has(name)) throw misplaced(index, name, `is not in ${shard}, where it should be`);
  }
  return tensors;
}

function checkMetadata(metadata: JsonValue, path: string): void {
  if (metadata === null) return;
  if (!(metadata instanceof Map)) {
    throw malformed(path, `metadata must be an object, got ${showJson(metadata)}`, metadata);
  }
  const total = metadata.get('total_size') ?? null;
  const bytes = total instanceof JsonNumber ? total.toInteger() : undefined;
  if (total !== null && (bytes === undefined || bytes < 0)) {
    const problem = `metadata.total_size must be an integer of 0..2^53-1, got ${showJson(total)}`;
    throw malformed(path, problem, total);
  }
}

/**
 * A shard is a plain file name: everything that could leave the folder is refused by its spelling.
 */
function checkShardName(shard: JsonValue, tensor: string, path: string): string {
  const plain =
    typeof shard === 'string' &&
    shard.endsWith('.safetensors') &&
    Buffer.byteLength(shard) <= 255 &&
    !/[/\\\p{Control}]/u.test(shard);
  if (plain) return shard;
  const rule = 'must be the name of a .safetensors file in the same folder';
  throw malformed(path, `weight_map[${show(tensor)}] ${rule}, got ${showJson(shard)}`, shard);
}

async function readShard(
  index: ShardIndex,
  name: string,
  roots: readonly string[],
): Promise<SafetensorsFile> {
  const path = join(dirname(index.path), name);
  const target = await realpath(path).catch((error: unknown) => {
    throw missingShard(fileError(error, path), index, name);
  });
  if (!roots.some((root) => target.startsWith(root + sep))) {
    const problem = `the shard ${name} is a link that leaves the folder: it leads to ${target}`;
    throw malformed(index.path, problem, name);
  }
  return readSafetensorsHeader(path);
}

/**
 * The folders that a shard may lie in: the checkpoint's own, and for the Hugging Face cache, whose
 * `snapshots/<revision>/` holds only links, the `blobs/` beside `snapshots/`.
 */
async function allowedRoots(dir: string): Promise<string[]> {
  const root = await realpath(dir);
  const parent = dirname(root);
  return basename(parent) === 'snapshots' ? [root, join(dirname(parent), 'blobs')] : [root];
}

function missingShard(error: unknown, index: ShardIndex, name: string): unknown {
  if (!LozaError.isInstance(error) || error.code !== 'ERR_LOZA_NOT_FOUND') return error;
  return new LozaError('ERR_LOZA_NOT_FOUND', `${index.path} lists ${name}, which does not exist`, {
    value: name,
    hint: 'Download the checkpoint completely',
    cause: error,
  });
}

function misplaced(index: ShardIndex, tensor: string, fault: string): LozaError {
  return malformed(index.path, `tensor ${show(tensor)} ${fault}`, tensor);
}

function malformed(path: string, problem: string, value: unknown): LozaError {
  return new LozaError('ERR_LOZA_CHECKPOINT', `${path}: ${problem}`, { value });
}

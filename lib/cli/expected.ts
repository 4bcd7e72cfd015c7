import { access } from 'node:fs/promises';
import { endianness } from 'node:os';
import { join } from 'node:path';

import { readExactly, readJsonFile, withFile } from '../checkpoint/files';
import { toPlain, type PlainValue } from '../checkpoint/json';
import { readSafetensorsHeader, type SafetensorsFile } from '../checkpoint/safetensors';
import { LozaError } from '../errors';

/** What another implementation says a model answers to one prompt. */
export interface ExpectedPrompt {
  name: string;
  inputIds: Int32Array;
  /** Positions whose logits are known. */
  positions: Int32Array;
  /** [positions, vocabSize] */
  logits: Float32Array;
  vocabSize: number;
  /** The likeliest tokens one after another; empty where they are not known. */
  greedy: Int32Array;
  /** By how much each of them won; a token without a margin must be equal. */
  margins: readonly number[];
}

const jsonLimits = { maxBytes: 2 ** 24, maxDepth: 16, code: 'ERR_LOZA_CHECKPOINT' } as const;

/** Reads expected.safetensors, and the margins of expected.json where there is one. */
export async function readExpected(dir: string): Promise<ExpectedPrompt[]> {
  const path = join(dir, 'expected.safetensors');
  const file = await readSafetensorsHeader(path).catch((error: unknown) => {
    throw withHint(error, dir, path);
  });
  const names = [...file.tensors.keys()]
    .filter((name) => name.endsWith('.input_ids'))
    .map((name) => name.slice(0, -'.input_ids'.length))
    .sort();
  if (names.length === 0) throw malformed(path, 'it must hold at least one tensor NAME.input_ids');
  const margins = await readMargins(dir, names);
  const prompts: ExpectedPrompt[] = [];
  for (const name of names) prompts.push(await readPrompt(file, name, margins.get(name) ?? []));
  return prompts;
}

/** expected.json of a folder, or undefined. */
export async function readExpectedJson(dir: string): Promise<PlainValue | undefined> {
  const path = join(dir, 'expected.json');
  try {
    await access(path);
  } catch {
    return undefined;
  }
  return toPlain(await readJsonFile(path, jsonLimits));
}

async function readPrompt(
  file: SafetensorsFile,
  name: string,
  margins: readonly number[],
): Promise<ExpectedPrompt> {
  const inputIds = await readTensor(file, `${name}.input_ids`, 'I32', 1);
  const positions = await readTensor(file, `${name}.positions`, 'I32', 1);
  const logits = await readTensor(file, `${name}.logits`, 'F32', 2);
  const [rows = 0, vocabSize = 0] = logits.shape;
  if (rows !== positions.shape[0] || rows === 0 || vocabSize === 0) {
    const rule = `${name}.logits must have a row for each of ${name}.positions`;
    throw malformed(file.path, `${rule} (${positions.shape}), got [${logits.shape}]`);
  }
  const greedyName = `${name}.greedy`;
  const greedy = file.tensors.has(greedyName)
    ? new Int32Array((await readTensor(file, greedyName, 'I32', 1)).data)
    : new Int32Array(0);
  return {
    name,
    inputIds: new Int32Array(inputIds.data),
    positions: new Int32Array(positions.data),
    logits: new Float32Array(logits.data),
    vocabSize,
    greedy,
    margins,
  };
}

async function readTensor(
  file: SafetensorsFile,
  name: string,
  dtype: 'I32' | 'F32',
  rank: number,
): Promise<{ shape: readonly number[]; data: ArrayBuffer }> {
  const entry = file.tensors.get(name);
  if (entry === undefined) throw malformed(file.path, `tensor ${name} is missing`);
  if (entry.dtype !== dtype || entry.shape.length !== rank) {
    const got = `${entry.dtype} [${entry.shape}]`;
    throw malformed(file.path, `tensor ${name} must be ${dtype} of rank ${rank}, got ${got}`);
  }
  if (endianness() !== 'LE') {
    throw new LozaError('ERR_LOZA_UNSUPPORTED', 'verify needs a little-endian machine');
  }
  const { begin, end } = entry;
  const bytes = await withFile(file.path, (handle) =>
    readExactly(handle, end - begin, begin, file.path),
  );
  return { shape: entry.shape, data: bytes.slice().buffer };
}

/**
 * Margins by prompt name. expected.json has {prompts: [{greedy_margin}]} in the order p0, p1, ...,
 * or {NAME: {greedy_margin}}.
 */
async function readMargins(
  dir: string,
  names: readonly string[],
): Promise<ReadonlyMap<string, readonly number[]>> {
  const json = await readExpectedJson(dir);
  const list = member(json, 'prompts');
  return new Map(
    names.map((name) => {
      const entry = Array.isArray(list) ? list[Number(name.replace(/^p/, ''))] : member(json, name);
      const margins = member(entry, 'greedy_margin');
      const numbers = Array.isArray(margins) ? margins : [];
      return [name, numbers.filter((margin) => typeof margin === 'number')] as const;
    }),
  );
}

/** A key of a JSON object; undefined for anything else. */
export function member(value: PlainValue | undefined, key: string): PlainValue | undefined {
  const isObject = typeof value === 'object' && value !== null && !Array.isArray(value);
  return isObject && Object.hasOwn(value, key) ? value[key] : undefined;
}

function withHint(error: unknown, dir: string, path: string): unknown {
  if (!LozaError.isInstance(error) || error.code !== 'ERR_LOZA_NOT_FOUND') return error;
  return new LozaError('ERR_LOZA_NOT_FOUND', `${path} does not exist`, {
    value: path,
    hint: `verify compares with what another implementation computed: put that beside ${dir}/config.json`,
    cause: error,
  });
}

function malformed(path: string, problem: string): LozaError {
  return new LozaError('ERR_LOZA_CHECKPOINT', `${path}: ${problem}`, { value: path });
}

import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';

import { LozaError, show, throwIfAborted } from '../errors';
import { Config, configLimits } from './config';
import { overrideConfig, type ConfigOverrides } from './config-overrides';
import { fileError, readJsonFile } from './files';
import { toPlain, type PlainValue } from './json';
import { readSafetensorsHeader, type TensorEntry } from './safetensors';
import { mergeShards, readShardIndex, readShards } from './shard-index';

/**
 * A checkpoint folder whose config and tensor headers have been read and checked; no weights are
 * loaded yet.
 */
export interface Checkpoint {
  readonly dir: string;
  readonly config: Config;
  /**
   * The first of `architectures`; undefined if the config has none, then `modelType` is present.
   */
  readonly architecture: string | undefined;
  readonly architectures: readonly string[];
  readonly modelType: string | undefined;
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  /** The safetensors files, with the sizes their headers were checked against. */
  readonly files: readonly { readonly path: string; readonly bytes: number }[];
  /** generation_config.json, as it is. */
  readonly generationConfig: PlainValue | undefined;
}

const indexName = 'model.safetensors.index.json';
const singleName = 'model.safetensors';

/**
 * Opens a folder as `save_pretrained` or the Hugging Face hub write it: `config.json` with
 * `model.safetensors`, or with `model.safetensors.index.json` and its shards (which win if both
 * are there).
 *
 * @throws LozaError ERR_LOZA_NOT_FOUND, ERR_LOZA_IO, ERR_LOZA_CONFIG, ERR_LOZA_CHECKPOINT,
 * ERR_LOZA_UNSUPPORTED
 *   (other weight formats), ERR_LOZA_INVALID_ARG (not a folder) or ERR_LOZA_ABORTED.
 */
export async function openCheckpoint(
  dir: string,
  options: { signal?: AbortSignal | undefined } = {},
): Promise<Checkpoint> {
  const { signal } = options;
  throwIfAborted(signal);
  const names = await listFolder(dir);
  checkWeightFormat(dir, names);
  const config = await Config.read(join(dir, 'config.json'));
  const kind = readKind(config);
  const generationConfig = names.has('generation_config.json')
    ? toPlain(await readJsonFile(join(dir, 'generation_config.json'), configLimits))
    : undefined;
  throwIfAborted(signal);
  const { tensors, files } = await readTensors(dir, names.has(indexName), signal);
  throwIfAborted(signal);
  return {
    dir,
    config,
    ...kind,
    tensors,
    files,
    generationConfig,
  };
}

/**
 * A model without weights: the config of a folder, or of a preset where there is no such folder,
 * in other sizes. It has no tensors yet.
 */
export async function openDummy(
  dir: string,
  presets: Readonly<Record<string, object>>,
  overrides: ConfigOverrides = {},
): Promise<Checkpoint> {
  const config = overrideConfig(await readDummyConfig(dir, presets), overrides);
  const none = { tensors: new Map<string, TensorEntry>(), files: [], generationConfig: undefined };
  return { dir, config, ...readKind(config), ...none };
}

async function readDummyConfig(
  dir: string,
  presets: Readonly<Record<string, object>>,
): Promise<Config> {
  const preset = Object.hasOwn(presets, dir) ? presets[dir] : undefined;
  try {
    return await Config.read(join(dir, 'config.json'));
  } catch (error) {
    if (!LozaError.isInstance(error) || error.code !== 'ERR_LOZA_NOT_FOUND') throw error;
    if (preset !== undefined) return Config.parse(Buffer.from(JSON.stringify(preset)), dir);
    const problem = `${dir} holds no config.json and is no preset`;
    const hint = `Presets are ${Object.keys(presets).join(', ')}`;
    throw new LozaError('ERR_LOZA_NOT_FOUND', problem, { value: dir, hint });
  }
}

function readKind(
  config: Config,
): Pick<Checkpoint, 'architecture' | 'architectures' | 'modelType'> {
  const architectures = config.strings('architectures') ?? [];
  const modelType = config.string('model_type', { default: undefined });
  if (architectures.length === 0 && modelType === undefined) {
    throw config.problem('architectures or model_type is missing, expected the name of a model');
  }
  return { architecture: architectures[0], architectures, modelType };
}

async function readTensors(
  dir: string,
  sharded: boolean,
  signal: AbortSignal | undefined,
): Promise<Pick<Checkpoint, 'tensors' | 'files'>> {
  if (!sharded) {
    const file = await readSafetensorsHeader(join(dir, singleName));
    return { tensors: file.tensors, files: [file] };
  }
  const index = await readShardIndex(join(dir, indexName));
  const shards = await readShards(index, signal);
  return { tensors: mergeShards(index, shards), files: shards };
}

async function listFolder(dir: string): Promise<ReadonlySet<string>> {
  if (typeof dir !== 'string' || dir === '') {
    const problem = `The checkpoint must be the path of a folder, got ${show(dir)}`;
    throw new LozaError('ERR_LOZA_INVALID_ARG', problem, { value: dir });
  }
  try {
    if ((await stat(dir)).isDirectory()) return new Set(await readdir(dir));
  } catch (error) {
    throw fileError(error, dir);
  }
  throw new LozaError('ERR_LOZA_INVALID_ARG', `${dir} is a file, expected a checkpoint folder`, {
    value: dir,
    hint: `Pass the folder that holds config.json and ${singleName}`,
  });
}

function checkWeightFormat(dir: string, names: ReadonlySet<string>): void {
  if (names.has(indexName) || names.has(singleName)) return;
  const other = [...names].find((name) => /\.(?:bin|gguf|pt|pth|npz|onnx)$/.test(name));
  if (other !== undefined) {
    const problem = `${dir} holds ${show(other)}, but only safetensors weights can be loaded`;
    throw new LozaError('ERR_LOZA_UNSUPPORTED', problem, { value: other });
  }
  throw new LozaError('ERR_LOZA_NOT_FOUND', `${dir} holds neither ${singleName} nor ${indexName}`, {
    value: dir,
    hint: `A checkpoint folder needs config.json and ${singleName}, or ${indexName} with its shards`,
  });
}

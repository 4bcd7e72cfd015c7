import { join } from 'node:path';

import { openCheckpoint } from '../../lib/checkpoint/checkpoint';
import type { LozaErrorCode } from '../../lib/errors';
import { expectLozaError } from '../support/errors';
import { tensorFile } from '../support/safetensors-file';
import { tempFolder } from '../support/temp-folder';

const single = 'model.safetensors';
const index = 'model.safetensors.index.json';
const weights = (...names: string[]): Uint8Array =>
  tensorFile(names.map((name) => ({ name, dtype: 'BF16', shape: [2, 2] })));
const config = { architectures: ['TinyForCausalLM'], model_type: 'tiny' };

describe('openCheckpoint', () => {
  it('opens a folder with one file', async () => {
    const dir = tempFolder({ 'config.json': config, [single]: weights('a') });
    const checkpoint = await openCheckpoint(dir);
    expect(checkpoint).toMatchObject({
      dir,
      architecture: 'TinyForCausalLM',
      architectures: ['TinyForCausalLM'],
      modelType: 'tiny',
      files: [expect.objectContaining({ path: join(dir, single) })],
      generationConfig: undefined,
    });
    expect([...checkpoint.tensors.keys()]).toEqual(['a']);
  });

  it('opens a folder with shards, which win over a single file', async () => {
    const dir = tempFolder({
      'config.json': { ...config, architectures: null },
      'generation_config.json': { eos_token_id: [2, 3] },
      [single]: 'not read',
      '1.safetensors': weights('a'),
      '2.safetensors': weights('b'),
      [index]: { weight_map: { a: '1.safetensors', b: '2.safetensors' } },
    });
    const { architecture, modelType, tensors, files, generationConfig } = await openCheckpoint(dir);
    expect([architecture, modelType]).toEqual([undefined, 'tiny']);
    expect([...tensors.keys()]).toEqual(['a', 'b']);
    expect(files.map(({ path }) => path)).toEqual([
      join(dir, '1.safetensors'),
      join(dir, '2.safetensors'),
    ]);
    expect(generationConfig).toMatchObject({ eos_token_id: [2, 3] });
  });

  type Files = Record<string, string | Uint8Array | object>;
  it.each<[name: string, files: Files, code: LozaErrorCode, message: string]>([
    [
      'an empty folder',
      {},
      'ERR_LOZA_NOT_FOUND',
      `holds neither ${single} nor ${index}. A checkpoint folder needs config.json`,
    ],
    [
      'shards without an index',
      { 'config.json': config, 'model-00001-of-00002.safetensors': weights('a') },
      'ERR_LOZA_NOT_FOUND',
      index,
    ],
    ['no config', { [single]: weights('a') }, 'ERR_LOZA_NOT_FOUND', 'config.json does not exist'],
    [
      'PyTorch weights only',
      { 'config.json': config, 'pytorch_model.bin': 'x' },
      'ERR_LOZA_UNSUPPORTED',
      'holds "pytorch_model.bin", but only safetensors',
    ],
    ['GGUF weights only', { 'q4.gguf': 'GGUF' }, 'ERR_LOZA_UNSUPPORTED', 'holds "q4.gguf"'],
    [
      'a config that names no model',
      { 'config.json': {}, [single]: weights('a') },
      'ERR_LOZA_CONFIG',
      'architectures or model_type is missing',
    ],
    [
      'architectures as text',
      { 'config.json': { architectures: 'X' }, [single]: weights('a') },
      'ERR_LOZA_CONFIG',
      'architectures must be an array of strings',
    ],
    [
      'a malformed generation config',
      { 'config.json': config, 'generation_config.json': '{', [single]: weights('a') },
      'ERR_LOZA_CONFIG',
      'generation_config.json: bad JSON',
    ],
    [
      'a malformed file',
      { 'config.json': config, [single]: 'version https://git-lfs' },
      'ERR_LOZA_CHECKPOINT',
      `${single}: the header`,
    ],
    [
      'a malformed index',
      { 'config.json': config, [index]: '{}', [single]: weights('a') },
      'ERR_LOZA_CHECKPOINT',
      `${index}: weight_map`,
    ],
    [
      'a missing shard',
      { 'config.json': config, [index]: { weight_map: { a: '1.safetensors' } } },
      'ERR_LOZA_NOT_FOUND',
      'lists 1.safetensors',
    ],
  ])('rejects %s', async (_, files, code, message) => {
    await expectLozaError(() => openCheckpoint(tempFolder(files)), code, message);
  });

  it.each<[name: string, dir: unknown, code: LozaErrorCode, message: string]>([
    [
      'a missing folder',
      '/nonexistent/model',
      'ERR_LOZA_NOT_FOUND',
      '/nonexistent/model does not exist',
    ],
    ['a file', __filename, 'ERR_LOZA_INVALID_ARG', 'is a file, expected a checkpoint folder'],
    ['an empty path', '', 'ERR_LOZA_INVALID_ARG', 'must be the path of a folder, got ""'],
    ['no path', undefined, 'ERR_LOZA_INVALID_ARG', 'got undefined'],
    ['NUL in the path', 'a\0b', 'ERR_LOZA_INVALID_ARG', '"a\\u0000b" cannot be a path'],
  ])('rejects %s', async (_, dir, code, message) => {
    await expectLozaError(() => openCheckpoint(dir as string), code, message);
  });

  it('stops at an aborted signal', async () => {
    const open = (): unknown => openCheckpoint('/nowhere', { signal: AbortSignal.abort() });
    await expectLozaError(open, 'ERR_LOZA_ABORTED', 'aborted');
  });
});

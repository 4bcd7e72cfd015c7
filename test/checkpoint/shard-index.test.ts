import { mkdirSync, renameSync, symlinkSync } from 'node:fs';
import { dirname, join } from 'node:path';

import { mergeShards, readShardIndex, readShards } from '../../lib/checkpoint/shard-index';
import { expectLozaError } from '../support/errors';
import { rawFile, tensorFile } from '../support/safetensors-file';
import { tempFolder } from '../support/temp-folder';

const indexName = 'model.safetensors.index.json';
const shard = (...names: string[]): Uint8Array =>
  tensorFile(names.map((name) => ({ name, dtype: 'U8', shape: [2] })));
const indexOf = (weightMap: Record<string, unknown>, metadata?: unknown): object => ({
  ...(metadata === undefined ? {} : { metadata }),
  weight_map: weightMap,
});

async function readAll(dir: string): Promise<string[]> {
  const index = await readShardIndex(join(dir, indexName));
  return [...mergeShards(index, await readShards(index)).keys()];
}

const readIndex = (content: object | string): Promise<unknown> =>
  readShardIndex(join(tempFolder({ [indexName]: content }), indexName));

describe('a shard index is rejected for its content:', () => {
  const numbers = Array.from({ length: 10_001 }, (_, at) => at);
  const manyShards = new Map(numbers.map((at) => [`t${at}`, `${at}.safetensors`]));

  it.each<[name: string, content: object | string, message: string]>([
    ['an empty file', '', 'bad JSON'],
    ['an array', '[]', 'must be a JSON object, got an array of 0'],
    ['no weight_map', {}, 'weight_map must be an object that is not empty, got nothing'],
    ['null for the weight_map', { weight_map: null }, 'weight_map must be'],
    ['an empty weight_map', indexOf({}), 'not empty, got an object of 0'],
    ['an array as weight_map', { weight_map: ['a'] }, 'weight_map must be'],
    [
      'a tensor twice',
      '{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}',
      '"a" appears twice',
    ],
    ['a number for a shard', indexOf({ a: 1 }), 'weight_map["a"] must be the name'],
    ['null for a shard', indexOf({ a: null }), 'got null'],
    ['an empty shard name', indexOf({ a: '' }), 'weight_map["a"] must be the name'],
    ['the parent folder', indexOf({ a: '..' }), 'got ".."'],
    ['a path upwards', indexOf({ a: '../x.safetensors' }), 'got "../x.safetensors"'],
    ['a path upwards, backwards', indexOf({ a: '..\\x.safetensors' }), 'in the same folder'],
    ['a path downwards', indexOf({ a: 'sub/x.safetensors' }), 'got "sub/x.safetensors"'],
    ['a path through here', indexOf({ a: './x.safetensors' }), 'got "./x.safetensors"'],
    ['an absolute path', indexOf({ a: '/etc/x.safetensors' }), 'got "/etc/x.safetensors"'],
    ['a URL', indexOf({ a: 'https://host/x.safetensors' }), 'in the same folder'],
    ['NUL in a shard name', indexOf({ a: 'x\0.safetensors' }), 'got "x\\u0000.safetensors"'],
    ['a line break in a shard name', indexOf({ a: 'x\n.safetensors' }), 'in the same folder'],
    ['another kind of file', indexOf({ a: 'pytorch_model.bin' }), 'a .safetensors file'],
    ['a shard name too long', indexOf({ a: `${'n'.repeat(300)}.safetensors` }), 'weight_map["a"]'],
    ['an empty tensor name', indexOf({ '': 'x.safetensors' }), 'invalid tensor name: ""'],
    ['NUL in a tensor name', indexOf({ 'a\0': 'x.safetensors' }), 'invalid tensor name'],
    ['10,001 shards', indexOf(Object.fromEntries(manyShards)), 'at most 10000 shards, got 10001'],
    ['metadata not an object', indexOf({ a: 'x.safetensors' }, []), 'metadata must be an object'],
    ['a negative total', indexOf({ a: 'x.safetensors' }, { total_size: -1 }), 'total_size must be'],
    ['a float total', indexOf({ a: 'x.safetensors' }, { total_size: 1.5 }), 'got 1.5'],
    ['a total as text', indexOf({ a: 'x.safetensors' }, { total_size: '16' }), 'got "16"'],
    ['deep nesting', `{"metadata":${'['.repeat(100_000)}`, 'at most 8 levels'],
    [
      'a total that overflows',
      '{"metadata":{"total_size":18446744073709551616},"weight_map":{"a":"x.safetensors"}}',
      'metadata.total_size must be an integer of 0..2^53-1, got 18446744073709551616',
    ],
  ])('%s', async (_, content, message) => {
    await expectLozaError(() => readIndex(content), 'ERR_LOZA_CHECKPOINT', message);
    await expectLozaError(() => readIndex(content), 'ERR_LOZA_CHECKPOINT', indexName);
  });
});

describe('a shard index is rejected for its shards:', () => {
  const ab = indexOf({ a: '1.safetensors', b: '2.safetensors' });

  it.each<[name: string, files: Record<string, Uint8Array>, message: string]>([
    [
      'a tensor in two shards',
      { '1.safetensors': shard('a', 'b'), '2.safetensors': shard('b') },
      'tensor "b" is in two shards: 1.safetensors and 2.safetensors',
    ],
    [
      'a tensor that no shard has',
      { '1.safetensors': shard('a'), '2.safetensors': shard() },
      'tensor "b" is not in 2.safetensors, where it should be',
    ],
    [
      'a tensor that the index lacks',
      { '1.safetensors': shard('a', 'c'), '2.safetensors': shard('b') },
      'tensor "c" is in 1.safetensors, but the index does not list it',
    ],
    [
      'tensors in each other’s shard',
      { '1.safetensors': shard('b'), '2.safetensors': shard('a') },
      'tensor "b" is in 1.safetensors, but the index says 2.safetensors',
    ],
    [
      'a malformed shard',
      { '1.safetensors': shard('a'), '2.safetensors': rawFile('{}', 1) },
      '2.safetensors: the file must have 10 bytes by its header, got 11',
    ],
  ])('%s', async (_, files, message) => {
    const dir = tempFolder({ ...files, [indexName]: ab });
    await expectLozaError(() => readAll(dir), 'ERR_LOZA_CHECKPOINT', message);
  });

  it('a missing one', async () => {
    const dir = tempFolder({ '1.safetensors': shard('a'), [indexName]: ab });
    const message = `${indexName} lists 2.safetensors, which does not exist`;
    await expectLozaError(() => readAll(dir), 'ERR_LOZA_NOT_FOUND', message);
  });

  it.each<[name: string, link: (dir: string, outside: string) => string]>([
    ['an absolute link that leaves the folder', (_, outside) => join(outside, '2.safetensors')],
    ['a relative link that leaves it', () => '../outside/2.safetensors'],
    ['a link to a folder with the same start', () => '../model-evil/2.safetensors'],
  ])('%s', async (_, link) => {
    const top = tempFolder({
      'model/1.safetensors': shard('a'),
      [`model/${indexName}`]: ab,
      'outside/2.safetensors': shard('b'),
      'model-evil/2.safetensors': shard('b'),
    });
    symlinkSync(link(top, join(top, 'outside')), join(top, 'model/2.safetensors'));
    const message = 'the shard 2.safetensors is a link that leaves the folder';
    await expectLozaError(() => readAll(join(top, 'model')), 'ERR_LOZA_CHECKPOINT', message);
  });

  it('a dangling link', async () => {
    const dir = tempFolder({ '1.safetensors': shard('a'), [indexName]: ab });
    symlinkSync('nowhere', join(dir, '2.safetensors'));
    await expectLozaError(() => readAll(dir), 'ERR_LOZA_NOT_FOUND', 'lists 2.safetensors');
  });

  it('a link to itself', async () => {
    const dir = tempFolder({ '1.safetensors': shard('a'), [indexName]: ab });
    symlinkSync('2.safetensors', join(dir, '2.safetensors'));
    await expectLozaError(() => readAll(dir), 'ERR_LOZA_IO', 'ELOOP');
  });

  it('a folder', async () => {
    const dir = tempFolder({ '1.safetensors': shard('a'), [indexName]: ab });
    mkdirSync(join(dir, '2.safetensors'));
    await expectLozaError(() => readAll(dir), 'ERR_LOZA_IO', 'not a regular file');
  });

  it('an aborted signal', async () => {
    const dir = tempFolder({ '1.safetensors': shard('a', 'b'), [indexName]: ab });
    const index = await readShardIndex(join(dir, indexName));
    const read = (): unknown => readShards(index, AbortSignal.abort());
    await expectLozaError(read, 'ERR_LOZA_ABORTED', 'aborted');
  });
});

describe('a shard index is accepted', () => {
  const files = { '1.safetensors': shard('a', 'b'), '2.safetensors': shard('c') };
  const weightMap = { a: '1.safetensors', b: '1.safetensors', c: '2.safetensors' };

  it.each<[name: string, metadata: unknown]>([
    ['without metadata', undefined],
    ['with metadata null', null],
    ['without a total', { format: 'pt', total_parameters: 6 }],
    ['with the right total', { total_size: 6 }],
    ['with a wrong total', { total_size: 7 }],
    ['with a total of 2^53 - 1', { total_size: 2 ** 53 - 1 }],
  ])('%s', async (_, metadata) => {
    const dir = tempFolder({ ...files, [indexName]: indexOf(weightMap, metadata) });
    expect(await readAll(dir)).toEqual(['a', 'b', 'c']);
  });

  it('with links inside the folder', async () => {
    const dir = tempFolder({ ...files, [indexName]: indexOf(weightMap) });
    renameSync(join(dir, '2.safetensors'), join(dir, 'real'));
    symlinkSync('real', join(dir, '2.safetensors'));
    expect(await readAll(dir)).toEqual(['a', 'b', 'c']);
  });

  it('through a link to the folder', async () => {
    const dir = tempFolder({ ...files, [indexName]: indexOf(weightMap) });
    const link = join(tempFolder(), 'link');
    symlinkSync(dir, link);
    expect(await readAll(link)).toEqual(['a', 'b', 'c']);
  });

  it('with the links of the Hugging Face cache, but no others', async () => {
    const dir = tempFolder({
      'hub/blobs/11': files['1.safetensors'],
      'hub/blobs/22': files['2.safetensors'],
      'hub/other/22': files['2.safetensors'],
      [`hub/snapshots/rev/${indexName}`]: indexOf(weightMap),
    });
    const snapshot = join(dir, 'hub/snapshots/rev');
    symlinkSync('../../blobs/11', join(snapshot, '1.safetensors'));
    symlinkSync('../../blobs/22', join(snapshot, '2.safetensors'));
    expect(await readAll(snapshot)).toEqual(['a', 'b', 'c']);
    renameSync(join(snapshot, '2.safetensors'), join(dirname(snapshot), 'old'));
    symlinkSync('../../other/22', join(snapshot, '2.safetensors'));
    await expectLozaError(() => readAll(snapshot), 'ERR_LOZA_CHECKPOINT', 'leaves the folder');
  });

  it('with more shards than are opened at once', async () => {
    const names = Array.from({ length: 19 }, (_, at) => `t${at}`);
    const dir = tempFolder({
      ...Object.fromEntries(names.map((name) => [`${name}.safetensors`, shard(name)])),
      [indexName]: indexOf(Object.fromEntries(names.map((name) => [name, `${name}.safetensors`]))),
    });
    expect(await readAll(dir)).toEqual(names);
  });
});

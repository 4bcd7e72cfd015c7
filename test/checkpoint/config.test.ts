import { join } from 'node:path';

import { Config } from '../../lib/checkpoint/config';
import { configOf } from '../support/configs';
import { expectLozaError } from '../support/errors';
import { tempFolder } from '../support/temp-folder';

const int = { max: 100 };

describe('Config.read', () => {
  it('reads a file', async () => {
    const dir = tempFolder({ 'config.json': { heads: 4 } });
    expect((await Config.read(join(dir, 'config.json'))).int('heads', int)).toBe(4);
  });

  it.each<[name: string, content: string | Uint8Array, message: string]>([
    ['nothing', '', 'bad JSON'],
    ['an array', '[]', 'config.json must be a JSON object, got an array of 0'],
    ['a byte order mark', '\ufeff{}', 'byte order mark'],
    ['duplicate keys', '{"a":1,"a":2}', 'the key "a" appears twice'],
    ['duplicate nested keys', '{"b":{"a":1,"a":2}}', 'the key "a" appears twice'],
    ['depth 17', `{"a":${'['.repeat(16)}${']'.repeat(16)}}`, 'at most 16 levels'],
    ['more than 1 MiB', `{}${' '.repeat(2 ** 20)}`, 'at most 1048576 bytes, got 1048578'],
    ['Python', "{'a': None}", 'a key in double quotes'],
    ['NaN', '{"eps": NaN}', 'a JSON value, got "NaN'],
  ])('rejects %s', async (_, content, message) => {
    const path = join(tempFolder({ 'config.json': content }), 'config.json');
    await expectLozaError(() => Config.read(path), 'ERR_LOZA_CONFIG', message);
  });

  it('says that a file is missing', async () => {
    const read = (): unknown => Config.read(join(tempFolder(), 'config.json'));
    await expectLozaError(read, 'ERR_LOZA_NOT_FOUND', 'config.json does not exist');
  });

  it('accepts depth 16', () => {
    expect(configOf(`{"a":${'['.repeat(15)}${']'.repeat(15)}}`).has('a')).toBe(true);
  });
});

describe('Config rejects', () => {
  it.each<[name: string, json: string, read: (config: Config) => unknown, message: string]>([
    [
      'a missing key',
      '{}',
      (c) => c.int('a', int),
      'config.json: a is missing, expected an integer',
    ],
    ['null for a required key', '{"a":null}', (c) => c.int('a', int), 'a is missing'],
    ['missing aliases', '{}', (c) => c.int(['a', 'b'], int), 'a or b is missing'],
    [
      'text for an integer',
      '{"a":"4"}',
      (c) => c.int('a', int),
      'a must be an integer of 1..100, got "4"',
    ],
    ['a float for an integer', '{"a":4.5}', (c) => c.int('a', int), 'got 4.5'],
    ['4.0 for an integer', '{"a":4.0}', (c) => c.int('a', int), 'got 4.0'],
    ['4e0 for an integer', '{"a":4e0}', (c) => c.int('a', int), 'got 4e0'],
    ['true for an integer', '{"a":true}', (c) => c.int('a', int), 'got true'],
    ['an array for an integer', '{"a":[4]}', (c) => c.int('a', int), 'got an array of 1'],
    ['an integer below', '{"a":0}', (c) => c.int('a', int), 'of 1..100, got 0'],
    ['an integer above', '{"a":101}', (c) => c.int('a', int), 'of 1..100, got 101'],
    ['2^64', '{"a":18446744073709551616}', (c) => c.int('a', int), 'got 18446744073709551616'],
    [
      'two values',
      '{"a":1,"b":2}',
      (c) => c.int(['a', 'b'], int),
      'a and b mean the same and must agree, got 1 and 2',
    ],
    ['a wrong alias', '{"a":1,"b":"x"}', (c) => c.int(['a', 'b'], int), 'b must be an integer'],
    ['text for a number', '{"a":"1"}', (c) => c.number('a'), 'a must be a finite number, got "1"'],
    ['an infinite number', '{"a":1e999}', (c) => c.number('a'), 'a finite number, got 1e999'],
    ['a number too small', '{"a":0.5}', (c) => c.number('a', { min: 1 }), 'at least 1, got 0.5'],
    [
      'a number at its border',
      '{"a":0}',
      (c) => c.number('a', { exclusiveMin: 0 }),
      'above 0, got 0',
    ],
    [
      'a number that underflows',
      '{"a":1e-999}',
      (c) => c.number('a', { exclusiveMin: 0 }),
      'above 0',
    ],
    [
      'a number too large',
      '{"a":3}',
      (c) => c.number('a', { min: 1, max: 2 }),
      'at least 1 and at most 2, got 3',
    ],
    ['1 for a boolean', '{"a":1}', (c) => c.boolean('a'), 'a must be true or false, got 1'],
    ['text for a boolean', '{"a":"true"}', (c) => c.boolean('a'), 'got "true"'],
    ['a number for text', '{"a":1}', (c) => c.string('a'), 'a must be a string, got 1'],
    [
      'another word',
      '{"a":"z"}',
      (c) => c.string('a', { oneOf: ['x', 'y'] }),
      'one of "x", "y", got "z"',
    ],
    [
      'an array for an object',
      '{"a":[]}',
      (c) => c.object('a'),
      'a must be an object, got an array',
    ],
    ['text for an array', '{"a":"x"}', (c) => c.strings('a'), 'an array of strings, got "x"'],
    [
      'a number in strings',
      '{"a":["x",1]}',
      (c) => c.strings('a'),
      'a[1] must be an array of strings',
    ],
    [
      'a float in integers',
      '{"a":[1,2.5]}',
      (c) => c.ints('a', int),
      'a[1] must be an integer of 1..100',
    ],
    [
      'a single wrong integer',
      '{"a":0}',
      (c) => c.ints('a', int),
      'a must be an integer of 1..100',
    ],
    [
      'a nested key',
      '{"a":{"b":{"c":0}}}',
      (c) => c.object('a')?.object('b')?.int('c', int),
      'a.b.c must be',
    ],
  ])('%s', async (_, json, read, message) => {
    await expectLozaError(() => read(configOf(json)), 'ERR_LOZA_CONFIG', message);
  });
});

describe('Config reads', () => {
  const config = configOf(
    '{"i":7,"same":7,"f":1e-5,"t":true,"s":"x","n":null,"o":{"k":1},"l":["a"],"e":2,"es":[2,3],"__proto__":{"i":1}}',
  );

  it.each<[name: string, got: unknown, expected: unknown]>([
    ['an integer', config.int('i', int), 7],
    ['agreeing aliases', config.int(['i', 'same'], int), 7],
    ['a later alias', config.int(['none', 'i'], int), 7],
    ['zero where allowed', configOf('{"z":0}').int('z', { min: 0, max: 1 }), 0],
    ['a default', config.int('none', { max: 1, default: null }), null],
    ['a default for null', config.string('n', { default: 'd' }), 'd'],
    ['a default of undefined', config.number('none', { default: undefined }), undefined],
    ['a float', config.number('f'), 1e-5],
    ['an integer as a number', config.number('i'), 7],
    ['a boolean', config.boolean('t'), true],
    ['a word of a list', config.string('s', { oneOf: ['x'] }), 'x'],
    ['strings', config.strings('l'), ['a']],
    ['no strings', config.strings('none'), undefined],
    ['integers', config.ints('es', int), [2, 3]],
    ['one integer as several', config.ints('e', int), [2]],
    ['a nested object', config.object('o')?.int('k', int), 1],
    ['no object', config.object('n'), undefined],
    ['presence', [config.has('i'), config.has('n'), config.has('none')], [true, false, false]],
    [
      '__proto__ as a plain key',
      [config.has('__proto__'), config.has('constructor')],
      [true, false],
    ],
  ])('%s', (_, got, expected) => {
    expect(got).toEqual(expected);
  });
});

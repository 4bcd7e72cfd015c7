import { mkdirSync } from 'node:fs';
import { join } from 'node:path';

import fc from 'fast-check';

import { parseHeaderLength, readSafetensorsHeader } from '../../lib/checkpoint/safetensors';
import { expectLozaError } from '../support/errors';
import {
  allDtypes,
  parseFile,
  rawFile,
  tensorFile,
  type TensorPart,
} from '../support/safetensors-file';
import { tempFolder } from '../support/temp-folder';

/** One tensor's entry as JSON; a field given as text is put in as it is. */
function entry(
  fields: { dtype?: string; shape?: string; offsets?: string; more?: string } = {},
): string {
  const { dtype = '"U8"', shape = '[4]', offsets = '[0,4]', more = '' } = fields;
  return `{"dtype":${dtype},"shape":${shape},"data_offsets":${offsets}${more}}`;
}

/** A file with the tensor "w" of 4 bytes, whose entry has the given fields. */
function oneTensor(fields: Parameters<typeof entry>[0]): Uint8Array {
  return rawFile(`{"w":${entry(fields)}}`, 4);
}

const u8 = (name: string, begin: number, end: number): string =>
  `${JSON.stringify(name)}:${entry({ shape: `[${end - begin}]`, offsets: `[${begin},${end}]` })}`;
const named = (name: string): Uint8Array => rawFile(`{${u8(name, 0, 4)}}`, 4);
const metadata = (value: string): Uint8Array =>
  rawFile(`{"__metadata__":${value},${u8('w', 0, 4)}}`, 4);
const huge = '18446744073709551616';

describe('a safetensors file is rejected', () => {
  type Case = [name: string, file: Uint8Array, message: string];

  describe('for its length fields', () => {
    it.each<Case>([
      ['an empty file', Buffer.alloc(0), 'at least 8 bytes, got 0'],
      ['a file of 7 bytes', Buffer.alloc(7), 'at least 8 bytes, got 7'],
      ['no header', rawFile('', 0), 'got 0'],
      ['a header longer than the file', rawFile('{}', 0, 3n), '1..2'],
      ['a header of 2^64 - 1', rawFile('{}', 0, 2n ** 64n - 1n), 'got 18446744073709551615'],
      ['a header of 2^63', rawFile('{}', 0, 2n ** 63n), 'got 9223372036854775808'],
      ['a header of one byte', rawFile('{', 0), 'a key in double quotes'],
      ['a header cut short', rawFile(`{${u8('w', 0, 4)}}`, 4, 20n), 'bad JSON'],
      ['a header that reaches into the data', rawFile('{}', 4, 4n), 'the end of the text'],
    ])('%s', check);

    it('a header above 100,000,000 bytes, before it is read', async () => {
      const prefix = Buffer.alloc(8);
      prefix.writeBigUInt64LE(100_000_001n);
      const parse = (): number => parseHeaderLength(prefix, 2 ** 40, 'x.safetensors');
      await expectLozaError(parse, 'ERR_LOZA_CHECKPOINT', '1..100000000 ');
      prefix.writeBigUInt64LE(100_000_000n);
      expect(parse()).toBe(100_000_000);
    });
  });

  describe('for its JSON', () => {
    it.each<Case>([
      ['not UTF-8', rawFile(Buffer.from([0x7b, 0xff, 0x7d])), 'UTF-8'],
      ['a byte order mark', rawFile('\ufeff{}'), 'byte order mark'],
      ['an array', rawFile('[]'), 'must be a JSON object, got an array of 0'],
      ['a string', rawFile('"w"'), 'must be a JSON object, got "w"'],
      ['null', rawFile('null'), 'must be a JSON object, got null'],
      ['two documents', rawFile('{}{}'), 'the end of the text'],
      ['garbage after it', rawFile('{}x'), 'the end of the text'],
      ['NUL padding after it', rawFile('{}\0\0'), 'the end of the text'],
      ['a comment', rawFile('{}//'), 'the end of the text'],
      ['a trailing comma', rawFile(`{${u8('w', 0, 4)},}`, 4), 'a key in double quotes'],
      ['NaN', oneTensor({ shape: '[NaN]' }), 'a JSON value'],
      ['a leading zero', oneTensor({ offsets: '[00,4]' }), '"," or "]"'],
      ['a lone surrogate', rawFile(`{"\\ud800":${entry()}}`, 4), 'valid Unicode'],
      ['depth 100,000', rawFile(`{"w":${'['.repeat(100_000)}`), 'at most 4 levels'],
      ['deep objects', rawFile('{"a":{"a":{"a":{"a":{"a":1}}}}}'), 'at most 4 levels'],
    ])('%s', check);
  });

  describe('for how its tensors lie', () => {
    it.each<Case>([
      ['the first not at 0', rawFile(`{${u8('w', 1, 5)}}`, 5), '"w" must begin at byte 0'],
      ['a hole', rawFile(`{${u8('a', 0, 4)},${u8('b', 5, 9)}}`, 9), '"b" must begin at byte 4'],
      ['one range twice', rawFile(`{${u8('a', 0, 4)},${u8('b', 0, 4)}}`, 4), '"b" must begin at'],
      ['an overlap', rawFile(`{${u8('a', 0, 4)},${u8('b', 3, 7)}}`, 7), 'an overlap'],
      ['an inner range', rawFile(`{${u8('a', 0, 8)},${u8('b', 2, 4)}}`, 8), '"b" must begin at'],
      [
        'an empty inner one',
        rawFile(`{${u8('a', 0, 4)},${u8('b', 2, 2)}}`, 4),
        '"b" must begin at',
      ],
      ['bytes after the last', rawFile(`{${u8('w', 0, 4)}}`, 5), 'bytes follow the last tensor'],
      ['bytes but no tensors', rawFile('{}', 1), 'bytes follow the last tensor'],
      ['too few bytes', rawFile(`{${u8('w', 0, 4)}}`, 3), 'the file is cut off'],
      ['an empty one outside', rawFile(`{${u8('w', 0, 4)},${u8('e', 8, 8)}}`, 4), '"e" must begin'],
    ])('%s', check);
  });

  describe('for its data_offsets', () => {
    it.each<[name: string, offsets: string, message: string]>([
      ['begin after end', '[4,0]', 'not end before they begin, got [4, 0]'],
      ['a negative begin', '[-4,0]', '0..2^53-1, got -4'],
      ['16.0', '[0,4.0]', '0..2^53-1, got 4.0'],
      ['4e0', '[0,4e0]', 'got 4e0'],
      ['-0', '[-0,4]', 'got -0'],
      ['a string', '["0",4]', 'got "0"'],
      ['null', '[0,null]', 'got null'],
      ['one offset', '[4]', 'an array of two integers, got an array of 1'],
      ['three offsets', '[0,4,4]', 'an array of two integers, got an array of 3'],
      ['no offsets', '[]', 'an array of two integers'],
      ['not an array', '4', 'an array of two integers, got 4'],
      ['2^64', `[0,${huge}]`, `got ${huge}`],
      ['2^53', `[0,9007199254740992]`, 'got 9007199254740992'],
      ['a smaller range than the shape', '[0,3]', 'span 4 bytes (U8 [4]), got 3'],
      ['a larger range than the shape', '[0,5]', 'span 4 bytes (U8 [4]), got 5'],
    ])('%s', (_, offsets, message) =>
      check(_, oneTensor({ offsets }), `tensor "w": data_offsets must`, message),
    );
  });

  describe('for its shape', () => {
    it.each<[name: string, shape: string, message: string]>([
      ['a negative dimension', '[-4]', '0..2147483647, got -4'],
      ['a float dimension', '[4.0]', '0..2147483647, got 4.0'],
      ['an exponent', '[4e0]', 'got 4e0'],
      ['-0', '[-0]', 'got -0'],
      ['null', '[null]', 'got null'],
      ['a string', '["4"]', 'got "4"'],
      ['a nested array', '[[4]]', 'got an array of 1'],
      ['true', '[true]', 'got true'],
      ['not an array', '4', 'at most 8 dimensions, got 4'],
      ['2^31', '[2147483648]', '0..2147483647, got 2147483648'],
      ['2^63 twice and 0', '[9223372036854775808,9223372036854775808,0]', 'got 92233'],
      ['0 and 2^63 twice', '[0,9223372036854775808,9223372036854775808]', 'got 92233'],
      ['a product that overflows', `[${Array(8).fill(2147483647)}]`, 'below 2^53 bits'],
      ['an overflow behind a zero', '[0,2147483647,2147483647,8]', 'below 2^53 bits'],
      ['an overflow before a zero', '[2147483647,2147483647,8,0]', 'below 2^53 bits'],
      ['a size that overflows', '[2147483647,4194304]', 'below 2^53 bits'],
      ['rank 9', '[1,1,1,1,1,1,1,1,4]', 'at most 8 dimensions, got an array of 9'],
      ['rank 100,000', `[${Array(100_000).fill(1)}]`, 'got an array of 100000'],
      ['another size', '[5]', 'span 5 bytes (U8 [5]), got 4'],
    ])('%s', (_, shape, message) => check(_, oneTensor({ shape }), 'tensor "w": ', message));
  });

  describe('for its dtype or fields', () => {
    const withoutField = (key: string): Uint8Array =>
      rawFile(`{"w":${entry().replace(`"${key}"`, '"other"')}}`, 4);

    it.each<Case>([
      ['an unknown dtype', oneTensor({ dtype: '"I4"' }), 'dtype must be one of BOOL'],
      ['a lower-case dtype', oneTensor({ dtype: '"u8"' }), 'got "u8"'],
      ['a dtype named like a method', oneTensor({ dtype: '"toString"' }), 'got "toString"'],
      ['a dtype that is a number', oneTensor({ dtype: '8' }), 'got 8'],
      ['another dtype size', oneTensor({ dtype: '"F32"' }), 'span 16 bytes (F32 [4]), got 4'],
      [
        'half a byte',
        oneTensor({ dtype: '"F4"', shape: '[7]' }),
        'fill whole bytes, got [7] of F4',
      ],
      ['6 bits', oneTensor({ dtype: '"F6_E2M3"', shape: '[5]' }), 'fill whole bytes'],
      ['no dtype', rawFile('{"w":{"shape":[4],"data_offsets":[0,4]}}', 4), 'got nothing'],
      ['no shape', rawFile('{"w":{"dtype":"U8","data_offsets":[0,4]}}', 4), 'shape must be'],
      ['no offsets', rawFile('{"w":{"dtype":"U8","shape":[4]}}', 4), 'data_offsets must be'],
      ['a misspelt field', withoutField('shape'), 'only, got "other"'],
      ['a field too many', oneTensor({ more: ',"strides":[1]' }), 'only, got "strides"'],
      ['a duplicate field', oneTensor({ more: ',"dtype":"U8"' }), '"dtype" appears twice'],
      ['null for a tensor', rawFile('{"w":null}'), 'its entry must be an object, got null'],
      ['an array for a tensor', rawFile('{"w":[]}'), 'its entry must be an object'],
      ['an empty object', rawFile('{"w":{}}'), 'tensor "w": dtype'],
    ])('%s', check);
  });

  describe('for its names', () => {
    const twice = (second: string): Uint8Array =>
      rawFile(`{${u8('w', 0, 4)},"w":${entry({ shape: second })}}`, 4);

    it.each<Case>([
      ['an empty name', named(''), 'tensor name must have 1 to 512 bytes'],
      ['NUL', named('a\0b'), 'got "a\\u0000b"'],
      ['a line break', named('a\nb'), 'without control characters'],
      ['DEL', named('a\x7f'), 'without control characters'],
      ['a C1 control', named('a\x9b'), 'without control characters'],
      ['513 bytes', named('n'.repeat(513)), '1 to 512 bytes'],
      ['513 bytes of UTF-8', named('é'.repeat(257)), '1 to 512 bytes'],
      ['1 MiB', named('n'.repeat(2 ** 20)), '1 to 512 bytes'],
      [
        'twice, next to each other',
        rawFile(`{${u8('w', 0, 4)},${u8('w', 4, 8)}}`, 8),
        'appears twice',
      ],
      ['twice, the same range', twice('[2,2]'), 'the key "w" appears twice'],
      [
        'twice by an escape',
        rawFile(`{${u8('w', 0, 4)},"\\u0077":${entry()}}`, 4),
        'appears twice',
      ],
    ])('%s', check);
  });

  describe('for its metadata', () => {
    it.each<Case>([
      ['null', metadata('null'), '__metadata__ must be an object, got null'],
      ['an array', metadata('[]'), '__metadata__ must be an object'],
      ['a string', metadata('"pt"'), '__metadata__ must be an object'],
      ['a number in it', metadata('{"format":1}'), '"format" must be a string, got 1'],
      ['null in it', metadata('{"format":null}'), '"format" must be a string, got null'],
      ['an object in it', metadata('{"format":{}}'), '"format" must be a string'],
      ['a duplicate key', metadata('{"a":"1","a":"1"}'), '"a" appears twice'],
      ['a second one', metadata('{},"__metadata__":{}'), '"__metadata__" appears twice'],
    ])('%s', check);
  });

  function check(_: string, file: Uint8Array, ...messages: string[]): Promise<void> {
    return expectLozaError(
      () => parseFile(file),
      'ERR_LOZA_CHECKPOINT',
      new RegExp(
        `^x\\.safetensors: .*${messages.map((text) => escapeRegExp(text)).join('.*')}`,
        's',
      ),
    );
  }
});

describe('a safetensors file is accepted', () => {
  const w: TensorPart = { name: 'w', dtype: 'U8', shape: [4] };

  it.each<[name: string, file: Uint8Array, names: string[]]>([
    ['without tensors', rawFile('{}'), []],
    ['with leading and trailing white space', rawFile(`\t\n\r {${u8('w', 0, 4)}} \n`, 4), ['w']],
    ['with a header of odd length', rawFile(`{${u8('w', 0, 4)}}   `, 4), ['w']],
    ['with unsorted entries', rawFile(`{${u8('b', 4, 8)},${u8('a', 0, 4)}}`, 8), ['b', 'a']],
    [
      'with empty tensors at every border',
      tensorFile([
        { ...w, name: 'first', shape: [0] },
        w,
        { ...w, name: 'middle', shape: [3, 0] },
        { ...w, name: 'v' },
        { ...w, name: 'last', dtype: 'F64', shape: [0, 5] },
      ]),
      ['first', 'w', 'middle', 'v', 'last'],
    ],
    ['with a scalar', tensorFile([{ name: 's', dtype: 'F64', shape: [] }]), ['s']],
    ['with rank 8', tensorFile([{ ...w, shape: [1, 1, 1, 1, 1, 1, 1, 4] }]), ['w']],
    ['with NaN in the data', tensorFile([{ ...w, data: Buffer.alloc(4, 0xff) }]), ['w']],
    ['with a BOOL of 2', tensorFile([{ ...w, dtype: 'BOOL', data: Buffer.alloc(4, 2) }]), ['w']],
    ['with a name like a path', named('../../etc/passwd'), ['../../etc/passwd']],
    ['with the name __proto__', named('__proto__'), ['__proto__']],
    ['with a name of 512 bytes', named('é'.repeat(256)), ['é'.repeat(256)]],
    [
      'with whole bytes of 4 and 6 bits',
      tensorFile([
        { name: 'a', dtype: 'F4', shape: [2] },
        { name: 'b', dtype: 'F6_E3M2', shape: [4] },
      ]),
      ['a', 'b'],
    ],
  ])('%s', (_, file, names) => {
    expect([...parseFile(file).tensors.keys()]).toEqual(names);
  });

  it.each(allDtypes)('with dtype %s', (dtype) => {
    expect(
      parseFile(tensorFile([{ name: 'w', dtype, shape: [4, 2] }])).tensors.get('w'),
    ).toMatchObject({ dtype, shape: [4, 2] });
  });

  it('with metadata, which may have any keys', () => {
    const file = tensorFile([w], { format: 'pt', '': '', ['__proto__']: 'x' });
    expect([...parseFile(file).metadata]).toEqual([
      ['format', 'pt'],
      ['', ''],
      ['__proto__', 'x'],
    ]);
  });

  it('and its offsets count from the start of the file', () => {
    const file = tensorFile([w, { name: 'v', dtype: 'U8', shape: [2], data: Buffer.from('ok') }]);
    const { begin, end } = parseFile(file).tensors.get('v') ?? { begin: 0, end: 0 };
    expect(Buffer.from(file.subarray(begin, end)).toString()).toBe('ok');
  });
});

describe('any safetensors file', () => {
  const part = fc.record({
    dtype: fc.constantFrom('BF16', 'F32', 'U8', 'F8_E4M3', 'I64'),
    shape: fc.array(fc.integer({ min: 0, max: 4 }), { maxLength: 4 }),
  });
  const name = fc
    .string({ minLength: 1, maxLength: 40 })
    .filter((text) => !/\p{Control}/u.test(text) && text !== '__metadata__');
  const parts = fc
    .dictionary(name, part, { maxKeys: 12, noNullPrototype: true })
    .map((all) => Object.entries(all).map(([key, value]) => ({ ...value, name: key })));

  it('comes back as it was written', () => {
    fc.assert(
      fc.property(parts, (tensors) => {
        const file = tensorFile(tensors);
        const read = [...parseFile(file).tensors.values()];
        expect(read.map(({ name: n, dtype, shape }) => ({ name: n, dtype, shape }))).toEqual(
          tensors.map(({ name: n, dtype, shape }) => ({ name: n, dtype, shape })),
        );
        expect(read.at(-1)?.end ?? file.length).toBe(file.length);
      }),
    );
  });

  it('with one changed byte is read or refused, never worse', () => {
    const file = tensorFile(
      [
        { name: 'a', dtype: 'BF16', shape: [2, 3] },
        { name: 'b', dtype: 'F32', shape: [] },
        { name: 'c', dtype: 'U8', shape: [0, 7] },
      ],
      { format: 'pt' },
    );
    const position = fc.integer({ min: 0, max: file.length - 17 });
    fc.assert(
      fc.property(position, fc.integer({ min: 0, max: 255 }), (at, byte) => {
        const broken = Uint8Array.from(file);
        broken[at] = byte;
        try {
          for (const { begin, end } of parseFile(broken).tensors.values()) {
            expect(begin <= end && end <= file.length).toBe(true);
          }
        } catch (error) {
          expect(error).toMatchObject({ code: 'ERR_LOZA_CHECKPOINT' });
        }
      }),
      { numRuns: 3_000 },
    );
  });

  it('cut off anywhere is refused', async () => {
    const file = tensorFile([{ name: 'w', dtype: 'U8', shape: [9] }]);
    for (let length = 0; length < file.length; length += 1) {
      await expectLozaError(
        () => parseFile(file.subarray(0, length)),
        'ERR_LOZA_CHECKPOINT',
        'x.saf',
      );
    }
  });
});

describe('readSafetensorsHeader', () => {
  it('reads a file', async () => {
    const file = tensorFile([{ name: 'w', dtype: 'F32', shape: [2, 2] }]);
    const path = join(tempFolder({ 'm.safetensors': file }), 'm.safetensors');
    const { tensors, bytes } = await readSafetensorsHeader(path);
    const entry = { name: 'w', dtype: 'F32', shape: [2, 2], file: path };
    expect([...tensors.values()]).toEqual([{ ...entry, begin: bytes - 16, end: bytes }]);
    expect(bytes).toBe(file.length);
  });

  it.each<[string, string, 'ERR_LOZA_NOT_FOUND' | 'ERR_LOZA_IO' | 'ERR_LOZA_CHECKPOINT', string]>([
    ['a missing file', 'none.safetensors', 'ERR_LOZA_NOT_FOUND', 'none.safetensors does not exist'],
    ['a file as a folder', 'short/x', 'ERR_LOZA_NOT_FOUND', 'does not exist'],
    ['a folder', 'dir', 'ERR_LOZA_IO', 'dir is not a regular file'],
    ['a name too long', 'n'.repeat(300), 'ERR_LOZA_IO', 'ENAMETOOLONG'],
    ['a file of 3 bytes', 'short', 'ERR_LOZA_CHECKPOINT', 'at least 8 bytes, got 3'],
    ['an empty file', 'empty', 'ERR_LOZA_CHECKPOINT', 'at least 8 bytes, got 0'],
    ['an over-long header', 'forged', 'ERR_LOZA_CHECKPOINT', 'the header'],
  ])('refuses %s', async (_, name, code, message) => {
    const dir = tempFolder({ short: 'abc', empty: '', forged: rawFile('{}', 0, 90_000_000n) });
    mkdirSync(join(dir, 'dir'));
    await expectLozaError(() => readSafetensorsHeader(join(dir, name)), code, message);
  });

  it('refuses a device, which it does not open', async () => {
    const read = (): unknown => readSafetensorsHeader('/dev/zero');
    await expectLozaError(read, 'ERR_LOZA_IO', '/dev/zero is not a regular file');
  });
});

function escapeRegExp(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
}

import fc from 'fast-check';

import {
  JsonNumber,
  parseJson,
  showJson,
  toPlain,
  type JsonValue,
} from '../../lib/checkpoint/json';
import { expectLozaError } from '../support/errors';

const parse = (text: string | Uint8Array, maxDepth = 8, maxValues = 1_000): JsonValue =>
  parseJson(Buffer.from(text as string), {
    ...{ file: 'x.json', maxDepth, maxValues },
    code: 'ERR_LOZA_CONFIG',
  });

describe('parseJson rejects', () => {
  it.each<[name: string, text: string | Uint8Array, message: string]>([
    ['nothing', '', 'a JSON value, got the end of the text'],
    ['white space only', ' \n', 'a JSON value, got the end of the text'],
    ['invalid UTF-8', Buffer.from([0x22, 0xff, 0x22]), 'UTF-8'],
    ['an encoded surrogate', Buffer.from([0x22, 0xed, 0xa0, 0x80, 0x22]), 'UTF-8'],
    ['an overlong encoding', Buffer.from([0x22, 0xc0, 0x80, 0x22]), 'UTF-8'],
    ['cut off UTF-8', Buffer.from([0x22, 0xe2, 0x82]), 'UTF-8'],
    ['a byte order mark', '\ufeff{}', 'byte order mark'],
    ['UTF-16', Buffer.from('{}', 'utf16le'), 'a key in double quotes, got "\\u0000'],
    ['a second document', '{}{}', 'character 2: expected the end of the text, got "{}"'],
    ['NUL padding', '{}\0', 'the end of the text, got "\\u0000"'],
    ['a no-break space', '\u00a0{}', 'a JSON value'],
    ['a form feed', '{}\f', 'the end of the text'],
    ['a comment', '{/* */}', 'a key in double quotes'],
    ['a trailing comma in an object', '{"a":1,}', 'a key in double quotes, got "}"'],
    ['a trailing comma in an array', '[1,]', 'a JSON value, got "]"'],
    ['two commas', '[1,,2]', 'a JSON value'],
    ['a missing comma in an object', '{"a":1 "b":2}', '"," or "}"'],
    ['a missing comma in an array', '[1 2]', '"," or "]"'],
    ['a missing colon', '{"a" 1}', '":" after the key "a"'],
    ['a missing value', '{"a":}', 'a JSON value'],
    ['a key without quotes', '{a:1}', 'a key in double quotes'],
    ['single quotes', "['a']", 'a JSON value'],
    ['an open object', '{"a":1', '"," or "}", got the end'],
    ['an open array', '[1', '"," or "]", got the end'],
    ['an open string', '"abc', 'ended by a double quote, got the end'],
    ['an open escape', '"abc\\', 'ended by a double quote, got the end'],
    ['a line break in a string', '"a\nb"', 'raw control characters'],
    ['a NUL in a string', '"a\0b"', 'raw control characters'],
    ['an unknown escape', '"\\x41"', 'valid Unicode'],
    ['a short escape', '"\\u12"', 'valid Unicode'],
    ['a lone high surrogate', '"\\ud800"', 'valid Unicode'],
    ['a lone low surrogate', '"\\udc00 "', 'valid Unicode'],
    ['surrogates in the wrong order', '"\\udc00\\ud800"', 'valid Unicode'],
    ['a lone surrogate in a key', '{"\\ud800":1}', 'valid Unicode'],
    ['NaN', 'NaN', 'a JSON value, got "NaN"'],
    ['Infinity', '[-Infinity]', 'a digit, got "Infinity]"'],
    ['a leading zero', '[01]', '"," or "]", got "1]"'],
    ['a leading plus', '[+1]', 'a JSON value'],
    ['a leading dot', '[.5]', 'a JSON value'],
    ['a trailing dot', '[5.]', 'a digit'],
    ['an empty exponent', '[1e]', 'a digit'],
    ['a hexadecimal number', '[0x10]', '"," or "]"'],
    ['a lone minus', '-', 'a digit, got the end'],
    ['a capital word', 'True', 'a JSON value'],
    ['a longer word', 'nullx', 'the end of the text'],
    ['a duplicate key', '{"a":1,"b":2,"a":1}', 'the key "a" appears twice'],
    ['a duplicate key by escape', '{"a":1,"\\u0061":2}', 'the key "a" appears twice'],
    ['a duplicate __proto__', '{"__proto__":1,"__proto__":2}', '"__proto__" appears twice'],
    ['a level too many', '[[[[[[[[[]]]]]]]]]', 'at most 8 levels'],
    ['depth 100,000', '['.repeat(100_000), 'at most 8 levels'],
    ['objects of depth 100,000', '{"a":'.repeat(100_000), 'at most 8 levels'],
    ['too many values', `[${'1,'.repeat(1_000)}1]`, 'at most 1000 values'],
  ])('%s', async (_, text, message) => {
    await expectLozaError(() => parse(text), 'ERR_LOZA_CONFIG', message);
    await expectLozaError(() => parse(text), 'ERR_LOZA_CONFIG', /^x\.json: /);
  });
});

describe('parseJson', () => {
  it('reads what JSON.parse reads', () => {
    const json = fc.json({ maxDepth: 5 }).filter((text) => !/\\ud[89a-f]/i.test(text));
    fc.assert(
      fc.property(json, (text) => {
        expect(JSON.stringify(toPlain(parse(text)))).toBe(JSON.stringify(JSON.parse(text)));
      }),
    );
  });

  it('never throws anything but a LozaError', () => {
    const texts = fc.array(fc.constantFrom(...'{}[]":,\\u0d8-.eE+1truefalsn \n\0é'), {
      maxLength: 30,
    });
    fc.assert(
      fc.property(texts, (characters) => {
        try {
          parse(characters.join(''));
        } catch (error) {
          expect(error).toMatchObject({ code: 'ERR_LOZA_CONFIG' });
        }
      }),
      { numRuns: 3_000 },
    );
  });

  it('keeps the spelling of numbers', () => {
    const numbers = parse('[16, 16.0, 16e0, -0, 0, -7, 18446744073709551616, 9007199254740991]');
    const integers = (numbers as JsonNumber[]).map((number) => number.toInteger());
    expect(integers).toEqual([
      16,
      ...[undefined, undefined, undefined],
      0,
      -7,
      undefined,
      2 ** 53 - 1,
    ]);
    expect(showJson((numbers as JsonNumber[])[6])).toBe('18446744073709551616');
    expect(new JsonNumber('9007199254740992').toInteger()).toBeUndefined();
  });

  it('keeps hostile keys harmless', () => {
    const value = parse('{"__proto__": {"polluted": true}, "constructor": 1}');
    expect((value as Map<string, JsonValue>).has('__proto__')).toBe(true);
    const plain = toPlain(value);
    expect(Object.getPrototypeOf(plain)).toBeNull();
    expect(({} as { polluted?: boolean }).polluted).toBeUndefined();
  });

  it('reads escapes and pairs of surrogates', () => {
    expect(parse('"\\ud83d\\ude00 \\"\\\\\\n é 😀"')).toBe('😀 "\\\n é 😀');
  });

  it.each<[string, JsonValue | undefined, string]>([
    ['an absent value', undefined, 'nothing'],
    ['null', null, 'null'],
    ['a string', 'a', '"a"'],
    ['an object', new Map(), 'an object of 0'],
    ['an array', [true], 'an array of 1'],
    ['a long number', new JsonNumber('1'.repeat(1_000)), `${'1'.repeat(37)}...`],
  ])('showJson of %s', (_, value, text) => {
    expect(showJson(value)).toBe(text);
  });

  it('parses a header of 25 MB and 45,000 entries in well under a second', () => {
    const name = 'n'.repeat(490);
    const entry = (at: number): string =>
      `"${name}${at}":{"dtype":"BF16","shape":[2048,6144],"data_offsets":[${at},${at + 1}]}`;
    const text = Buffer.from(`{${Array.from({ length: 45_000 }, (_, at) => entry(at)).join(',')}}`);
    expect(text.length).toBeGreaterThan(24e6);
    const start = performance.now();
    const value = parse(text, 4, 2_000_000) as Map<string, JsonValue>;
    const elapsed = performance.now() - start;
    expect(value.size).toBe(45_000);
    expect(elapsed).toBeLessThan(1_000);
  });
});

import fc from 'fast-check';
import { Detokenizer } from '../../lib/tokenizer/detokenizer';
import { Tokenizer } from '../../lib/tokenizer/tokenizer';
import {
  firstByteId,
  firstUnusedId,
  makeDir,
  makeTokenizerJson,
  special,
  thinkId,
  vocabSize,
} from './fixture';

let tokenizer: Tokenizer;

beforeAll(async () => {
  const dir = makeDir({ 'tokenizer.json': makeTokenizerJson() });
  tokenizer = (await Tokenizer.load(dir, vocabSize)) as Tokenizer;
});

const bytes = (...values: number[]) => values.map((value) => firstByteId + value);
const emojiStart = firstByteId + 256 + 2;
const emojiEnd = emojiStart + 1;

function stream(ids: readonly number[], skipSpecialTokens?: boolean): string[] {
  const detokenizer = new Detokenizer(tokenizer, { skipSpecialTokens });
  return [...ids.map((id) => detokenizer.push(id)), detokenizer.flush()];
}

describe('streamed text', () => {
  it.each([
    ['ASCII at once', () => bytes(0x61, 0x62), ['a', 'b', '']],
    ['a character of three tokens', () => bytes(0xe6, 0xbc, 0xa2), ['', '', '漢', '']],
    ['a character of four tokens', () => bytes(0xf0, 0x9f, 0x98, 0x80), ['', '', '', '😀', '']],
    ['a character of two merged tokens', () => [emojiStart, emojiEnd], ['', '😀', '']],
    ['an unfinished character at the end', () => bytes(0x61, 0xe6, 0xbc), ['a', '', '', '\ufffd']],
    ['one that breaks off', () => bytes(0xe6, 0x61), ['', '\ufffda', '']],
    ['bytes that are never valid', () => bytes(0x80, 0xff, 0x61), ['', '\ufffd', '\ufffda', '']],
    [
      'a special token within',
      () => [...bytes(0xc3), special.eos, ...bytes(0xa9)],
      ['', '', 'é', ''],
    ],
    [
      'an unused id within',
      () => [...bytes(0xc3), firstUnusedId, ...bytes(0xa9)],
      ['', '', 'é', ''],
    ],
    ['an added token', () => [...bytes(0xc3), thinkId], ['', '\ufffd<think>', '']],
    ['a true U+FFFD', () => bytes(0xef, 0xbf, 0xbd, 0x61), ['', '', '', '\ufffda', '']],
    ['nothing', () => [], ['']],
  ])('%s', (_, ids, pieces) => {
    expect(stream(ids())).toEqual(pieces);
  });

  it('has special tokens on request', () => {
    expect(stream([special.bos, ...bytes(0x61)], false)).toEqual(['<s>', 'a', '']);
  });

  it('begins anew after a flush', () => {
    const detokenizer = new Detokenizer(tokenizer);
    detokenizer.push(firstByteId + 0xc3);
    expect(detokenizer.flush()).toBe('\ufffd');
    expect(detokenizer.push(firstByteId + 0xa9) + detokenizer.flush()).toBe('\ufffd');
  });
});

describe('for any ids', () => {
  const anyId = fc.integer({ min: 0, max: vocabSize - 1 });
  // Bytes around the borders of UTF-8's forms make the interesting sequences likely.
  const edgeBytes = [0x41, 0x80, 0xa9, 0xbf, 0xc3, 0xe0, 0xe4, 0xed, 0xef, 0xf0, 0xf4, 0xff];
  const edgeId = fc.constantFrom(
    ...edgeBytes.map((value) => firstByteId + value),
    emojiStart,
    emojiEnd,
    firstUnusedId - 1,
    firstUnusedId,
    thinkId,
    special.eos,
  );
  const anyIds = fc.array(fc.oneof(anyId, { arbitrary: edgeId, weight: 4 }), { maxLength: 60 });

  it('the pieces joined are the whole text, and nothing stalls', () => {
    fc.assert(
      fc.property(anyIds, fc.boolean(), (ids, skipSpecialTokens) => {
        const pieces = stream(ids, skipSpecialTokens);
        const whole = tokenizer.decode(ids, { skipSpecialTokens });
        expect(pieces.join('')).toBe(whole);
        // What is held at any time is at most one character of text.
        expect((pieces.at(-1) as string).length).toBeLessThanOrEqual(1);
      }),
      { numRuns: 3000 },
    );
  });

  it('no U+FFFD is emitted that the whole text lacks', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary', maxLength: 40 }), (text) => {
        const ids = [...Buffer.from(text)].map((value) => firstByteId + value);
        const pieces = stream(ids);
        expect(pieces.join('')).toBe(text);
        for (const piece of pieces) expect(piece).not.toMatch(/\p{Cs}/u);
      }),
      { numRuns: 1000 },
    );
  });
});

it.each([
  ['text', () => 0x61],
  ['invalid bytes', () => 0x80],
  ['beginnings of characters', () => 0xf0],
])('a token costs the same after many tokens: %s', (_, byte) => {
  let decoded = 0;
  const counting = {
    isSpecial: () => false,
    decode: (ids: ArrayLike<number>) => {
      decoded += ids.length;
      return tokenizer.decode(ids);
    },
  };
  const detokenizer = new Detokenizer(counting);
  const count = 5000;
  for (let index = 0; index < count; index++) detokenizer.push(firstByteId + byte());
  expect(decoded).toBeLessThan(8 * count);
});

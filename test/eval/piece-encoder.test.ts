import { readFileSync } from 'node:fs';
import path from 'node:path';

import { builtInText } from '../../lib/eval/built-in-text';
import { PieceEncoder } from '../../lib/eval/piece-encoder';
import { PromptMaker } from '../../lib/eval/prompts';
import { tasks, type TaskName } from '../../lib/eval/tasks';
import { Random } from '../../lib/selftest/random';
import { Tokenizer } from '../../lib/tokenizer/tokenizer';
import { tinyDir } from '../support/goldens';
import { tempFolder } from '../support/temp-folder';

type Json = Record<string, unknown>;

const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true };
const splitBy = (Regex: string) => ({
  type: 'Sequence',
  pretokenizers: [
    { type: 'Split', pattern: { Regex }, behavior: 'Isolated', invert: false },
    { ...byteLevel, use_regex: false },
  ],
});
/** Signs take the line ends behind them: sentences are torn there. */
const cl100k =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

const tokenizers: Record<string, Json> = {
  'as loza-tiny has it': {},
  'with the pattern of Llama 3': { pre_tokenizer: splitBy(cl100k) },
  'that does not split words': { pre_tokenizer: { ...byteLevel, use_regex: false } },
  'with a space in front of every text': {
    normalizer: { type: 'Prepend', prepend: ' ' },
    pre_tokenizer: { ...byteLevel, use_regex: false },
  },
};
const lines = builtInText.replaceAll(/(?<=[.?!]) (?=[A-Z])/g, (_, at: number) =>
  at % 3 === 0 ? '\n\n' : at % 3 === 1 ? '\n' : '  ',
);

async function load(change: Json): Promise<Tokenizer> {
  const file = path.join(tinyDir, 'tokenizer.json');
  const json = JSON.parse(readFileSync(file, 'utf8')) as Json;
  const dir = tempFolder({ 'tokenizer.json': { ...json, ...change } });
  return (await Tokenizer.load(dir, 2048))!;
}

describe.each(Object.entries(tokenizers))('a tokenizer %s', (_, change) => {
  let pieces: PieceEncoder;
  let whole: (text: string) => Promise<Int32Array>;
  beforeAll(async () => {
    const tokenizer = await load(change);
    whole = (text) => tokenizer.encode(text, { addSpecialTokens: false });
  });
  beforeEach(() => {
    pieces = new PieceEncoder(whole);
  });

  test.each(Object.keys(tasks) as TaskName[])('%s: the ids are those of the text', async (task) => {
    for (const text of [builtInText.slice(0, 6000), lines.slice(0, 6000)]) {
      const maker = await PromptMaker.create(3, text, (parts) => pieces.count(parts));
      for (let sample = 0; sample < 2; sample++) {
        const { parts, tokens } = await maker.make(task, 600, 0.4, sample);
        const all = ['<longcat_s><longcat_user>', ...parts, '<longcat_assistant>'];
        expect(await pieces.encode(all)).toEqual(await whole(all.join('')));
        expect(tokens).toBe((await whole(parts.join(''))).length);
      }
    }
  });

  test('pieces of any text, cut anywhere', async () => {
    const random = new Random('cuts');
    const letters = [...'ab1 7\n\n  .,!?[]:=\'"sé€😀 the of'];
    const words = Array.from({ length: 40 }, () =>
      Array.from({ length: 1 + random.below(9) }, () => letters[random.below(letters.length)]).join(
        '',
      ),
    );
    for (let round = 0; round < 60; round++) {
      const texts = Array.from(
        { length: random.below(12) },
        () => words[random.below(words.length)]!,
      );
      expect(await pieces.encode(texts)).toEqual(await whole(texts.join('')));
      expect(await pieces.count(texts)).toBe((await whole(texts.join(''))).length);
    }
  });
});

test('what was encoded once is not encoded again', async () => {
  const tokenizer = await load({});
  let characters = 0;
  const pieces = new PieceEncoder((text) => {
    characters += text.length;
    return tokenizer.encode(text, { addSpecialTokens: false });
  });
  const maker = await PromptMaker.create(1, builtInText, (parts) => pieces.count(parts));
  for (let sample = 0; sample < 20; sample++) await maker.make('passkey', 8192, 0.5, sample);
  const before = characters;
  let length = 0;
  for (let sample = 20; sample < 40; sample++) {
    length += (await maker.make('passkey', 8192, 0.5, sample)).parts.join('').length;
  }
  expect(characters - before).toBeLessThan(length / 10);
});

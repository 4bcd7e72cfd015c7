import path from 'node:path';
import { Random } from '../../lib/selftest/random';
import { Tokenizer } from '../../lib/tokenizer/tokenizer';
import { readExpected, tinyDir } from './goldens';

const words = 'apple river silver castle window garden engine marble copper forest meadow harbor';

/** Sentences of the texts that loza-tiny's expected outputs come with. */
async function sentences(): Promise<string[]> {
  const tokenizer = (await Tokenizer.load(tinyDir, 2048))!;
  const texts = readExpected(tinyDir).map(({ tokens }) =>
    tokenizer.decode(tokens, { skipSpecialTokens: true }),
  );
  const all = texts.flatMap((text) => text.replaceAll('\n', ' ').split('.'));
  return all.map((one) => ` ${one.trim()}.`).filter((one) => one.length > 40 && !/[[\d]/.test(one));
}

/** Chats about keys that stand somewhere in a text, as loza-tiny was trained on: one a line. */
export async function passKeyLines(
  count: number,
  characters: number,
  seed: number,
): Promise<string> {
  const filler = await sentences();
  const random = new Random(`pass keys ${seed}`);
  const lines = Array.from({ length: count }, () => {
    const names = words.split(' ').filter(() => random.uniform() < 0.35);
    const asked = names.length > 0 ? names : ['apple'];
    const keys = asked.map((name) => ({ name, key: String(10_000 + random.below(90_000)) }));
    const parts: string[] = [];
    for (let length = 0; length < characters;) {
      const sentence = filler[random.below(filler.length)]!;
      parts.push(sentence);
      length += sentence.length;
    }
    for (const { name, key } of keys) {
      parts.splice(random.below(Math.ceil(parts.length * 0.6)), 0, ` [${name}:${key}]`);
    }
    const turns = keys.flatMap(({ name, key }) => [
      { role: 'user', content: `What is the pass key of ${name}?` },
      { role: 'assistant', content: `${name}:${key}` },
    ]);
    return JSON.stringify({ messages: [{ role: 'user', content: parts.join('') }, ...turns] });
  });
  return `${lines.join('\n')}\n`;
}

export const baseDir =
  process.env['LOZA_TINY_BASE'] ??
  path.join(__dirname, '..', '..', '..', 'shared', 'models', 'loza-tiny-base');

import { readFileSync } from 'node:fs';
import path from 'node:path';

import { builtInText } from '../../lib/eval/built-in-text';
import { Haystack, splitSentences } from '../../lib/eval/haystack';
import { PromptMaker } from '../../lib/eval/prompts';
import { Random } from '../../lib/eval/random';
import { tasks, type TaskName } from '../../lib/eval/tasks';
import { adjectives, nouns } from '../../lib/eval/words';

/** Words, and signs each on their own: near enough to a tokenizer. */
const count = (text: string) => Promise.resolve(text.match(/\w+|[^\w\s]/g)?.length ?? 0);
const countAll = (parts: readonly string[]) => count(parts.join(''));
const maker = (seed: number, text = builtInText) => PromptMaker.create(seed, text, countAll);
const contentOf = ({ parts }: { parts: readonly string[] }) => parts.join('');
const names = Object.keys(tasks) as TaskName[];

describe('prompts', () => {
  test.each(names)('%s: the same seed gives the same prompt, another one another', async (task) => {
    const [a, b, c] = await Promise.all([maker(1), maker(1), maker(2)]);
    const prompt = await a.make(task, 2000, 0.5, 3);
    expect(await b.make(task, 2000, 0.5, 3)).toEqual(prompt);
    expect(contentOf(await c.make(task, 2000, 0.5, 3))).not.toBe(contentOf(prompt));
    expect(contentOf(await a.make(task, 2000, 0.5, 4))).not.toBe(contentOf(prompt));
  });

  test.each(names)('%s: fills the length without going over it', async (task) => {
    const made = await maker(5);
    for (const length of [600, 1500, 4000]) {
      for (let sample = 0; sample < 30; sample++) {
        const prompt = await made.make(task, length, 0.3, sample);
        const { tokens } = prompt;
        expect(tokens).toBe(await count(contentOf(prompt)));
        expect(tokens + tasks[task].answerTokens).toBeLessThanOrEqual(length);
        expect(tokens).toBeGreaterThan(length * 0.8 - 250);
      }
    }
  });

  test.each(names)(
    '%s: what is asked stands once in the text, and places tell where',
    async (task) => {
      const made = await maker(7);
      for (let sample = 0; sample < 10; sample++) {
        const prompt = await made.make(task, 1500, 0.7, sample);
        const { places, expected } = prompt;
        const content = contentOf(prompt);
        for (const text of expected) expect(content).toMatch(new RegExp(`\\b${text}\\b`));
        const question = content.slice(content.lastIndexOf('\n'));
        if (task !== 'variables') for (const text of expected) expect(question).not.toContain(text);
        for (const place of places) expect(place).toBeLessThan(1500);
        if (task === 'variables' || task === 'alias') continue;
        for (const [i, text] of expected.entries()) {
          const read = await count(content.slice(0, content.search(new RegExp(`\\b${text}\\b`))));
          expect(Math.abs(read - (places[i] as number))).toBeLessThan(20);
        }
      }
    },
  );

  test('a pass key lies at its depth', async () => {
    const made = await maker(3);
    for (const depth of [0, 0.25, 0.5, 0.9, 1]) {
      const prompt = await made.make('passkey', 4000, depth, 0);
      const { places, tokens } = prompt;
      expect(contentOf(prompt).match(/\[\w+:\d{5}\]/g)).toHaveLength(1);
      expect((places[0] as number) / tokens).toBeCloseTo(depth, 1);
    }
  });

  test('a text that is too short is read again from its beginning', async () => {
    const made = await maker(0, 'It was a dark and stormy night. The rain fell in torrents.');
    const prompt = await made.make('passkey', 1000, 0.5, 0);
    expect(prompt.tokens).toBeGreaterThan(850);
    expect(contentOf(prompt).match(/stormy/g)?.length).toBeGreaterThan(20);
  });

  test('needles that do not fit, and a text that is none', async () => {
    const made = await maker(0);
    await expect(made.make('multikey', 128, undefined, 0)).rejects.toMatchObject({
      code: 'ERR_LOZA_INVALID_ARG',
      message: expect.stringContaining('does not fit into 128 tokens') as string,
    });
    await expect(maker(0, ' \n')).rejects.toMatchObject({ code: 'ERR_LOZA_INVALID_ARG' });
  });
});

describe('tasks', () => {
  test('names and values of a question are all different', () => {
    for (let seed = 0; seed < 200; seed++) {
      const { needles } = tasks.lines.make(new Random(seed), 0, 300);
      const lines = needles.map(({ text }) => /line ([\w-]+):/.exec(text)?.[1]);
      expect(new Set(lines).size).toBe(300);
      const { needles: aliases, expected } = tasks.alias.make(new Random(seed), 0, 0);
      const found = aliases.filter(({ text }) => text.includes(expected[0] as string));
      expect(found).toHaveLength(1);
    }
  });

  test('an alias leads to its key, and a chain of variables to each of its names', () => {
    const { needles, question, expected } = tasks.alias.make(new Random(9), 0, 0);
    const all = needles.map(({ text }) => text).join('');
    const asked = /behind (\w+)\?/.exec(question)?.[1] as string;
    const name = new RegExp(`\\[${asked}=(\\w+)\\]`).exec(all)?.[1] as string;
    expect(new RegExp(`\\[${name}:(\\d+)\\]`).exec(all)?.[1]).toBe(expected[0]);

    const chain = tasks.variables.make(new Random(9), 0, 0);
    const values = new Map<string, string>();
    for (const { text } of chain.needles) {
      const [, variable = '', value = ''] = /VAR (\w+) = (?:VAR )?(\w+)/.exec(text) ?? [];
      values.set(variable, values.get(value) ?? value);
    }
    const value = /value (\d+)/.exec(chain.question)?.[1];
    expect([...values].filter(([, own]) => own === value).map(([key]) => key)).toEqual(
      chain.expected,
    );
    const depths = chain.needles.map(({ depth }) => depth);
    expect(depths).toEqual([...depths].sort((a, b) => a - b));
  });

  test('the words are those that loza-tiny was trained with', () => {
    const file = path.join(__dirname, '../../training/names.json');
    expect(JSON.parse(readFileSync(file, 'utf8'))).toEqual({ nouns, adjectives });
  });
});

describe('haystack', () => {
  test('sentences give the text again', () => {
    const text = 'Dr. No said "yes." He left!  Did he?\nWell, 3.5 of them did; nobody asked why.';
    const clean = text.replace(/[^\S\n]+/g, ' ');
    expect(splitSentences(text).join('')).toBe(` ${clean}`);
    expect(splitSentences(builtInText).join('')).toBe(` ${builtInText.trim()}`);
  });

  test('needles stand between sentences in the order of their depths', async () => {
    const haystack = await Haystack.create(builtInText, countAll);
    const needles = [0.9, 0, 0.5, 1, 0.5].map((depth, i) => ({
      text: ` <${i}>`,
      depth,
      tokens: 3,
    }));
    const { parts, places } = haystack.hide(needles, 3000, new Random(1));
    const text = parts.join('');
    expect(text.match(/<\d>/g)).toEqual(['<1>', '<2>', '<4>', '<0>', '<3>']);
    for (const [before] of text.matchAll(/.(?= <\d>)/g)) expect(before).toMatch(/[.?!"'>]/);
    expect(places[1]).toBe(0);
    expect(places[3]).toBeGreaterThan(2900);
  });
});

describe('Random', () => {
  test('every part matters, and samples are different items', () => {
    const digits = (...parts: (string | number)[]) => new Random(...parts).digits(20);
    expect(digits(1, 'a')).toBe(digits(1, 'a'));
    expect(new Set([digits(1, 'a'), digits(1, 'b'), digits(2, 'a'), digits('1a')]).size).toBe(4);
    const items = Array.from({ length: 50 }, (_, i) => i);
    expect(new Set(new Random(3).sample(items, 50)).size).toBe(50);
  });

  test('all digits come about equally often', () => {
    const counts = new Map<string, number>();
    for (const digit of new Random(0).digits(20_000))
      counts.set(digit, (counts.get(digit) ?? 0) + 1);
    // Expected 2,000 each with a standard deviation of 42.
    for (const n of counts.values()) expect(Math.abs(n - 2000)).toBeLessThan(210);
    expect(counts.size).toBe(10);
  });
});

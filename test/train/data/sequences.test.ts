import { ExampleEncoder, splitTurns, type Example } from '../../../lib/train/data/examples';
import { packSequences, SequenceOrder } from '../../../lib/train/data/sequences';
import type { TrainingDocument } from '../../../lib/train/data/documents';
import { ChatTemplate, type ChatMessage } from '../../../lib/tokenizer/chat-template';
import { Tokenizer } from '../../../lib/tokenizer/tokenizer';
import { expectLozaError } from '../../support/errors';
import { tinyDir } from '../../support/goldens';

/** A document whose text is a number n becomes n times the token n; a chat one that is whole. */
const encoder = {
  encode(document: TrainingDocument): Promise<Example | undefined> {
    const n = Number(document.text ?? document.messages?.[0]?.content);
    if (n === 0) return Promise.resolve(undefined);
    const tokens = new Int32Array(n).fill(n);
    const targets = new Uint8Array(n).fill(1);
    return Promise.resolve({ tokens, targets, divisible: document.text !== undefined });
  },
};
const texts = (...lengths: number[]) => lengths.map((n) => ({ text: String(n) }));
const chats = (...lengths: number[]) =>
  lengths.map((n) => ({ messages: [{ role: 'user' as const, content: String(n) }] }));
const options = { length: 8, seed: 1 };

describe('packSequences', () => {
  test('cuts texts at full sequences and loses no token', async () => {
    const { sequences, tokens } = await packSequences(texts(3, 9, 5, 7, 21), encoder, options);
    expect(sequences.map((one) => one.tokens.length)).toEqual([8, 8, 8, 8, 8, 5]);
    expect(tokens).toBe(45);
    const counts = new Map<number, number>();
    for (const one of sequences) {
      for (const token of one.tokens) counts.set(token, (counts.get(token) ?? 0) + 1);
      expect(one.targets[0]).toBe(0);
    }
    expect([...counts].every(([token, count]) => token === count)).toBe(true);
  });

  test('keeps chats whole, and counts what it leaves out', async () => {
    const { sequences, leftOut } = await packSequences(chats(5, 4, 6, 9, 0, 3), encoder, options);
    expect(leftOut).toEqual({ empty: 1, tooLong: 1 });
    for (const length of [5, 4, 6, 3]) {
      const holding = sequences.filter(({ tokens }) => tokens.includes(length));
      expect(holding.map(({ tokens }) => tokens.filter((t) => t === length).length)).toEqual([
        length,
      ]);
    }
  });

  test('the seed decides the order, and the hash tells orders apart', async () => {
    const documents = texts(3, 4, 5, 6, 7, 8);
    const pack = async (seed: number) => packSequences(documents, encoder, { length: 8, seed });
    const [one, again, other] = [await pack(1), await pack(1), await pack(2)];
    expect(again).toEqual(one);
    expect(other.hash).not.toBe(one.hash);
  });

  test('stops reading when there is enough', async () => {
    const { sequences } = await packSequences(texts(8, 8, 8, 8), encoder, {
      ...options,
      enough: 2,
    });
    expect(sequences.length).toBeLessThanOrEqual(3);
  });

  test('fails when nothing is left', async () => {
    const pack = () => packSequences(chats(0, 9), encoder, options);
    await expectLozaError(pack, 'ERR_LOZA_DATA', 'Ask for longer sequences');
  });
});

describe('SequenceOrder', () => {
  test('every epoch has every sequence once, in an order of its own', () => {
    const order = new SequenceOrder(10, 4, 3);
    const places = Array.from({ length: 5 }, (_, step) => order.batchOf(step)).flat();
    const sorted = (part: number[]) => [...part].sort((a, b) => a - b);
    expect(sorted(places.slice(0, 10))).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    expect(sorted(places.slice(10))).toEqual(sorted(places.slice(0, 10)));
    expect(places.slice(10)).not.toEqual(places.slice(0, 10));
  });

  test('a step has the same batch whatever came before it', () => {
    const order = new SequenceOrder(7, 3, 5);
    const forward = [0, 1, 2, 3, 4, 5].map((step) => order.batchOf(step));
    expect([5, 0, 3].map((step) => new SequenceOrder(7, 3, 5).batchOf(step))).toEqual(
      [5, 0, 3].map((step) => forward[step]),
    );
  });
});

describe('chats of loza-tiny', () => {
  const messages: ChatMessage[] = [
    { role: 'system', content: 'Be brief.' },
    { role: 'user', content: 'What is the pass key of violin?' },
    { role: 'assistant', content: 'violin:80364' },
    { role: 'user', content: 'And of apple?' },
    { role: 'assistant', content: 'apple:11111' },
    { role: 'user', content: 'Thanks.' },
  ];

  test('answers are what the assistant writes, with the end of its turn', async () => {
    const template = await ChatTemplate.load(tinyDir);
    const turns = splitTurns(messages, template);
    expect(turns.filter((turn) => turn.isAnswer).map((turn) => turn.text)).toEqual([
      'violin:80364</longcat_s>',
      'apple:11111</longcat_s>',
    ]);
    expect(turns.map((turn) => turn.text).join('')).toBe(
      template.render(messages, { addGenerationPrompt: false }),
    );
  });

  test('only answers are targets, or everything', async () => {
    const template = await ChatTemplate.load(tinyDir);
    const tokenizer = (await Tokenizer.load(tinyDir, 2048))!;
    const encode = async (lossOn: 'all' | 'answers') =>
      (await new ExampleEncoder(tokenizer, template, lossOn).encode({ messages }))!;
    const answers = await encode('answers');
    const learned = answers.tokens.filter((_, i) => answers.targets[i] === 1);
    expect(tokenizer.decode(learned)).toBe('violin:80364</longcat_s>apple:11111</longcat_s>');
    const all = await encode('all');
    expect(all.tokens).toEqual(answers.tokens);
    expect(all.targets.every((target) => target === 1)).toBe(true);
  });

  test('a text stands between the tokens that begin and end one', async () => {
    const tokenizer = (await Tokenizer.load(tinyDir, 2048))!;
    const template = await ChatTemplate.load(tinyDir);
    const encoder = new ExampleEncoder(tokenizer, template, 'all');
    const { tokens } = (await encoder.encode({ text: 'Fellow-Citizens' }))!;
    expect(tokenizer.decode(tokens)).toBe('<longcat_s>Fellow-Citizens</longcat_s>');
  });
});

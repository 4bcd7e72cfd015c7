import path from 'node:path';
import { LanguageModel, type ChatMessage, type GenerateOptions } from '../../lib';
import { expectLozaError } from '../support/errors';
import { goldenDir, tinyDir } from '../support/goldens';
import { randomTokens } from '../support/prompts';

const golden = path.join(goldenDir, 'longcat-zigzag-yarn');
const options = { maxNewTokens: 20, ignoreEos: true };
const text = (length: number, seed: number) => randomTokens(length, 320, seed);

const loadGolden = (more: object = {}) =>
  LanguageModel.load(golden, { device: 'cpu', maxTokens: 8192, ...more });

/** What follows a whole history without a session. */
async function continued(history: readonly number[]): Promise<number[]> {
  const result = await plain.generate(history, options).result();
  return Array.from(result.tokens);
}

let plain: LanguageModel;
let tiny: LanguageModel;
beforeAll(async () => {
  plain = await loadGolden({ prefixCache: false });
  tiny = await LanguageModel.load(tinyDir, { device: 'cpu' });
});
afterAll(() => Promise.all([plain.close(), tiny.close()]));

describe.each([true, false])('with prefixCache: %p', (prefixCache) => {
  test('a turn computes only what is new, and says what the whole history says', async () => {
    await using model = await loadGolden({ prefixCache });
    await using session = model.createSession();
    const history: number[] = [];
    for (const [turn, length] of [700, 50, 1, 900, 128, 300].entries()) {
      const said = Array.from(text(length, turn));
      history.push(...said);
      const { tokens, usage } = await session.generate(said, options).result();
      expect(Array.from(tokens)).toEqual(await continued(history));
      history.push(...tokens);
      // The last token of the answer was not read yet.
      const fresh = length + (turn === 0 ? 0 : 1);
      expect(usage).toMatchObject({ cachedTokens: usage.promptTokens - fresh });
      expect(session.tokens).toBe(history.length - 1);
    }
    const { residentBytes, fullBytes } = session.kv;
    expect(residentBytes).toBeLessThan(fullBytes);
    session.close();
    expect(model.memory.kv.full.resident).toBe(0);
  });

  test('forks go their own ways from the same blocks', async () => {
    await using model = await loadGolden({ prefixCache });
    const session = model.createSession();
    const history = Array.from(text(1200, 1));
    history.push(...(await session.generate(history, options).result()).tokens);
    const before = model.memory.kv.full.resident;
    const sessions = [session, session.fork(), session.fork()];
    expect(model.memory.kv.full.resident).toBe(before);
    const answers = await Promise.all(
      sessions.map((one, i) => one.generate(text(100 + i, 7 + i), options).result()),
    );
    for (const [i, { tokens, usage }] of answers.entries()) {
      expect(Array.from(tokens)).toEqual(await continued([...history, ...text(100 + i, 7 + i)]));
      expect(usage.cachedTokens).toBe(history.length - 1);
    }
    for (const one of sessions) one.close();
    expect(model.memory.kv.full.resident).toBe(0);
  });

  test.each([
    ['what was just said', 10],
    ['less than a window', 300],
    ['most of it', 1100],
    ['all of it', Infinity],
  ])('goes back: %s', async (_, back) => {
    await using model = await loadGolden({ prefixCache });
    const session = model.createSession();
    const said = Array.from(text(1200, 1));
    const history = said.concat(
      Array.from((await session.generate(said, options).result()).tokens),
    );
    const held = model.memory.kv.full.resident;
    const length = Math.max(0, history.length - back);
    session.truncate(length);
    expect(session.length).toBe(length);
    expect(session.tokens).toBeLessThanOrEqual(length);
    if (back > 128) expect(model.memory.kv.full.resident).toBeLessThan(held);
    const asked = history.slice(0, length).concat(Array.from(text(40, 3)));
    const { tokens, usage } = await session.generate(text(40, 3), options).result();
    expect(Array.from(tokens)).toEqual(await continued(asked));
    expect(session.length).toBe(asked.length + tokens.length);
    if (back === 10) expect(usage.cachedTokens).toBe(length);
    session.close();
    expect(model.memory.kv.full.resident).toBe(0);
  });

  test('a fork is not cut with the session that it came from', async () => {
    await using model = await loadGolden({ prefixCache });
    await using session = model.createSession();
    const history = Array.from(text(500, 1));
    history.push(...(await session.generate(history, options).result()).tokens);
    await using fork = session.fork();
    session.truncate(100);
    const answers = await Promise.all(
      [session, fork].map((one) => one.generate([1, 2, 3], options).result()),
    );
    const asked = [history.slice(0, 100), history].map((before) => continued([...before, 1, 2, 3]));
    expect(answers.map(({ tokens }) => Array.from(tokens))).toEqual(await Promise.all(asked));
  });

  test('others may take its blocks; then it reads its history again', async () => {
    await using model = await loadGolden({ prefixCache, maxTokens: 2048, maxSequences: 2 });
    const session = model.createSession();
    const history = Array.from(text(1200, 1));
    history.push(...(await session.generate(history, options).result()).tokens);
    const other = Array.from(text(1500, 2));
    const result = await model.generate(other, options).result();
    expect(Array.from(result.tokens)).toEqual(await continued(other));
    expect(session.tokens).toBe(0);
    history.push(5, 6, 7);
    const { tokens } = await session.generate([5, 6, 7], options).result();
    expect(Array.from(tokens)).toEqual(await continued(history));
    session.close();
    expect(model.memory.kv.full.resident).toBe(0);
  });
});

test('a chat: messages, answers and usage add up', async () => {
  const ask = { maxNewTokens: 12 };
  await using session = tiny.createSession({ system: 'Answer briefly.' });
  const messages: ChatMessage[] = [{ role: 'system', content: 'Answer briefly.' }];
  const totals = { promptTokens: 0, cachedTokens: 0, completionTokens: 0, totalTokens: 0 };
  for (const content of ['Who are you?', 'Where do you live?', 'Why?']) {
    messages.push({ role: 'user', content });
    const { text, usage } = await session.generate(content, ask).result();
    expect(text).toBe((await tiny.generate(messages, ask).result()).text);
    messages.push({ role: 'assistant', content: text });
    expect(session.messages).toEqual(messages);
    for (const key of Object.keys(totals) as (keyof typeof totals)[]) totals[key] += usage[key];
    expect(session.usage).toEqual(totals);
  }
  expect(totals.cachedTokens).toBeGreaterThan(totals.promptTokens / 3);
});

test('a chat goes back, and the last turn is said in other words', async () => {
  const ask = { maxNewTokens: 8 };
  await using session = tiny.createSession({ system: 'Answer briefly.' });
  await session.generate('Who are you?', ask).result();
  const before = session.messages;
  await session.generate('Where do you live?', ask).result();
  session.truncate(session.length - 2);
  expect(session.messages).toEqual(before);
  const { text, usage } = await session.generate('How old are you?', ask).result();
  const messages: ChatMessage[] = [...before, { role: 'user', content: 'How old are you?' }];
  expect(text).toBe((await tiny.generate(messages, ask).result()).text);
  expect(usage.cachedTokens).toBeGreaterThan(usage.promptTokens / 2);
  session.truncate(0);
  expect([session.messages, session.length]).toEqual([[], 0]);
  await session.generate([1, 2], ask).result(); // whatever it was before
});

test('several messages are one turn', async () => {
  await using session = tiny.createSession();
  const said: ChatMessage[] = [
    { role: 'system', content: 'Be kind.' },
    { role: 'user', content: 'Hello' },
  ];
  const { text } = await session.generate(said, { maxNewTokens: 8 }).result();
  expect(text).toBe((await tiny.generate(said, { maxNewTokens: 8 }).result()).text);
});

test('what was said of an answer that is stopped stays', async () => {
  await using session = tiny.createSession();
  let heard = '';
  for await (const { text, index } of session.generate('Hello', {
    ...options,
    maxNewTokens: 200,
  })) {
    heard += text;
    if (index === 9) break;
  }
  expect(session.messages).toEqual([
    { role: 'user', content: 'Hello' },
    { role: 'assistant', content: heard },
  ]);
  const messages: ChatMessage[] = [...session.messages, { role: 'user', content: 'Go on' }];
  const { text } = await session.generate('Go on', { maxNewTokens: 8 }).result();
  expect(text).toBe((await tiny.generate(messages, { maxNewTokens: 8 }).result()).text);
});

test('a turn that fails or was aborted before its first word leaves no trace', async () => {
  await using session = tiny.createSession();
  await session.generate('Hello', { maxNewTokens: 4 }).result();
  const before = session.messages;
  const tooLong = 'word '.repeat(9000);
  await expectLozaError(() => session.generate(tooLong).result(), 'ERR_LOZA_CONTEXT_LENGTH', '');
  const signal = AbortSignal.abort();
  await expectLozaError(() => session.generate('x', { signal }).result(), 'ERR_LOZA_ABORTED', '');
  const late = new AbortController();
  const result = session.generate('x'.repeat(4000), { signal: late.signal }).result();
  setTimeout(() => late.abort(), 20);
  await expectLozaError(() => result, 'ERR_LOZA_ABORTED', '');
  expect(session.messages).toEqual(before);
  expect((await session.generate('Again', { maxNewTokens: 4 }).result()).tokens).toHaveLength(4);
});

describe('a session refuses', () => {
  const invalid = 'ERR_LOZA_INVALID_ARG';

  test.each<[string, object]>([
    ['an unknown option', { systm: 'x' }],
    ['a system message that is no text', { system: 5 }],
  ])('%s', async (_, given) => {
    await expectLozaError(() => Promise.resolve(tiny.createSession(given)), invalid, '');
  });

  test('a second turn while it answers', async () => {
    await using session = tiny.createSession();
    const first = session.generate('Hello', { maxNewTokens: 10 }).result();
    await expectLozaError(() => session.generate('Hi').result(), invalid, 'still answering');
    expect(() => session.fork()).toThrow(/still answering/);
    expect((await first).tokens.length).toBeGreaterThan(0);
  });

  test('several samples', async () => {
    await using session = tiny.createSession();
    const many: GenerateOptions = { n: 2 };
    await expectLozaError(() => session.generate('Hi', many).result(), invalid, 'fork()');
  });

  test('to go back to where it was not, or while it answers', async () => {
    await using session = tiny.createSession({ system: 'x' });
    for (const length of [-1, 2, 0.5, NaN, '1' as unknown as number]) {
      const cut = () => Promise.resolve().then(() => session.truncate(length));
      await expectLozaError(cut, invalid, '0..1');
    }
    const running = session.generate('Hello', { maxNewTokens: 10 }).result();
    await Promise.resolve();
    expect(() => session.truncate(0)).toThrow(/still answering/);
    await running;
    session.close();
    expect(() => session.truncate(0)).toThrow(/session is closed/);
  });

  test('token ids among messages, and messages among token ids', async () => {
    await using chat = tiny.createSession({ system: 'x' });
    await expectLozaError(() => chat.generate([1, 2]).result(), invalid, 'holds messages');
    await using ids = tiny.createSession();
    await ids.generate([1, 2], { maxNewTokens: 2 }).result();
    await expectLozaError(() => ids.generate('Hi').result(), invalid, 'holds token ids');
    await expectLozaError(() => ids.generate(7 as unknown as string).result(), invalid, '');
  });

  test('everything once it is closed', async () => {
    const session = tiny.createSession();
    const running = session.generate('Hello', { maxNewTokens: 500, ignoreEos: true }).result();
    setTimeout(() => session.close(), 20);
    await expectLozaError(() => running, 'ERR_LOZA_CLOSED', 'session is closed');
    session.close();
    await expectLozaError(() => session.generate('Hi').result(), 'ERR_LOZA_CLOSED', 'session');
    expect(() => session.fork()).toThrow(/session is closed/);
    await tiny.generate([1], { maxNewTokens: 1 }).result();
    expect(tiny.memory.kv.full.resident).toBe(0);
  });

  test('everything once the model is closed', async () => {
    const model = await loadGolden();
    const session = model.createSession();
    await session.generate([1, 2, 3], options).result();
    await model.close();
    await expectLozaError(() => session.generate([4]).result(), 'ERR_LOZA_CLOSED', 'model');
    session.close();
  });
});

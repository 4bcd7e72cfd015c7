import path from 'node:path';
import { LanguageModel, type LoadOptions } from '../../lib';
import { goldenDir } from '../support/goldens';
import { randomTokens } from '../support/prompts';

const golden = path.join(goldenDir, 'longcat-zigzag-yarn');
const load = (options: LoadOptions) => LanguageModel.load(golden, { device: 'cpu', ...options });

/** Turns of several chats, one chat after the other; what each turn gave and had to read. */
async function chat(model: LanguageModel, chats: number, turns: number) {
  const sessions = Array.from({ length: chats }, () => model.createSession());
  const answers: { tokens: number[]; read: number }[] = [];
  for (let turn = 0; turn < turns; turn++) {
    for (const [i, session] of sessions.entries()) {
      const prompt = randomTokens(turn === 0 ? 700 : 20, 320, 10 * turn + i);
      const options = { maxNewTokens: 12, ignoreEos: true };
      const { tokens, usage } = await session.generate(prompt, options).result();
      answers.push({
        tokens: Array.from(tokens),
        read: usage.promptTokens - usage.cachedTokens,
      });
    }
  }
  const { host } = model.memory;
  for (const session of sessions) session.close();
  return { answers, host };
}

describe('chats whose KV cache does not fit on the device together', () => {
  // Eight blocks; each chat takes six and a bit.
  const tight = { maxTokens: 1024, hostTokens: 8192 };

  test('give what they give where there is room, and read little again', async () => {
    const [roomy, parked] = [await load({}), await load(tight)];
    const expected = await chat(roomy, 3, 3);
    const { answers, host } = await chat(parked, 3, 3);
    expect(answers.map(({ tokens }) => tokens)).toEqual(
      expected.answers.map(({ tokens }) => tokens),
    );
    // The first turns read everything; then at most the block that was not full, and the new tokens.
    for (const { read } of answers.slice(3)) expect(read).toBeLessThan(128 + 32 + 1);
    expect(host).toBeGreaterThan(0);
    expect(expected.host).toBe(0);
    await Promise.all([roomy.close(), parked.close()]);
  });

  test('read everything again without the host', async () => {
    const model = await load({ maxTokens: 1024 });
    const { answers, host } = await chat(model, 3, 2);
    for (const { read } of answers.slice(3)) expect(read).toBeGreaterThan(128 + 32);
    expect(host).toBe(0);
    await model.close();
  });
});

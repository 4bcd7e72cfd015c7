import path from 'node:path';
import { LanguageModel } from '../../lib';
import { goldenDir, tinyDir } from '../support/goldens';
import { randomTokens } from '../support/prompts';

const golden = path.join(goldenDir, 'longcat-zigzag-yarn');

test('n', async () => {
  await using model = await LanguageModel.load(golden, { device: 'cpu' });
  const prompt = randomTokens(1500, 320, 4);
  const options = { maxNewTokens: 20, temperature: 1, seed: 5, ignoreEos: true, logprobs: true };
  const results = await model.generate(prompt, { ...options, n: 4 }).results();
  console.log(results.map((r) => [r.seed, r.usage, r.tokens.join()]));
  console.log(model.memory.kv);
  for (const result of results) {
    const alone = await model.generate(prompt, { ...options, seed: result.seed }).result();
    console.log(alone.usage, alone.tokens.join());
  }
});
test('session', async () => {
  await using model = await LanguageModel.load(tinyDir, { device: 'cpu' });
  await using session = model.createSession({ system: 'Be brief.' });
  for (const text of ['Hello there', 'and again', 'once more']) {
    const r = await session.generate(text, { maxNewTokens: 20 }).result();
    console.log(r.usage, r.text, session.tokens, session.kv);
  }
  console.log(session.messages, session.usage, model.memory.kv);
});

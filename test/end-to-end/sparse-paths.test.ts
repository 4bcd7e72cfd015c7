import { Context } from '../../lib/cli/context';
import {
  askPlainly,
  pathNames,
  verifyPaths,
  type Ask,
  type PathVerdict,
} from '../../lib/cli/verify-paths';
import { Engine } from '../../lib/engine/engine';
import { inWindow } from '../../lib/eval/arms';
import { builtInText } from '../../lib/eval/built-in-text';
import { PromptMaker } from '../../lib/eval/prompts';
import { LanguageModel } from '../../lib/index';
import { blocksFor, blockTokens } from '../../lib/kv/layer-group';
import { loadModel } from '../../lib/load-model';
import { resolveLoadOptions } from '../../lib/load-options';
import { ChatTemplate } from '../../lib/tokenizer/chat-template';
import { Tokenizer } from '../../lib/tokenizer/tokenizer';
import { forEachDeviceKind } from '../support/devices';
import { generateOn } from '../support/engine-requests';
import { tinyDir } from '../support/goldens';
import { randomTokens } from '../support/prompts';

/** Streaming attentions of loza-tiny keep 1,024 tokens: of these prompts 9 blocks are freed. */
const length = 2200;
const depths = [0.25, 0.5];
const answerTokens = 8;
/** The others take one step a token, all through a prompt: below they come in a shorter form. */
const quick = pathNames.filter((name) => name !== 'tokens' && name !== 'preempted');

interface Question {
  ids: Int32Array;
  key: string;
  place: number;
}

async function questions(): Promise<Question[]> {
  const tokenizer = (await Tokenizer.load(tinyDir, 2048))!;
  const template = await ChatTemplate.load(tinyDir);
  const encode = (text: string) => tokenizer.encode(text, { addSpecialTokens: false });
  const maker = await PromptMaker.create(1, builtInText, async (parts) => {
    return (await encode(parts.join(''))).length;
  });
  return Promise.all(
    depths.map(async (depth) => {
      const { parts, expected, places } = await maker.make('passkey', length, depth, 0);
      const content = parts.join('');
      const ids = await encode(template.render([{ role: 'user', content }]));
      return { ids, key: expected[0]!, place: places[0]! };
    }),
  );
}

forEachDeviceKind('pass keys in freed blocks', (device) => {
  const { signal } = new AbortController();
  let asked: Question[];
  let asks: Ask[];
  let verdicts: PathVerdict[];
  beforeAll(async () => {
    asked = await questions();
    const load = { device, prefixCache: false, decodeGraphs: false, chunkTokens: length };
    await using model = await LanguageModel.load(tinyDir, load);
    asks = [];
    for (const { ids, key } of asked) {
      asks.push(await askPlainly(model, key, ids, answerTokens, signal));
    }
    const options = { margin: 0, names: quick };
    verdicts = await verifyPaths(tinyDir, { device }, asks, options, new Context(signal));
  });

  test('are found where streaming attentions do not see them any more', async () => {
    const tokenizer = (await Tokenizer.load(tinyDir, 2048))!;
    asks.forEach(({ greedy, inputIds }, i) => {
      const { key, place } = asked[i]!;
      const window = { sinkBlocks: 1, localBlocks: 7 };
      expect(inWindow(place, inputIds.length - 1, window)).toBe(false);
      expect(tokenizer.decode(greedy)).toContain(key);
    });
  });

  test.each(quick)('give the same answer on the path %s', (name) => {
    const { greedy, problem } = verdicts.find(({ path }) => path === name)!;
    expect({ problem, equal: greedy.equal }).toEqual({ equal: greedy.expected });
    expect(greedy.equal).toBeGreaterThanOrEqual(answerTokens);
  });

  test('give the same answer when the last tokens are read one by one', async () => {
    const loaded = await loadModel(tinyDir, resolveLoadOptions({ device }));
    const { vocabSize } = loaded.plan.model.mla;
    const reading = { stepTokens: 512, chunkTokens: 512, maxSequences: 4 };
    const [fast, slow] = [reading, { ...reading, chunkTokens: 1 }].map(
      (limits) => new Engine(loaded.parts.runner, limits),
    );
    for (const { inputIds, greedy } of asks) {
      const most = inputIds.subarray(0, -150);
      await generateOn(fast!, most, vocabSize, { maxNewTokens: 1 });
      const rest = await generateOn(slow!, inputIds, vocabSize, { maxNewTokens: answerTokens });
      expect(rest.tokens).toEqual(greedy);
      expect(rest.usage.cachedTokens).toBeGreaterThan(most.length - 128);
      expect(rest.usage.cachedTokens).toBeLessThanOrEqual(most.length);
    }
    await Promise.all([fast!.close(), slow!.close()]);
    loaded.device.close();
  });

  test.each([0, 1])('give the same answer to %i, preempted as it answers', async (which) => {
    const { inputIds, greedy } = asks[which]!;
    // The other text needs its second block when the prompt has been read and has taken all others.
    const maxTokens = (blocksFor(inputIds.length + answerTokens) + 1) * blockTokens;
    const options = resolveLoadOptions({ device, maxTokens, prefixCache: false });
    const loaded = await loadModel(tinyDir, options);
    const { vocabSize } = loaded.plan.model.mla;
    const limits = { stepTokens: 128, chunkTokens: 128, maxSequences: 2, growthTokens: 0 };
    const engine = new Engine(loaded.parts.runner, limits);
    const stepsToRead = blocksFor(inputIds.length);
    const text = randomTokens(blockTokens - stepsToRead - 2, vocabSize, 1);
    const beside = generateOn(engine, text, vocabSize, { maxNewTokens: 60 });
    const answer = generateOn(engine, inputIds, vocabSize, { maxNewTokens: answerTokens });
    expect((await answer).tokens).toEqual(greedy);
    await beside;
    expect(engine.load.preemptions).toBe(1);
    await engine.close();
    loaded.device.close();
  });
});

import { Context } from '../../lib/cli/context';
import { askPlainly, pathNames, verifyPaths, type Ask } from '../../lib/cli/verify-paths';
import { inWindow } from '../../lib/eval/arms';
import { builtInText } from '../../lib/eval/built-in-text';
import { PromptMaker } from '../../lib/eval/prompts';
import { LanguageModel } from '../../lib/index';
import { ChatTemplate } from '../../lib/tokenizer/chat-template';
import { Tokenizer } from '../../lib/tokenizer/tokenizer';
import { forEachDeviceKind } from '../support/devices';
import { tinyDir } from '../support/goldens';

/** Streaming attentions of loza-tiny keep 1,024 tokens: of these prompts 9 blocks are freed. */
const length = 2200;
const depths = [0.25, 0.5];
const answerTokens = 8;

interface Question {
  ids: Int32Array;
  key: string;
  place: number;
}

async function questions(): Promise<Question[]> {
  const tokenizer = (await Tokenizer.load(tinyDir, 2048))!;
  const template = await ChatTemplate.load(tinyDir);
  const encode = (text: string) => tokenizer.encode(text, { addSpecialTokens: false });
  const maker = await PromptMaker.create(1, builtInText, async (text) => {
    return (await encode(text)).length;
  });
  return Promise.all(
    depths.map(async (depth) => {
      const { content, expected, places } = await maker.make('passkey', length, depth, 0);
      const ids = await encode(template.render([{ role: 'user', content }]));
      return { ids, key: expected[0]!, place: places[0]! };
    }),
  );
}

forEachDeviceKind('pass keys in freed blocks', (device) => {
  const { signal } = new AbortController();
  let asked: Question[];
  let asks: Ask[];
  beforeAll(async () => {
    asked = await questions();
    const load = { device, prefixCache: false, decodeGraphs: false, chunkTokens: length };
    await using model = await LanguageModel.load(tinyDir, load);
    asks = [];
    for (const { ids, key } of asked) {
      asks.push(await askPlainly(model, key, ids, answerTokens, signal));
    }
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

  test.each(pathNames)('give the same answer on the path %s', async (name) => {
    const options = { margin: 0, names: [name] };
    const [verdict] = await verifyPaths(tinyDir, { device }, asks, options, new Context(signal));
    const { greedy, problem, passed } = verdict!;
    expect({ problem, passed }).toEqual({ problem: undefined, passed: true });
    expect(greedy.equal).toBe(greedy.expected);
    expect(greedy.equal).toBeGreaterThanOrEqual(depths.length * answerTokens);
  });
});

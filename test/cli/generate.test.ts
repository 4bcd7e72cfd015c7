import path from 'node:path';

import { tempFolder } from '../support/temp-folder';
import {
  describeCli,
  expectFailure,
  expectJsonFailure,
  golden,
  loza,
  lozaJson,
  readFiles,
  tiny,
} from './cli';

interface GenerateObject {
  text: string;
  tokens: number[];
  finishReason: string;
  usage: { promptTokens: number; completionTokens: number; totalTokens: number };
  timings: Record<string, number>;
  kv: { residentBytes: number; fullBytes: number };
  seed: number;
  logprobs?: number[];
  alternatives?: unknown[][];
}

const prompt = 'Fellow-Citizens of the Senate';

describeCli('loza generate', () => {
  test('text on stdout is the text of --json, and the seed gives it again', async () => {
    const flags = ['-n', '12', '-t', '0.9', '--top-k', '50', '--top-p', '0.9', '--min-p', '0.01'];
    const object = await lozaJson<GenerateObject>(['generate', tiny, prompt, ...flags]);
    expect(Object.keys(object)).toEqual(
      'text tokens finishReason usage timings kv seed'.split(' '),
    );
    expect(object.tokens).toHaveLength(12);
    expect(object.finishReason).toBe('length');
    const again = await loza(['generate', tiny, prompt, ...flags, '--seed', String(object.seed)]);
    expect(again).toEqual({ code: 0, stdout: `${object.text}\n`, stderr: '' });
  });

  test('the prompt comes from an argument, a pipe or a file', async () => {
    const file = path.join(tempFolder({ 'prompt.txt': `${prompt}\n` }), 'prompt.txt');
    const [argument, piped, dash, read] = await Promise.all([
      loza(['generate', tiny, prompt, '-n', '6']),
      loza(['generate', tiny, '-n', '6'], { input: `${prompt}\n` }),
      loza(['generate', tiny, '-', '-n', '6'], { input: prompt }),
      loza(['generate', tiny, '--file', file, '-n', '6']),
    ]);
    expect(argument.code).toBe(0);
    expect([piped, dash, read]).toEqual([argument, argument, argument]);
  });

  test('--chat uses the chat template, --system with it', async () => {
    const count = async (...flags: string[]) => {
      const object = await lozaJson<GenerateObject>(['generate', tiny, 'Hi', '-n', '1', ...flags]);
      return object.usage.promptTokens;
    };
    const [plain, chat, system] = await Promise.all([
      count(),
      count('--chat'),
      count('--chat', '--system', 'Hi'),
    ]);
    expect(chat).toBeGreaterThan(plain);
    expect(system).toBeGreaterThan(chat);
    await expectFailure(['generate', tiny, 'Hi', '--system', 'Hi'], /--system needs --chat/);
  });

  test('--logprobs adds log probabilities and alternatives', async () => {
    const args = ['generate', tiny, prompt, '-n', '3', '--logprobs'];
    const chosen = await lozaJson<GenerateObject>(args);
    expect(chosen.logprobs).toHaveLength(3);
    expect(chosen.alternatives).toBeUndefined();
    const { alternatives } = await lozaJson<GenerateObject>([...args, '2']);
    expect(alternatives?.map((list) => list.length)).toEqual([2, 2, 2]);
    await expectFailure(args, /--logprobs needs --json/);
  });

  test('--samples: each is what its seed gives alone', async () => {
    const args = ['generate', tiny, prompt, '-n', '6', '-t', '0.9'];
    const several = [...args, '--seed', '7', '--samples', '3'];
    type Samples = { samples: GenerateObject[] };
    const { samples } = await lozaJson<Samples>([...several, '--logprobs', '2']);
    expect(samples.map(({ seed }) => seed)).toEqual([7, 8, 9]);
    for (const { alternatives } of samples) expect(alternatives).toHaveLength(6);
    const alone = await lozaJson<GenerateObject>([...args, '--seed', '9']);
    expect(samples[2]?.tokens).toEqual(alone.tokens);
    const { stdout, code } = await loza(several);
    const texts = samples.map(({ text, seed }, i) => `[${i + 1} · seed ${seed}]\n${text}\n\n`);
    expect({ stdout, code }).toEqual({ stdout: texts.join(''), code: 0 });
    await expectFailure([...args, '--samples', '0'], /whole number.*1 to 64/);
  });

  test('--stop and --stop-token-id end the text, each as often as given', async () => {
    const args = ['generate', tiny, prompt, '-n', '12'];
    const { text, tokens } = await lozaJson<GenerateObject>(args);
    const stop = text.slice(4, 8);
    const stopped = await lozaJson<GenerateObject>([...args, '--stop', 'ZZZ', '--stop', stop]);
    expect(stopped).toMatchObject({ finishReason: 'stop', text: text.split(stop)[0] });
    const id = tokens[5] ?? 0;
    const ended = await lozaJson<GenerateObject>([...args, '--stop-token-id', String(id)]);
    expect(ended.tokens.at(-1)).toBe(id);
    expect(ended.finishReason).toBe('stop');
  });

  test('a pattern with its block counts decides what stays in the cache', async () => {
    const input = 'The report of the Secretary of the Navy. '.repeat(60);
    const args = ['generate', tiny, '-n', '2', '--attention', '11111111'];
    const blocks = ['--sink-blocks', '1', '--local-blocks', '2'];
    const { kv } = await lozaJson<GenerateObject>([...args, ...blocks], { input });
    expect(kv.residentBytes).toBeLessThan(kv.fullBytes);
    const auto = ['generate', tiny, '-n', '2', ...blocks];
    const half = await lozaJson<GenerateObject>(auto, { input });
    expect(half.kv.residentBytes).toBeGreaterThan(kv.residentBytes);
    expect(half.kv.residentBytes).toBeLessThan(half.kv.fullBytes);
  });

  test('what is wrong is said in one line', async () => {
    await expectFailure(['generate'], /missing required argument 'dir'. See loza generate --help/);
    await expectFailure(['generate', tiny, 'x', '--bad'], /unknown option '--bad'/);
    await expectFailure(['generate', tiny, 'x', '-t', 'hot'], /'hot' is invalid.*0 to 100/);
    await expectFailure(['generate', tiny, 'x', '-n', '1.5'], /whole number/);
    await expectFailure(['generate', tiny, 'x', '--device', 'gpu'], /auto, cpu, cuda/);
    await expectFailure(['generate', tiny, 'x', '--attention', 'zig'], /pattern of 0 and 1/);
    await expectFailure(['generate', tiny, 'x', '--attention', '01'], /8 characters/);
    await expectFailure(
      ['generate', tiny, 'x', '--attention', 'full', '--sink-blocks', '1'],
      /no attention streams/,
    );
    await expectFailure(['generate', tiny], /prompt is empty/);
    await expectFailure(['generate', tiny, 'x', '-f', 'y'], /must be given once/);
    await expectFailure(['generate', tiny, '-f', 'no-such-file'], /no-such-file does not exist/);
    await expectFailure(['generate', golden('longcat-full'), 'x'], /no tokenizer\.json/);
  });

  test('a missing folder and a broken checkpoint are errors with a code', async () => {
    await expectFailure(['generate', 'no-such-folder', 'x'], /no-such-folder does not exist/);
    const missing = await expectJsonFailure(
      ['generate', 'no-such-folder', 'x'],
      'ERR_LOZA_NOT_FOUND',
    );
    expect(missing.value).toBe('no-such-folder');
    const files = readFiles(golden('longcat-full'), ['config.json', 'model.safetensors']);
    const cut = files['model.safetensors']!.subarray(0, -100);
    const dir = tempFolder({ ...files, 'model.safetensors': cut });
    await expectFailure(['generate', dir, 'x'], /the file is cut off/);
    await expectJsonFailure(['generate', dir, 'x'], 'ERR_LOZA_CHECKPOINT');
  });

  test('a bad option is an error object with --json, wherever it stands', async () => {
    const { hint } = await expectJsonFailure(
      ['generate', tiny, 'x', '--bad'],
      'ERR_LOZA_INVALID_ARG',
    );
    expect(hint).toBe('See loza generate --help');
  });

  test('--debug and LOZA_DEBUG show the stack', async () => {
    const args = ['generate', 'no-such-folder', 'x'];
    const flag = await loza([...args, '--debug']);
    const variable = await loza(args, { env: { LOZA_DEBUG: '1' } });
    for (const { code, stderr } of [flag, variable]) {
      expect(code).toBe(1);
      expect(stderr).toMatch(/^ {4}at /m);
      expect(stderr.trimEnd().split('\n').at(-1)).toBe('loza: no-such-folder does not exist');
    }
  });
});

import { join } from 'node:path';
import type { Command } from 'commander';

import { LozaError } from '../errors';
import { planLoad } from '../load-model';
import type { LanguageModel } from '../language-model';
import type { AttentionOption, AttentionPattern } from '../checkpoint/streaming-config';
import { bundledModel } from './build-info';
import { BadResult, type Context } from './context';
import { member, readExpectedJson } from './expected';
import {
  formatBytes,
  formatCount,
  formatDuration,
  formatPercent,
  formatRate,
  formatTable,
  plural,
} from './format';
import { withModel } from './open-model';
import { addLoadFlags, type LoadFlags } from './options';
import { startProgress } from './progress';
import { drawInline, glyphs } from './zigzag';

/** A text with a pass key in it, and the question for it at its end. */
interface Riddle {
  prompt: string;
  question: string;
  /** The right answer, as the text says it. */
  key: string;
  /** Where the text says it, in characters. */
  keyOffset: number;
}

interface Contestant {
  name: 'full' | 'LoZA' | 'all streaming';
  attention: AttentionOption;
  layerType: string;
}

interface DemoRun {
  attention: Contestant['name'];
  layerType: string;
  answer: string;
  right: boolean;
  firstTokenMs: number;
  tokensPerSecond: number;
  kvResidentBytes: number;
  kvFullBytes: number;
}

interface Found {
  promptTokens: number;
  /** Tokens before the key. */
  keyToken: number;
  device: string;
}

const maxAnswerTokens = 24;

const examples = `
A model of 5 million parameters that comes with the sources reads 5,148 tokens and answers a
question about one line of them: with full attention, with LoZA, and with every attention streaming.
Exit code 1 when full attention or LoZA answers wrong.`;

export function registerDemo(program: Command, context: Context): void {
  const command = program
    .command('demo')
    .description('Finds a pass key in a long text three times, to show what LoZA does.');
  addLoadFlags(command, ['device', 'dtype', 'kvDtype', 'chunkTokens'])
    .addHelpText('after', examples)
    .action((flags: LoadFlags) => demo(flags, context));
}

async function demo(flags: LoadFlags, context: Context): Promise<void> {
  const riddle = await readRiddle(bundledModel);
  const pattern = await readPattern(bundledModel, context);
  const contestants = lineUp(pattern);
  const runs: DemoRun[] = [];
  let found: Found | undefined;
  for (const contestant of contestants) {
    const { device, dtype, kvDtype, chunkTokens } = flags;
    const { attention } = contestant;
    const options = { device, dtype, kvDtype, chunkTokens, attention, prefixCache: false };
    await withModel(bundledModel, options, context, async (model) => {
      if (found === undefined) {
        found = await locate(model, riddle);
        if (!context.json) context.print(`${introduce(riddle, found, contestants, pattern)}\n`);
      }
      runs.push(await answer(model, contestant, riddle, context));
    });
  }
  const passed = runs.every(({ attention, right }) => right || attention === 'all streaming');
  const { question, key } = riddle;
  if (context.json) context.printJson({ ...found, question, key, runs, passed });
  else context.print(`${describeRuns(runs)}\n\n${conclude(runs)}`);
  if (!passed) throw new BadResult('full attention or LoZA did not find the pass key');
}

async function readRiddle(dir: string): Promise<Riddle> {
  const prompt = member(member(await readExpectedJson(dir), 'passkey'), 'prompt');
  const text = typeof prompt === 'string' ? prompt : '';
  const [question, word] = /What is the pass key of (\w+)\?/.exec(text) ?? [];
  const inText = word === undefined ? null : new RegExp(`\\b${word}:\\d+`).exec(text);
  if (question === undefined || inText === null) {
    throw new LozaError('ERR_LOZA_NOT_FOUND', `${join(dir, 'expected.json')} has no pass key`, {
      value: dir,
      hint: 'Copy the folder models/loza-tiny of the sources there (bundles leave it out for its size)',
    });
  }
  return { prompt: text, question, key: inText[0], keyOffset: inText.index };
}

async function readPattern(dir: string, { signal }: Context): Promise<AttentionPattern> {
  const rope = { yarnFactor: undefined, exactAngles: false };
  const { pattern } = await planLoad(dir, { attention: 'auto', rope, signal });
  if (pattern !== undefined) return pattern;
  throw new LozaError('ERR_LOZA_CONFIG', `${dir}: no attention streams`, { value: dir });
}

function lineUp({ layerType }: AttentionPattern): Contestant[] {
  const [none, all] = ['0', '1'].map((type) => type.repeat(layerType.length)) as [string, string];
  return [
    { name: 'full', attention: 'full', layerType: none },
    { name: 'LoZA', attention: 'auto', layerType },
    { name: 'all streaming', attention: { layerType: all }, layerType: all },
  ];
}

async function locate(model: LanguageModel, riddle: Riddle): Promise<Found> {
  const count = async (text: string) => (await model.tokenizer?.encode(text))?.length ?? 0;
  return {
    promptTokens: await count(riddle.prompt),
    keyToken: await count(riddle.prompt.slice(0, riddle.keyOffset)),
    device: model.info.device,
  };
}

async function answer(
  model: LanguageModel,
  { name, layerType }: Contestant,
  riddle: Riddle,
  context: Context,
): Promise<DemoRun> {
  const progress = startProgress(context, `${name.padEnd(13)} reads`);
  try {
    const generation = model.generate(riddle.prompt, {
      maxNewTokens: maxAnswerTokens,
      temperature: 0,
      signal: context.signal,
      onProgress: ({ phase, done, total }) => {
        if (phase === 'prefill') progress.update(done, total);
      },
    });
    const { text, timings, kv } = await generation.result();
    return {
      attention: name,
      layerType,
      answer: text,
      right: text.trim() === riddle.key,
      firstTokenMs: timings.firstTokenMs,
      tokensPerSecond: timings.decodeTokensPerSecond,
      kvResidentBytes: kv.residentBytes,
      kvFullBytes: kv.fullBytes,
    };
  } finally {
    progress.stop();
  }
}

function introduce(
  { question, key }: Riddle,
  { promptTokens, keyToken }: Found,
  contestants: readonly Contestant[],
  { sinkBlocks, localBlocks }: AttentionPattern,
): string {
  const patterns = contestants.map(
    ({ name, layerType }) => `  ${name.padEnd(15)}${drawInline(layerType)}`,
  );
  return [
    `A small model reads a haystack of ${formatCount(promptTokens)} tokens: old speeches, and hidden after token ${formatCount(keyToken)}`,
    `the pass key ${key}. Then it is asked "${question}", three times:`,
    '',
    ...patterns,
    '',
    `${glyphs.full} is an attention that sees every token; its memory, the KV cache, grows with the text.`,
    `${glyphs.streaming} is one that streams: it sees and keeps only the first ${sinkBlocks * 128} and about the last ${localBlocks * 128} tokens.`,
  ].join('\n');
}

function describeRuns(runs: readonly DemoRun[]): string {
  const right = { align: 'right' } as const;
  const columns = [
    { title: 'attention' },
    { title: 'answer' },
    { title: 'right?' },
    { title: 'time to first token', ...right },
    { title: 'tokens/s', ...right },
    { title: 'KV resident', ...right },
    { title: 'of full', ...right },
  ];
  const rows = runs.map((run) => [
    run.attention,
    JSON.stringify(run.answer).slice(1, -1).slice(0, 20),
    run.right ? 'yes' : 'no',
    formatDuration(run.firstTokenMs),
    formatRate(run.tokensPerSecond),
    formatBytes(run.kvResidentBytes),
    formatPercent(run.kvResidentBytes / run.kvFullBytes),
  ]);
  return formatTable(columns, rows);
}

/** What the answers show, whatever they are. */
function conclude(runs: readonly DemoRun[]): string {
  const find = (name: Contestant['name']) => runs.find(({ attention }) => attention === name);
  const [full, loza, streaming] = [find('full'), find('LoZA'), find('all streaming')];
  if (!full?.right || !loza?.right) {
    return 'This should not happen: full attention and LoZA both know the key. Is the model intact?';
  }
  const attentions = plural([...loza.layerType].filter((type) => type === '1').length, 'attention');
  const kept = formatPercent(loza.kvResidentBytes / loza.kvFullBytes);
  const first = `LoZA lets ${attentions} of ${loza.layerType.length} stream, chosen by calibration: right, with ${kept} of the KV memory.`;
  const second = streaming?.right
    ? 'This time the key was found even with every attention streaming, which is luck.'
    : 'With every attention streaming nothing reaches back to the key, and the model makes one up.';
  return `${first}\n${second}`;
}

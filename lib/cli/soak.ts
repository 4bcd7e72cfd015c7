import { setImmediate as nextTurn } from 'node:timers/promises';
import { Argument, type Command } from 'commander';

import { throwIfAborted } from '../errors';
import { LanguageModel } from '../language-model';
import type { LoadOptions } from '../load-options';
import type { DeviceKind } from '../native/binding';
import { bundledModel } from './build-info';
import { BadResult, type Context } from './context';
import { formatBytes, formatCount, formatDuration, formatTable } from './format';
import {
  allowedDeviceGrowth,
  allowedHostGrowth,
  allowedTrend,
  MemoryWatch,
  type MemoryVerdict,
} from './memory-watch';
import {
  addLoadFlags,
  readLoadOptions,
  realNumber,
  usageError,
  wholeNumber,
  type LoadFlags,
} from './options';
import { startProgress } from './progress';
import { endsAborted, MixedWork, type MixedCounts } from './soak-mix';

interface SoakFlags extends LoadFlags {
  loads?: number;
  aborts?: number;
  minutes: number;
}

/** What one kind of cycle did to memory. */
export interface SoakReport extends MemoryVerdict {
  cycle: string;
  cycles: number;
  /** Of these, before the first look. */
  warmUp: number;
  msPerCycle: number;
  /** Of mixed work: what was read and written, and how often a sequence made room for others. */
  work?: MixedCounts & { preemptions: number };
}

const looks = 20;
const kvTokens = 2048;
/** Of mixed work: room for what others take of idle sessions and of the prefix cache. */
const hostTokens = 4096;
const usualCycles = 1000;

const examples = `
Two kinds of cycles: a model is loaded, writes two tokens and is closed (one load in ten is
aborted half way); and generations of one model are aborted, before and while they read and while
they write. With --minutes, instead or besides: requests of every kind at a time, long and short,
several samples, chats, forks, sessions that are parked on the host and resumed, scores, aborts, in
a KV cache that is too small for them; whenever memory is looked at nothing runs, and no KV block
may be held.
A tenth of the cycles come first and are not counted: caches fill, and kernels are loaded when
they are first used. Then memory is looked at ${looks} times, after a garbage collection each: what
is resident, less what V8 and malloc keep without using it. Growth is the least of the second half
of the looks less the least of the first. "A cycle" is what one of the second half, where it has
500 or more, adds to what is allocated, but for the largest step.
Exit code 1 when the process has grown by more than ${formatBytes(allowedHostGrowth)}, memory in use on
the GPU by more than ${formatBytes(allowedDeviceGrowth)}, or what is allocated by more than ${allowedTrend} bytes a cycle.

Examples:
  loza soak models/loza-tiny --loads 1000 --aborts 1000
  loza soak --minutes 10                                 mixed work
  loza soak --device cuda --json`;

export function registerSoak(program: Command, context: Context): void {
  const most = 2 ** 20;
  const command = program
    .command('soak')
    .description('Loads, aborts and closes a model many times; memory must stay where it was.')
    .addArgument(
      new Argument('[dir]', 'checkpoint folder').default(bundledModel, 'the bundled loza-tiny'),
    )
    .option('--loads <n>', 'load and close cycles (default 1000)', wholeNumber(0, most))
    .option('--aborts <n>', 'aborted generations (default 1000)', wholeNumber(0, most))
    .option('--minutes <x>', 'mixed work for so long; of the others none', realNumber(0, 1e5), 0);
  addLoadFlags(command)
    .addHelpText('after', examples)
    .action((dir: string, flags: SoakFlags) => soak(dir, flags, context));
}

async function soak(dir: string, flags: SoakFlags, context: Context): Promise<void> {
  const options = { maxTokens: kvTokens, ...withoutUndefined(await readLoadOptions(dir, flags)) };
  const usual = flags.minutes > 0 ? 0 : usualCycles;
  const { loads = usual, aborts = usual, minutes } = flags;
  if (loads + aborts + minutes === 0) {
    throw usageError(
      'there is nothing to do',
      'Give --loads, --aborts or --minutes a number above 0',
    );
  }
  const reports: SoakReport[] = [];
  const first = await LanguageModel.load(dir, options);
  const { device, deviceName } = first.info;
  await first.close();
  if (loads > 0) {
    const cycle = (i: number) => loadAndClose(dir, options, i);
    reports.push(await watch('load and close', cycle, loads, device, context));
  }
  if (aborts > 0) {
    await using model = await LanguageModel.load(dir, options);
    const cycle = (i: number) => abortGeneration(model, i);
    reports.push(await watch('aborted generation', cycle, aborts, device, context));
  }
  if (minutes > 0) {
    await using model = await LanguageModel.load(dir, { hostTokens, ...options });
    reports.push(await watchMix(model, minutes, context));
  }
  const passed = reports.every((report) => report.passed);
  if (context.json) context.printJson({ device, deviceName, cycles: reports, passed });
  else context.print(describe(reports, `${deviceName} (${device})`, passed));
  if (!passed) throw new BadResult('memory has grown');
}

/** One load in ten is aborted as soon as it reports progress. */
async function loadAndClose(dir: string, options: LoadOptions, i: number): Promise<void> {
  const controller = new AbortController();
  const isAborted = i % 10 === 9;
  const onProgress = isAborted ? () => controller.abort() : undefined;
  await endsAborted(isAborted, async () => {
    const model = await LanguageModel.load(dir, {
      ...options,
      onProgress,
      signal: controller.signal,
    });
    try {
      await model.generate([1, 2, 3], { maxNewTokens: 2, ignoreEos: true }).result();
    } finally {
      await model.close();
    }
  });
}

/** Aborts at once, when the prompt is partly read, or after one token or a few. */
async function abortGeneration(model: LanguageModel, i: number): Promise<void> {
  const { vocabSize, maxPosition } = model.info;
  const controller = new AbortController();
  const length = Math.min(1 + ((i * 37) % 1200), maxPosition - 64);
  const prompt = Int32Array.from({ length }, (_, at) => (at * 31 + i) % vocabSize);
  const tokens = (i % 4) * (i % 4);
  await endsAborted(true, async () => {
    const generation = model.generate(prompt, {
      maxNewTokens: 32,
      ignoreEos: true,
      signal: controller.signal,
      onProgress: () => {
        if (tokens === 1) controller.abort();
      },
    });
    if (tokens === 0) void nextTurn().then(() => controller.abort());
    for await (const { index } of generation) if (index + 1 >= tokens) controller.abort();
  });
}

/** The share of the cycles that is done at each look. */
const dueAt = Array.from({ length: looks }, (_, i) => 0.1 + (0.9 * i) / (looks - 1));

async function watch(
  name: string,
  cycle: (i: number) => Promise<void>,
  cycles: number,
  kind: DeviceKind,
  context: Context,
): Promise<SoakReport> {
  const memory = new MemoryWatch(kind);
  const progress = startProgress(context, name, 'runs');
  const started = performance.now();
  const dueCycles = dueAt.map((share) => Math.ceil(share * cycles));
  try {
    for (let done = 0; ; done++) {
      while (dueCycles[memory.looks] === done) await memory.look(done);
      if (done === cycles) break;
      throwIfAborted(context.signal);
      await cycle(done);
      progress.update(done + 1, cycles);
    }
  } finally {
    progress.stop();
  }
  const msPerCycle = (performance.now() - started) / cycles;
  return { cycle: name, cycles, warmUp: dueCycles[0] ?? 0, msPerCycle, ...memory.report() };
}

/** Mixed work; nothing is on its way when memory is looked at. */
async function watchMix(
  model: LanguageModel,
  minutes: number,
  context: Context,
): Promise<SoakReport> {
  const memory = new MemoryWatch(model.info.device);
  const mixed = new MixedWork(model);
  const progress = startProgress(context, 'mixed work', 'runs');
  const started = performance.now();
  let warmUp = 0;
  try {
    for (const share of dueAt) {
      await mixed.runUntil(started + share * minutes * 60_000, context.signal);
      if (memory.looks === 0) warmUp = mixed.requests;
      await memory.look(mixed.requests);
      progress.update(memory.looks, looks);
    }
  } finally {
    progress.stop();
  }
  const { requests, counts } = mixed;
  const msPerCycle = (performance.now() - started) / requests;
  const work = { ...counts, preemptions: model.status.preemptions };
  return { cycle: 'mixed work', cycles: requests, warmUp, msPerCycle, ...memory.report(), work };
}

function withoutUndefined(options: LoadOptions): LoadOptions {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
}

function describe(reports: readonly SoakReport[], where: string, passed: boolean): string {
  const right = { align: 'right' } as const;
  const columns = [
    { title: 'cycle' },
    { title: 'cycles', ...right },
    { title: 'each', ...right },
    { title: 'host after warm-up', ...right },
    { title: 'at the end', ...right },
    { title: 'growth', ...right },
    { title: 'a cycle', ...right },
    { title: 'growth on the GPU', ...right },
    { title: '' },
  ];
  const rows = reports.map((report) => [
    report.cycle,
    formatCount(report.cycles),
    formatDuration(report.msPerCycle),
    formatBytes(report.host[0] ?? 0),
    formatBytes(report.host.at(-1) ?? 0),
    signed(report.hostGrowth),
    report.trend === null ? '-' : signed(Math.round(report.trend)),
    report.deviceGrowth === null ? '-' : signed(report.deviceGrowth),
    report.passed ? 'PASS' : 'FAIL',
  ]);
  const mixed = reports.flatMap(({ work }) => (work === undefined ? [] : describeWork(work)));
  const table = [formatTable(columns, rows), ...mixed].join('\n');
  return `${table}\n\n${passed ? 'PASS' : 'FAIL'}  ${where}`;
}

function describeWork(work: MixedCounts & { preemptions: number }): string {
  const { tokens, cachedTokens, sessions, resumed, preemptions } = work;
  const counts = [
    [tokens, `tokens, of which ${formatCount(cachedTokens)} were cached`],
    [sessions, `sessions, ${formatCount(resumed)} of them resumed after others took their room`],
    [preemptions, 'requests made room for others'],
  ] as const;
  const lines = counts.map(([count, what]) => `${formatCount(count)} ${what}`);
  return ['', ...lines, 'no KV block is held'].join('\n');
}

function signed(bytes: number): string {
  return bytes < 0 ? `-${formatBytes(-bytes)}` : formatBytes(bytes);
}

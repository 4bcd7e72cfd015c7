import { setImmediate as nextTurn } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { Argument, type Command } from 'commander';

import { throwIfAborted } from '../errors';
import { LanguageModel } from '../language-model';
import type { LoadOptions } from '../load-options';
import type { DeviceKind } from '../native/binding';
import { Device, listDevices } from '../native/device';
import { bundledModel } from './build-info';
import { BadResult, type Context } from './context';
import { formatBytes, formatCount, formatDuration, formatTable } from './format';
import { addLoadFlags, readLoadOptions, realNumber, wholeNumber, type LoadFlags } from './options';
import { startProgress } from './progress';
import { endsAborted, MixedWork } from './soak-mix';

interface SoakFlags extends LoadFlags {
  loads?: number;
  aborts?: number;
  minutes: number;
}

/** What one kind of cycle did to memory, in bytes. */
export interface SoakReport {
  cycle: string;
  cycles: number;
  /** Of these, before the first look. */
  warmUp: number;
  msPerCycle: number;
  /** At each look, after a garbage collection: resident memory, of V8's heap only what is used. */
  host: number[];
  /** Memory in use on the GPU; null on the CPU. */
  device: number[] | null;
  hostGrowth: number;
  deviceGrowth: number | null;
  passed: boolean;
  /** Of mixed work: tokens read and written, and how often a sequence made room for others. */
  tokens?: number;
  preemptions?: number;
}

/** Growth that says nothing: malloc keeps some of what it got, and a GPU gives 2 MiB at a time. */
const allowedHostGrowth = 8 * 2 ** 20;
const allowedDeviceGrowth = 4 * 2 ** 20;
const looks = 10;
const kvTokens = 2048;
const usualCycles = 1000;

const examples = `
Two kinds of cycles: a model is loaded, writes two tokens and is closed (one load in ten is
aborted half way); and generations of one model are aborted, before and while they read and while
they write. With --minutes, instead or besides: requests of every kind at a time, long and short,
several samples, chats, scores, aborts, in a KV cache that is too small for them; whenever memory
is looked at nothing runs, and no KV block may be held.
A tenth of the cycles come first and are not counted: caches fill, and kernels are loaded when
they are first used. Then memory is looked at ${looks} times, after a garbage collection each; free
room in V8's heap, which it makes as large as it likes, is left out. Growth is the least of the
second half of the looks less the least of the first.
Exit code 1 when the process has grown by more than ${formatBytes(allowedHostGrowth)}, or memory in
use on the GPU by more than ${formatBytes(allowedDeviceGrowth)}.

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
    await using model = await LanguageModel.load(dir, options);
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

async function watch(
  name: string,
  cycle: (i: number) => Promise<void>,
  cycles: number,
  kind: DeviceKind,
  context: Context,
): Promise<SoakReport> {
  const warmUp = Math.ceil(cycles / 10);
  const memory = new MemoryWatch(kind);
  const progress = startProgress(context, name, 'runs');
  const started = performance.now();
  try {
    for (let i = 0; i <= cycles; i++) {
      const due = ((i - warmUp) / (cycles - warmUp || 1)) * (looks - 1) + 1;
      if (i >= warmUp && memory.host.length < due) await memory.look();
      if (i === cycles) break;
      throwIfAborted(context.signal);
      await cycle(i);
      progress.update(i + 1, cycles);
    }
  } finally {
    progress.stop();
  }
  const msPerCycle = (performance.now() - started) / cycles;
  return { cycle: name, cycles, warmUp, msPerCycle, ...memory.report() };
}

/** Mixed work; nothing is on its way when memory is looked at. */
async function watchMix(
  model: LanguageModel,
  minutes: number,
  context: Context,
): Promise<SoakReport> {
  const memory = new MemoryWatch(model.info.device);
  const work = new MixedWork(model);
  const progress = startProgress(context, 'mixed work', 'runs');
  const started = performance.now();
  let warmUp = 0;
  try {
    for (let look = 1; look <= looks; look++) {
      await work.runUntil(started + (look / looks) * minutes * 60_000, context.signal);
      if (look === 1) warmUp = work.requests;
      await memory.look();
      progress.update(look, looks);
    }
  } finally {
    progress.stop();
  }
  const { requests, tokens } = work;
  const { preemptions } = model.status;
  const msPerCycle = (performance.now() - started) / requests;
  const cycles = { cycle: 'mixed work', cycles: requests, warmUp, msPerCycle };
  return { ...cycles, ...memory.report(), tokens, preemptions };
}

class MemoryWatch {
  readonly host: number[] = [];
  private readonly device: number[] = [];

  constructor(private readonly kind: DeviceKind) {}

  async look(): Promise<void> {
    this.host.push(await residentBytes());
    if (this.kind === 'cuda') this.device.push(usedBytes(this.kind));
  }

  report(): Pick<SoakReport, 'host' | 'device' | 'hostGrowth' | 'deviceGrowth' | 'passed'> {
    const { host, kind } = this;
    const device = kind === 'cuda' ? this.device : null;
    const hostGrowth = growth(host);
    const deviceGrowth = device === null ? null : growth(device);
    const passed = hostGrowth <= allowedHostGrowth && (deviceGrowth ?? 0) <= allowedDeviceGrowth;
    return { host, device, hostGrowth, deviceGrowth, passed };
  }
}

/** The least of the later half less the least of the earlier one: peaks between are no growth. */
export function growth(bytes: readonly number[]): number {
  const half = Math.ceil(bytes.length / 2);
  const [before, after] = [bytes.slice(0, half), bytes.slice(half)];
  return after.length === 0 ? 0 : Math.min(...after) - Math.min(...before);
}

let collectGarbage: (() => void) | undefined;

async function residentBytes(): Promise<number> {
  if (collectGarbage === undefined) {
    setFlagsFromString('--expose-gc');
    collectGarbage = runInNewContext('gc') as () => void;
  }
  // Finalizers of native objects run in later turns, and free what the next collection finds.
  for (let i = 0; i < 3; i++) {
    collectGarbage();
    await nextTurn();
  }
  const { rss, heapTotal, heapUsed } = process.memoryUsage();
  return rss - (heapTotal - heapUsed);
}

function usedBytes(kind: DeviceKind): number {
  const all = listDevices().find((one) => one.kind === kind)?.memoryBytes ?? 0;
  const device = new Device(kind);
  try {
    return all - device.freeMemory();
  } finally {
    device.close();
  }
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
    report.deviceGrowth === null ? '-' : signed(report.deviceGrowth),
    report.passed ? 'PASS' : 'FAIL',
  ]);
  const mixed = reports.flatMap(({ tokens, preemptions, cycles }) =>
    tokens === undefined ? [] : describeMix(cycles, tokens, preemptions ?? 0),
  );
  const table = [formatTable(columns, rows), ...mixed].join('\n');
  return `${table}\n\n${passed ? 'PASS' : 'FAIL'}  ${where}`;
}

function describeMix(requests: number, tokens: number, preemptions: number): string {
  const counts = [requests, tokens, preemptions].map(formatCount);
  return `\n${counts[0]} requests, ${counts[1]} tokens; ${counts[2]} made room for others; no KV block is held`;
}

function signed(bytes: number): string {
  return bytes < 0 ? `-${formatBytes(-bytes)}` : formatBytes(bytes);
}

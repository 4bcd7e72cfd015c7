import { Engine } from '../../lib/engine/engine';
import type { Job } from '../../lib/engine/job';
import type { SchedulerLimits } from '../../lib/engine/scheduler';
import type { Sequence } from '../../lib/engine/sequence';
import { groupRange, LayerGroup } from '../../lib/kv/layer-group';
import { PrefixCache } from '../../lib/kv/prefix-cache';
import type { Device } from '../../lib/native/device';
import type {
  ModelRunner,
  StepInFlight,
  StepOutput,
  StepWork,
} from '../../lib/runner/model-runner';
import { Random } from '../../lib/selftest/random';

/** Host or device memory that holds a token where there is a row of eight values. */
class FakeTensor {
  constructor(readonly rows: Int32Array) {}

  view(_: string, [words]: number[], __: number[], offset: number): FakeTensor {
    return new FakeTensor(this.rows.subarray(offset / 8, (offset + words!) / 8));
  }
}

const device = {
  allocate: (_: string, shape: number[], purpose: string) =>
    new FakeTensor(new Int32Array(purpose === 'kv' ? shape[0]! : shape[0]! / 8).fill(-1)),
  release: () => {},
} as unknown as Device;
const pattern = { sinkBlocks: 1, localBlocks: 2 };

/** The deterministic model: the next token is a hash of all tokens so far. */
export function nextToken(tokens: Iterable<number>): number {
  let hash = emptyHash;
  for (const token of tokens) hash = hashOn(hash, token);
  return tokenOf(hash);
}
const emptyHash = 0x811c9dc5 | 0;
const hashOn = (hash: number, token: number) => Math.imul(hash ^ token, 0x01000193);
const tokenOf = (hash: number) => (hash >>> 1) % 50_000;

/** Reads tokens from what was stored in the cache, as attention does: a lost block changes tokens. */
export class FakeRunner {
  readonly groups: LayerGroup[];
  readonly steps: { sequence: Sequence; count: number }[][] = [];
  /** Runs while a step does; may throw. */
  during: (work: readonly StepWork[]) => unknown = () => undefined;
  /** Whether a step can be enqueued behind one whose tokens were not read yet. */
  followed = true;
  private tail: Promise<unknown> = Promise.resolve();
  private readonly copies: (() => void)[] = []; // before the next step
  private readonly caches: Map<LayerGroup, Int32Array>;

  readonly prefixCache: PrefixCache | undefined = undefined;

  constructor(
    fullBlocks: number,
    streamingBlocks = fullBlocks,
    cached = false,
    hostBlocks = 0,
    hostWindows = hostBlocks,
  ) {
    this.groups = [
      new LayerGroup(device, 'full', groupRange('full', pattern), [0], fullBlocks, 8, 'f32'),
      new LayerGroup(
        device,
        'streaming',
        groupRange('streaming', pattern),
        [1],
        streamingBlocks,
        8,
        'f32',
      ),
    ];
    const cast = (to: FakeTensor, from: FakeTensor) =>
      this.copies.push(() => to.rows.set(from.rows));
    const host = { ops: { cast } as never, device, blocks: [hostBlocks, hostWindows] };
    if (cached) this.prefixCache = new PrefixCache(this.groups, hostBlocks > 0 ? host : undefined);
    const rowsOf = (group: LayerGroup) => (group.cache(0) as unknown as FakeTensor).rows;
    this.caches = new Map(this.groups.map((group) => [group, rowsOf(group)]));
  }

  /** Steps run one after another, as a stream runs them, on what was known when they were enqueued. */
  start(work: readonly StepWork[], after?: StepInFlight): StepInFlight {
    this.steps.push(work.map(({ sequence, count }) => ({ sequence, count })));
    for (const { sequence, count } of work) this.extend(sequence, count);
    this.prefixCache?.host?.flush();
    const copies = this.copies.splice(0);
    const items = work.map((one) => this.place(one));
    const landings = work.map(({ sequence, count }) => sequence.advance(count));
    const outputs = this.enqueue(async () => {
      for (const copy of copies) copy();
      await this.during(work);
      if (after !== undefined) {
        const before = await after.outputs;
        items.forEach((item, i) => (item.tokens = [before[i]!.sampled!.token]));
      }
      const results = items.map((item) => this.compute(item));
      for (const land of landings) land();
      return results;
    });
    const decodes = work.every(({ count, sample }) => count === 1 && sample !== undefined);
    return { outputs, canBeFollowed: this.followed && decodes };
  }

  /** A whole step at once. */
  run(work: readonly StepWork[]): StepOutput[] {
    for (const { sequence, count } of work) this.extend(sequence, count);
    this.prefixCache?.host?.flush();
    for (const copy of this.copies.splice(0)) copy();
    const items = work.map((one) => this.place(one));
    const landings = work.map(({ sequence, count }) => sequence.advance(count));
    const outputs = items.map((item) => this.compute(item));
    for (const land of landings) land();
    return outputs;
  }

  extend(sequence: Sequence, count: number): void {
    sequence.extend(count, (group, from, to) => {
      this.prefixCache?.host?.flush();
      this.copies.push(() => this.copyBlock(group, from, to));
    });
  }

  get blocksInUse(): number {
    return this.groups.reduce((sum, { pool }) => sum + pool.inUse, 0);
  }

  private copyBlock(group: LayerGroup, from: number, to: number): void {
    this.caches.get(group)!.copyWithin(to * 128, from * 128, (from + 1) * 128);
  }

  private enqueue<T>(body: () => Promise<T>): Promise<T> {
    const result = this.tail.then(async () => {
      await turn();
      return body();
    });
    this.tail = result.catch(() => undefined);
    return result;
  }

  /** The tokens of a step, and the blocks of all positions up to them. */
  private place({ sequence, count, sample, score }: StepWork): Item {
    const from = sequence.computed;
    const tables = this.groups.map((group) => {
      const blocks = sequence.blocksOf(group);
      return Int32Array.from({ length: Math.ceil((from + count) / 128) }, (_, i) =>
        blocks.block(i),
      );
    });
    const tokens = sequence.tokens.slice(from, from + count);
    return { from, tokens, tables, sample, score };
  }

  private compute({ from, tokens, tables, sample, score }: Item): StepOutput {
    const caches = this.groups.map((group) => this.caches.get(group)!);
    const slot = (group: number, position: number) =>
      tables[group]![position >> 7]! * 128 + (position & 127);
    tokens.forEach((token, i) => {
      caches.forEach((cache, group) => (cache[slot(group, from + i)] = token));
    });
    const output: StepOutput = {};
    if (sample) {
      const all = new Int32Array(from + tokens.length);
      const first = ((all.length - 1) >> 7) - pattern.localBlocks + 1;
      for (let p = 0; p < all.length; p++) {
        const token = (all[p] = caches[0]![slot(0, p)]!);
        const visible = p >> 7 < pattern.sinkBlocks || p >> 7 >= first;
        if (visible && caches[1]![slot(1, p)] !== token) {
          throw new Error(`key ${p} was overwritten`);
        }
      }
      output.sampled = { token: nextToken(all), logprob: 0, alternatives: [] };
    }
    if (score && score.length > 0) output.logits = Float32Array.from(score, (i) => from + i);
    return output;
  }
}

interface Item {
  from: number;
  tokens: number[];
  /** Of each group: block ids by index. */
  tables: Int32Array[];
  sample: StepWork['sample'];
  score: StepWork['score'];
}

/** Generates `count` tokens and remembers everything that happens to it. */
export class TestJob implements Job {
  readonly prompt: Int32Array;
  readonly maxTokens: number;
  readonly tokens: number[] = [];
  readonly errors: unknown[] = [];
  /** What it was planned with. */
  seen: Sequence | undefined;
  /** Runs at every output; may throw. */
  onReceive: () => void = () => undefined;
  private settle!: () => void;
  readonly settled = new Promise<void>((resolve) => (this.settle = resolve));

  constructor(
    promptTokens: number,
    readonly count: number,
    seed = 1,
  ) {
    this.prompt = new Random(seed).integers(promptTokens, 50_000);
    this.maxTokens = promptTokens + count - 1;
  }

  plan(sequence: Sequence, count: number): Omit<StepWork, 'sequence' | 'count'> {
    this.seen = sequence;
    const last = sequence.computed + count >= sequence.tokens.length;
    return last ? { sample: {} as NonNullable<StepWork['sample']> } : {};
  }

  receive(sequence: Sequence, { sampled }: StepOutput): boolean {
    this.onReceive();
    if (sampled === undefined) return false;
    this.tokens.push(sampled.token);
    sequence.tokens.push(sampled.token);
    if (this.tokens.length < this.count) return false;
    this.settle();
    return true;
  }

  fail(error: unknown): void {
    this.errors.push(error);
    this.settle();
  }

  /** What it generates on its own. */
  get expected(): number[] {
    let hash = this.prompt.reduce(hashOn, emptyHash);
    return Array.from({ length: this.count }, () => {
      const token = tokenOf(hash);
      hash = hashOn(hash, token);
      return token;
    });
  }
}

export const limits = { stepTokens: 64, chunkTokens: 64, maxSequences: 8 };

export function makeEngine(runner: FakeRunner, overrides: Partial<SchedulerLimits> = {}): Engine {
  const { stepTokens = overrides.chunkTokens } = overrides;
  const given = stepTokens === undefined ? overrides : { ...overrides, stepTokens };
  return new Engine(runner as unknown as ModelRunner, { ...limits, ...given });
}

export function submitAll(engine: Engine, jobs: readonly Job[]): void {
  for (const job of jobs) engine.submit(job);
}

/** Turns of the event loop until the engine has nothing left to do. */
export async function idle(engine: Engine, runner: FakeRunner): Promise<void> {
  for (let steps = -1; steps !== runner.steps.length || engine.sequences.length > 0;) {
    steps = runner.steps.length;
    for (let i = 0; i < 4; i++) await new Promise((resolve) => setImmediate(resolve));
  }
  expect(runner.blocksInUse).toBe(0);
}

export const turn = () => new Promise((resolve) => setImmediate(resolve));

/** The jobs ended well, with the tokens that each gives alone. */
export function expectWhole(jobs: readonly TestJob[]): void {
  for (const job of jobs) {
    expect(job.errors).toEqual([]);
    expect(job.tokens).toEqual(job.expected);
  }
}

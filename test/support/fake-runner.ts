import { Engine } from '../../lib/engine/engine';
import type { Job } from '../../lib/engine/job';
import type { Sequence } from '../../lib/engine/sequence';
import { groupRange, LayerGroup } from '../../lib/kv/layer-group';
import type { Device } from '../../lib/native/device';
import type { ModelRunner, StepOutput, StepWork } from '../../lib/runner/model-runner';
import { Random } from '../../lib/selftest/random';

const device = { allocate: () => ({}) } as unknown as Device;
const pattern = { sinkBlocks: 1, localBlocks: 2 };

/** The deterministic model: the next token is a hash of all tokens so far. */
export function nextToken(tokens: Iterable<number>): number {
  let hash = 0x811c9dc5;
  for (const token of tokens) hash = Math.imul(hash ^ token, 0x01000193) >>> 0;
  return hash % 50_000;
}

/** Reads tokens from what was stored in the cache, as attention does: a lost block changes tokens. */
export class FakeRunner {
  readonly groups: LayerGroup[];
  readonly steps: { sequence: Sequence; count: number }[][] = [];
  /** Runs while a step does; may throw. */
  during: (work: readonly StepWork[]) => unknown = () => undefined;
  private readonly caches: Map<LayerGroup, Int32Array>;

  constructor(fullBlocks: number, streamingBlocks = fullBlocks) {
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
    const cacheOf = ({ pool }: LayerGroup) => new Int32Array(pool.capacity * 128).fill(-1);
    this.caches = new Map(this.groups.map((group) => [group, cacheOf(group)]));
  }

  async step(work: readonly StepWork[]): Promise<StepOutput[]> {
    this.steps.push(work.map(({ sequence, count }) => ({ sequence, count })));
    for (const { sequence, count } of work) sequence.extend(count);
    await new Promise((resolve) => setImmediate(resolve));
    await this.during(work);
    for (const { sequence, count } of work) this.store(sequence, count);
    const outputs = work.map(({ sequence, count, sample, score }) => {
      const output: StepOutput = {};
      const end = sequence.computed + count;
      if (sample) {
        const token = nextToken(this.read(sequence, end));
        output.sampled = { token, logprob: 0, alternatives: [] };
      }
      if (score && score.length > 0)
        output.logits = Float32Array.from(score, (i) => sequence.computed + i);
      return output;
    });
    for (const { sequence, count } of work) sequence.advance(count);
    return outputs;
  }

  get blocksInUse(): number {
    return this.groups.reduce((sum, { pool }) => sum + pool.inUse, 0);
  }

  private store(sequence: Sequence, count: number): void {
    for (let p = sequence.computed; p < sequence.computed + count; p++)
      for (const [group, cache] of this.caches)
        cache[sequence.blocksOf(group).slot(p)] = sequence.tokens[p]!;
  }

  private read(sequence: Sequence, end: number): number[] {
    const [full, streaming] = this.groups as [LayerGroup, LayerGroup];
    const key = (group: LayerGroup, p: number) =>
      this.caches.get(group)![sequence.blocksOf(group).slot(p)]!;
    const tokens = Array.from({ length: end }, (_, p) => key(full, p));
    const first = Math.floor((end - 1) / 128) - pattern.localBlocks + 1;
    tokens.forEach((token, p) => {
      const block = Math.floor(p / 128);
      const visible = block < pattern.sinkBlocks || block >= first;
      if (visible && key(streaming, p) !== token) throw new Error(`key ${p} was overwritten`);
    });
    return tokens;
  }
}

/** Generates `count` tokens and remembers everything that happens to it. */
export class TestJob implements Job {
  readonly prompt: Int32Array;
  readonly maxTokens: number;
  readonly tokens: number[] = [];
  readonly errors: unknown[] = [];
  sequence: Sequence | undefined;
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
    this.sequence = sequence;
    const last = sequence.computed + count === sequence.tokens.length;
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
    const all = Array.from(this.prompt);
    for (let i = 0; i < this.count; i++) all.push(nextToken(all));
    return all.slice(this.prompt.length);
  }
}

export const limits = { chunkTokens: 64, maxSequences: 8 };

export function makeEngine(runner: FakeRunner, overrides: Partial<typeof limits> = {}): Engine {
  return new Engine(runner as unknown as ModelRunner, { ...limits, ...overrides });
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

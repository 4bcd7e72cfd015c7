import { LozaError } from '../errors';
import { blockTokens, type LayerGroup } from '../kv/layer-group';
import type { Job } from './job';
import type { ModelRunner } from '../runner/model-runner';
import { Sequence } from './sequence';

export interface SchedulerLimits {
  /**
   * New tokens of a step. One of each sequence that decodes, and one chunk of a prompt, have a place
   * even where they are more.
   */
  stepTokens: number;
  /** Prompts are cut at multiples of this. */
  chunkTokens: number;
  /** Sequences in flight. */
  maxSequences: number;
  /** Tokens that each is expected to write yet, when room for one more is looked for (default 512). */
  growthTokens?: number;
}

/** A job that was admitted, and what it has read and written. */
export interface Running {
  readonly job: Job;
  readonly sequence: Sequence;
  /** `over`: it has ended, though a step that is still on its way may have a row of it. */
  state: 'waiting' | 'running' | 'over';
  /** Of the prompts being read, the one with the least has the next turn. */
  turn: number;
  /** It reads nothing until another that reads the same has published so many blocks. */
  awaits?: { other: Running; blocks: number } | undefined;
}

/** New tokens of one sequence in the next step; their blocks are there. */
export interface Row {
  running: Running;
  count: number;
}

export interface Schedule {
  /** Sequences that decode, oldest first, then chunks of prompts. Empty: there is nothing to do. */
  rows: Row[];
  /** These cannot go on, and are out. */
  failed: { job: Job; error: unknown }[];
}

/**
 * Decides what the next step computes. Nothing here waits or touches the device; docs/engine.md
 * says in which order things happen and why nobody starves.
 *
 * Jobs are admitted in the order they came, as soon as there are blocks for what they have to read
 * and for some growth of all. Where blocks run out in spite of that, the latest admitted gives back
 * its own and reads its tokens again later. So whoever came first always goes on.
 */
export class Scheduler {
  /** In the order of admission, which is the order in which the jobs came. */
  running: readonly Running[] = [];
  /** How often a sequence had to give back its blocks. */
  preemptions = 0;
  private readonly queue = new Set<Job>();
  /** Sequences that no job works on; who needs blocks takes theirs, the longest idle first. */
  private readonly idle = new Set<Sequence>();
  private preempted: readonly Running[] = []; // the first that came is the last
  private next: Running | undefined; // of the first of the queue
  private turns = 0;
  /** Blocks that were free when there was no room for the first that waits. */
  private tooFew = -1;

  constructor(
    private readonly runner: Pick<ModelRunner, 'groups' | 'prefixCache' | 'extend'>,
    private readonly limits: SchedulerLimits,
  ) {}

  get waiting(): number {
    return this.queue.size + this.preempted.length;
  }

  /** Throws ERR_LOZA_CONTEXT_LENGTH for a job that does not fit even alone. */
  submit(job: Job): void {
    const needed = (group: LayerGroup) =>
      group.blocksNeeded(job.maxTokens, this.limits.chunkTokens);
    const group = this.runner.groups.find((one) => needed(one) > one.pool.capacity);
    if (group !== undefined) {
      const { kind, pool } = group;
      throw new LozaError(
        'ERR_LOZA_CONTEXT_LENGTH',
        `${job.maxTokens} tokens need ${needed(group)} KV blocks of the ${kind} attentions; the model has ${pool.capacity}`,
        { value: job.maxTokens, hint: 'Load the model with a larger maxTokens' },
      );
    }
    this.queue.add(job);
    if (job.sequence !== undefined) this.idle.delete(job.sequence);
  }

  /** Takes a job out, wherever it is, and frees its blocks at once. */
  remove(job: Job): void {
    if (this.queue.delete(job)) job.sequence?.release();
    const isOf = (one: Running | undefined) => one?.job === job;
    const found = this.running.find(isOf) ?? [...this.preempted, this.next].find(isOf);
    if (found !== undefined) this.end(found);
  }

  /** Takes out everyone who waits or runs. */
  clear(): Job[] {
    const admitted = [...this.running, ...[...this.preempted].reverse()];
    const jobs = [...admitted.map(({ job }) => job), ...this.queue];
    for (const job of jobs) this.remove(job);
    return jobs;
  }

  keep(sequence: Sequence): void {
    this.idle.add(sequence);
  }

  /** Frees the blocks of a sequence that is kept. */
  drop(sequence: Sequence): void {
    this.idle.delete(sequence);
    sequence.release();
  }

  /** The job is over; only where it is done may its sequence stay. */
  end(one: Running, done = false): void {
    if (one.state === 'over') return;
    one.state = 'over';
    const isOther = (other: Running) => other !== one;
    this.running = this.running.filter(isOther);
    this.preempted = this.preempted.filter(isOther);
    if (this.next === one) this.next = undefined;
    this.tooFew = -1;
    if (!done || one.job.keep === undefined) return one.sequence.release();
    this.keep(one.sequence);
    one.job.keep(one.sequence);
  }

  /** The next step, once the tokens of the step before are known. */
  schedule(): Schedule {
    while (this.admits()) this.admit();
    const rows = new Map<Running, number>();
    const failed: Schedule['failed'] = [];
    const place = (one: Running, count: number) => {
      if (one.state !== 'running') return false;
      try {
        if (!this.makeRoom(one, count, rows)) return false;
        this.runner.extend(one.sequence, count);
      } catch (error) {
        this.end(one);
        failed.push({ job: one.job, error });
        return false;
      }
      rows.set(one, count);
      return true;
    };
    const reading: Running[] = [];
    for (const one of this.running) {
      if (this.isAwaiting(one)) continue;
      if (this.countOf(one) > 1) reading.push(one);
      else place(one, 1);
    }
    let left = Math.max(this.limits.chunkTokens, this.limits.stepTokens - rows.size);
    for (const one of reading.sort((a, b) => a.turn - b.turn)) {
      const count = this.countOf(one);
      if (count > left || !place(one, count)) continue;
      left -= count;
      one.turn = ++this.turns;
    }
    return { rows: Array.from(rows, ([running, count]) => ({ running, count })), failed };
  }

  /**
   * Whether the step after the one of `batch` has the same sequences, with one token each, as far as
   * is known before that one has ended. If so there are blocks for it.
   */
  follows(batch: readonly Running[]): boolean {
    const { running } = this;
    if (running.length !== batch.length || this.mayAdmit) return false;
    const isAmple = this.runner.groups.every(({ pool }) => pool.available >= running.length);
    return running.every((one, i) => {
      const { job, sequence } = one;
      if (one !== batch[i] || sequence.computed >= job.maxTokens) return false;
      if (isAmple) return true;
      if (sequence.missing(1) !== undefined) return false;
      this.runner.extend(sequence, 1);
      return true;
    });
  }

  /**
   * A prompt is read in whole chunks of a fixed grid: where it is cut depends on nothing else, so a
   * sequence gets the same bits in any company.
   */
  private countOf({ sequence: { tokens, computed } }: Running): number {
    const { chunkTokens } = this.limits;
    return Math.min(tokens.length - computed, chunkTokens - (computed % chunkTokens));
  }

  /** Whether the first that waits is worth a look. */
  private get mayAdmit(): boolean {
    if (this.waiting === 0 || this.running.length >= this.limits.maxSequences) return false;
    return this.available > this.tooFew;
  }

  /** Whether there is room for the first that waits. It holds what the cache has of it, if so. */
  private admits(): boolean {
    if (!this.mayAdmit) return false;
    const first = this.first();
    const { sequence } = first;
    let fits = this.fits(first);
    while (!fits && this.reclaim()) fits = this.fits(first);
    // It may still fit where it shares what others hold; from the host nothing is shared.
    const isNew = sequence.computed === 0;
    const reused = isNew ? this.reuse(first, fits) : 0;
    // Whoever is alone goes on: it fits, or is told so when it misses a block.
    if (fits || this.running.length === 0 || this.fits(first)) {
      if (isNew) first.awaits = this.readerOf(first);
      return true;
    }
    if (reused > 0) sequence.release();
    this.tooFew = this.available;
    return false;
  }

  /** What cannot be taken over is computed. If it is blocks that are lacking, that shows there. */
  private reuse({ job, sequence }: Running, withHost: boolean): number {
    try {
      return sequence.reuse(job.reusable, withHost);
    } catch {
      sequence.release();
      return 0;
    }
  }

  /** Once the other has read what they share, or is gone, it takes over what there is. */
  private isAwaiting(one: Running): boolean {
    if (one.awaits === undefined) return false;
    const { other, blocks } = one.awaits;
    if (other.state === 'running' && other.sequence.published < blocks) return true;
    one.sequence.release();
    this.reuse(one, false);
    one.awaits = this.readerOf(one);
    return one.awaits !== undefined;
  }

  /**
   * Who is reading at least half of what this one has to read. It came before, so that nobody waits
   * in a circle, and the first goes on.
   */
  private readerOf(one: Running): Running['awaits'] {
    if (this.runner.prefixCache === undefined) return undefined;
    const { job, sequence } = one;
    const half = (sequence.computed + sequence.tokens.length) / 2;
    let found: Running['awaits'];
    for (const other of this.running) {
      if (other === one) break;
      const blocks = sequence.sharedBlocks(other.sequence, job.reusable);
      const isRead = blocks <= other.sequence.published;
      if (isRead || blocks * blockTokens < half || blocks <= (found?.blocks ?? 0)) continue;
      found = { other, blocks };
    }
    found?.other.sequence.expectPart(found.blocks);
    return found;
  }

  private admit(): void {
    const first = this.first();
    this.preempted = this.preempted.slice(0, -1);
    this.queue.delete(first.job);
    this.next = undefined; // it is no longer the first that waits
    first.state = 'running';
    first.turn = ++this.turns;
    this.running = [...this.running, first];
  }

  /** Of those that wait, the one that came first. */
  private first(): Running {
    const preempted = this.preempted.at(-1);
    if (preempted !== undefined) return preempted;
    const job = this.queue.values().next().value as Job;
    if (this.next?.job !== job) {
      const { groups, prefixCache } = this.runner;
      const sequence = job.sequence ?? new Sequence(job.prompt, groups, prefixCache);
      this.next = { job, sequence, state: 'waiting', turn: 0 };
    }
    return this.next;
  }

  private get available(): number {
    return this.runner.groups.reduce((sum, { pool }) => sum + pool.available, 0);
  }

  private fits(one: Running): boolean {
    const { chunkTokens, growthTokens = 512 } = this.limits;
    return this.runner.groups.every((group) => {
      /** Blocks that a sequence does not have yet, of those that it is expected to need soon. */
      const missing = ({ job, sequence }: Running, chunk: number) => {
        const tokens = Math.min(job.maxTokens, sequence.tokens.length + growthTokens);
        return Math.max(0, group.blocksNeeded(tokens, chunk) - sequence.blocksOf(group).held);
      };
      const promised = this.running.reduce((sum, other) => sum + missing(other, 0), 0);
      return promised + missing(one, chunkTokens) <= group.pool.available;
    });
  }

  /** Whether there are blocks for the next tokens of a sequence, if need be those of later ones. */
  private makeRoom(one: Running, count: number, rows: Map<Running, number>): boolean {
    for (;;) {
      const group = one.sequence.missing(count);
      if (group === undefined) return true;
      if (this.reclaim()) continue;
      const last = this.running.at(-1) as Running;
      if (last === one && this.running.length === 1) {
        if (this.reclaimWaiting()) continue;
        throw heldError(group, one, count);
      }
      // The latest does not go on; a chunk waits for its turn, and what was read stays.
      if (last !== one || count === 1) this.preempt(last);
      rows.delete(last);
      if (last === one) return false;
    }
  }

  /** Frees the blocks of the sequence that has been idle longest; false when there is none. */
  private reclaim(): boolean {
    const [oldest] = this.idle;
    if (oldest === undefined) return false;
    this.idle.delete(oldest);
    oldest.release();
    return true;
  }

  /** The same for sequences that waiting jobs go on with: the last resort. */
  private reclaimWaiting(): boolean {
    const [job] = [...this.queue].filter(({ sequence }) => (sequence?.computed ?? 0) > 0);
    job?.sequence?.release();
    return job !== undefined;
  }

  private preempt(one: Running): void {
    this.running = this.running.slice(0, -1);
    one.sequence.release();
    one.state = 'waiting';
    this.preempted = [...this.preempted, one];
    this.preemptions++;
    this.tooFew = -1;
  }
}

function heldError({ kind, pool }: LayerGroup, { sequence }: Running, count: number): LozaError {
  const tokens = sequence.computed + count;
  return new LozaError(
    'ERR_LOZA_OUT_OF_MEMORY',
    `${tokens} tokens need more KV blocks of the ${kind} attentions than are free: ${pool.inUse} of ${pool.capacity} are held`,
    { value: tokens, hint: 'Load the model with a larger maxTokens' },
  );
}

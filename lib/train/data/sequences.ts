import { createHash } from 'node:crypto';

import { LozaError } from '../../errors';
import { Random } from '../../selftest/random';
import type { TrainingDocument } from './documents';
import type { Example, ExampleEncoder } from './examples';

/** Tokens that are read together, at most as many as the length asked for. */
export interface TrainingSequence {
  tokens: Int32Array;
  /** 1 where a token is predicted from those before it; never the first. */
  targets: Uint8Array;
}

export interface PackedData {
  sequences: TrainingSequence[];
  tokens: number;
  /** Tokens that are predicted. */
  targets: number;
  /** Documents without anything to learn, and chats longer than a sequence. */
  leftOut: { empty: number; tooLong: number };
  /** Identifies the data: of every token, in its order. */
  hash: string;
}

export interface PackOptions {
  length: number;
  seed: number;
  /** Sequences from which on no more documents are read. */
  enough?: number | undefined;
}

/**
 * Puts documents into sequences, in an order that the seed decides: one behind the other, texts cut
 * where a sequence is full, a chat whole in the next sequence where it does not fit.
 *
 * @throws LozaError ERR_LOZA_DATA when nothing is left to learn.
 */
export async function packSequences(
  documents: readonly TrainingDocument[],
  encoder: Pick<ExampleEncoder, 'encode'>,
  { length, seed, enough = Infinity }: PackOptions,
): Promise<PackedData> {
  const packer = new Packer(length);
  const leftOut = { empty: 0, tooLong: 0 };
  for (const index of new Random(`documents ${seed}`).permutation(documents.length)) {
    if (packer.sequences.length >= enough) break;
    const example = await encoder.encode(documents[index] as TrainingDocument);
    if (example === undefined) leftOut.empty++;
    else if (!example.divisible && example.tokens.length > length) leftOut.tooLong++;
    else packer.add(example);
  }
  const sequences = packer.finish();
  if (sequences.length === 0) throw nothingLeft(leftOut, length);
  const count = (of: (one: TrainingSequence) => number) =>
    sequences.reduce((sum, one) => sum + of(one), 0);
  return {
    sequences,
    tokens: count(({ tokens }) => tokens.length),
    targets: count(({ targets }) => targets.reduce((sum, target) => sum + target, 0)),
    leftOut,
    hash: hashOf(sequences),
  };
}

class Packer {
  readonly sequences: TrainingSequence[] = [];
  private tokens: number[] = [];
  private targets: number[] = [];

  constructor(private readonly length: number) {}

  add({ tokens, targets, divisible }: Example): void {
    if (!divisible && this.tokens.length + tokens.length > this.length) this.close();
    tokens.forEach((token, i) => {
      if (this.tokens.length === this.length) this.close();
      this.tokens.push(token);
      this.targets.push(targets[i] ?? 0);
    });
  }

  finish(): TrainingSequence[] {
    this.close();
    return this.sequences;
  }

  /** Nothing comes before a first token, and a sequence without targets teaches nothing. */
  private close(): void {
    const targets = Uint8Array.from(this.targets);
    targets.fill(0, 0, 1);
    if (targets.includes(1)) this.sequences.push({ tokens: Int32Array.from(this.tokens), targets });
    this.tokens = [];
    this.targets = [];
  }
}

/**
 * Which sequences make up a batch: every epoch in an order of its own. It depends on the step alone,
 * so that a run can be taken up anywhere.
 */
export class SequenceOrder {
  private epoch = -1;
  private order: Int32Array = new Int32Array();

  constructor(
    private readonly count: number,
    private readonly batch: number,
    private readonly seed: number,
  ) {}

  /** The indices of the sequences of a step, counted from 0. */
  batchOf(step: number): number[] {
    return Array.from({ length: this.batch }, (_, i) => this.at(step * this.batch + i));
  }

  private at(place: number): number {
    const epoch = Math.floor(place / this.count);
    if (epoch !== this.epoch) {
      this.order = new Random(`epoch ${epoch} of ${this.seed}`).permutation(this.count);
      this.epoch = epoch;
    }
    return this.order[place % this.count] ?? 0;
  }
}

function hashOf(sequences: readonly TrainingSequence[]): string {
  const hash = createHash('sha256');
  for (const { tokens, targets } of sequences) {
    hash.update(Int32Array.of(tokens.length)).update(tokens).update(targets);
  }
  return hash.digest('hex');
}

function nothingLeft(leftOut: PackedData['leftOut'], length: number): LozaError {
  const { empty, tooLong } = leftOut;
  const problem = `The data have nothing to learn: of ${empty + tooLong} documents ${empty} have no answers, and ${tooLong} are chats of more than ${length} tokens`;
  const hint =
    tooLong > 0
      ? 'Ask for longer sequences'
      : 'Ask for the loss on all tokens, or give chats with turns of the assistant';
  return new LozaError('ERR_LOZA_DATA', problem, { value: leftOut, hint });
}

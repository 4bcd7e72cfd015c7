import type { GradientOps } from '../native/gradient-ops';
import type { Tensor } from '../native/tensor';
import type { RopeAngles } from '../runner/step';
import type { TrainingSequence } from './data/sequences';
import type { Pass } from './pass';

/** Whole sequences, one below the other, on the host. */
export interface HostBatch {
  rows: number;
  tokens: Int32Array;
  positions: Int32Array;
  /** [sequences, 6] */
  segments: Int32Array;
  /** Rows whose next token is learned, and that token. */
  labelled: Int32Array;
  targets: Int32Array;
}

/** The labelled rows of a pass, on the device. */
export interface Labels {
  count: number;
  rows: Tensor; // i32 [count]
  targets: Tensor; // i32 [count]
  weights: Tensor; // f32 [count]
}

export function layOut(sequences: readonly TrainingSequence[]): HostBatch {
  const rows = sequences.reduce((sum, { tokens }) => sum + tokens.length, 0);
  const [tokens, positions] = [new Int32Array(rows), new Int32Array(rows)];
  const segments: number[] = [];
  const labelled: number[] = [];
  const targets: number[] = [];
  let first = 0;
  for (const sequence of sequences) {
    const { length } = sequence.tokens;
    tokens.set(sequence.tokens, first);
    for (let i = 0; i < length; i++) {
      positions[first + i] = i;
      if (sequence.targets[i] !== 1 || i === 0) continue;
      labelled.push(first + i - 1);
      targets.push(sequence.tokens[i] ?? 0);
    }
    segments.push(first, length, 0, first, length, 0);
    first += length;
  }
  return {
    rows,
    tokens,
    positions,
    segments: Int32Array.from(segments),
    labelled: Int32Array.from(labelled),
    targets: Int32Array.from(targets),
  };
}

/** What all passes over a batch share. */
export type PassTensors = Omit<Pass, 'attention' | 'gradientOf'>;

export function uploadBatch(grads: GradientOps, batch: HostBatch, angles: RopeAngles): PassTensors {
  const { ops } = grads;
  const { inverseFrequencies, attentionScale, exact } = angles;
  const table = (positions: Int32Array) =>
    ops.ropeTable(ops.upload(positions), inverseFrequencies, attentionScale, exact);
  return {
    ops,
    grads,
    rows: batch.rows,
    tokens: ops.upload(batch.tokens),
    segments: ops.upload(batch.segments, batch.segments.length / 6, 6),
    ropeTable: table(batch.positions),
    backTable: table(batch.positions.map((position) => -position)),
  };
}

/** `weight` is what the loss of a row counts for: 1 over all labelled rows of a step. */
export function uploadLabels({ ops }: GradientOps, batch: HostBatch, weight: number): Labels {
  const count = batch.labelled.length;
  const weights = ops.float(count);
  ops.fill(weights, weight);
  return {
    count,
    rows: ops.upload(batch.labelled),
    targets: ops.upload(batch.targets),
    weights,
  };
}

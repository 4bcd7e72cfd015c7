import type { Tensor } from '../native/tensor';
import type { Work } from './limits';
import type { Workbench } from './workbench';

/** What is asked of a kernel: at most `us`, or at least the others. */
export type Target =
  | { us: number }
  /** Bytes a second, in 10^12. */
  | { tbs: number }
  | { tflops: number }
  /** Of the limit measured in the same run. */
  | { share: number };

/** One row of a table: an operation at a size. */
export interface KernelCase {
  table: string;
  name: string;
  /** What others measured, for the reader. */
  peer?: string;
  target?: Target;
  note?: string;
  /** `element` is the size of an activation. */
  work: (element: number) => Work;
  prepare: (bench: Workbench) => Prepared;
}

export interface Prepared {
  /** Copies of the working set that runs take in turn, so that each finds it cold. */
  sets: number;
  /** Enqueues one run; returns what it wrote. */
  run: (set: number) => readonly Tensor[];
}

/** The sizes of the tables, or small ones that a CPU does in a moment. */
export interface Sizes {
  small: boolean;
  tokens(count: number): number;
  width(size: number): number;
  heads(count: number): number;
  batch(count: number): number;
}

const same = (value: number): number => value;
export const fullSizes: Sizes = {
  small: false,
  tokens: same,
  width: same,
  heads: same,
  batch: same,
};
export const smallSizes: Sizes = {
  small: true,
  tokens: (count) => Math.ceil(count / 64),
  width: (size) => Math.ceil(size / 16),
  heads: (count) => Math.ceil(count / 16),
  batch: (count) => Math.min(count, 3),
};

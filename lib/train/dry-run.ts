import { Arena, Stream } from '../native/device';
import type { NativeArena, NativeStream } from '../native/binding';
import { GradientOps } from '../native/gradient-ops';
import { Ops } from '../native/ops';
import { bytesPerElement, dtypes, type DType } from '../native/tensor';

/** As native/core/memory: the arena aligns what it gives. */
const alignment = 256;

/**
 * The most bytes of the arena that `body` has in use at a time. Nothing is computed and no memory is
 * taken: tensors have shapes and sizes, and nothing else.
 */
export function dryBytes(activation: DType, body: (grads: GradientOps) => void): number {
  const arena = new CountingArena();
  const silent = new Proxy({} as NativeStream, { get: () => () => {} });
  body(new GradientOps(new Ops(new Stream(silent, activation), new Arena(arena))));
  return arena.most;
}

class CountingArena implements NativeArena {
  most = 0;
  private used = 0;

  allocate(dtype: number, shape: readonly number[]): number {
    const elements = shape.reduce((product, extent) => product * extent, 1);
    const bytes = elements * bytesPerElement[dtypes[dtype] ?? 'f32'];
    this.used += Math.ceil(Math.max(bytes, 1) / alignment) * alignment;
    this.most = Math.max(this.most, this.used);
    return 0;
  }

  view(): number {
    return 0;
  }

  mark(): number {
    return this.used;
  }

  release(mark: number): void {
    this.used = mark;
  }
}

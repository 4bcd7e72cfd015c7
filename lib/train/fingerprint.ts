import { createHash } from 'node:crypto';

import type { Checkpoint } from '../checkpoint/checkpoint';

/** Tells runs apart by what decides their result: options, data, and the checkpoint's tensors. */
export function fingerprintOf(
  { tensors, files, architecture }: Checkpoint,
  ...decisive: unknown[]
): string {
  const weights = [...tensors.values()].map(({ name, dtype, shape }) => [name, dtype, shape]);
  const sizes = files.map(({ bytes }) => bytes);
  const text = JSON.stringify([architecture, weights, sizes, decisive]);
  return createHash('sha256').update(text).digest('hex');
}

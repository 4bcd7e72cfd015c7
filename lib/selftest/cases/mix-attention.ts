import { mixAttention, mixAttentionBackward } from '../../native/attention-gradient-ops';
import { host } from '../host-tensor';
import { defineCases } from './operation';

export interface MixAttentionCase {
  name: string;
  shape: readonly [number, number, number];
  alpha: number;
  /** full and streaming have the type of activations. */
  direct?: boolean;
}

export const mixAttentionCases = defineCases({
  operation: 'mix_attention',
  cases: [
    { name: 'one value', shape: [1, 1, 1], alpha: 0.25 },
    { name: 'a few rows', shape: [5, 3, 24], alpha: 0.7, direct: true },
    { name: 'odd sizes', shape: [77, 3, 7], alpha: 0.3 },
    { name: 'alpha 1', shape: [9, 2, 16], alpha: 1, direct: true },
    { name: 'alpha 0', shape: [9, 2, 16], alpha: 0 },
    { name: 'many rows', shape: [400, 2, 128], alpha: 0.55 },
    { name: 'outside [0, 1]', shape: [30, 2, 64], alpha: 1.5, direct: true },
  ] as MixAttentionCase[],
  inputs: (c, random, act) => {
    const count = c.shape[0] * c.shape[1] * c.shape[2];
    const source = c.direct ? act : 'f32';
    return {
      full: host(source, c.shape, random.normals(count)),
      streaming: host(source, c.shape, random.normals(count)),
      dOut: host(act, c.shape, random.normals(count)),
      alphas: host('f32', [3], [NaN, c.alpha, NaN]),
      dAlphas: host('f32', [3], [NaN, 2, NaN]),
    };
  },
  run: (ops, { full, streaming, dOut, alphas, dAlphas }) => {
    const [alpha, dAlpha] = [alphas.slice(0, 1, 2), dAlphas.slice(0, 1, 2)];
    const into = { full: ops.activation(...dOut.shape), streaming: ops.activation(...dOut.shape) };
    mixAttentionBackward(ops, alpha, full, streaming, dOut, dAlpha, into);
    return {
      out: mixAttention(ops, alpha, full, streaming),
      dFull: into.full,
      dStreaming: into.streaming,
      dAlpha,
    };
  },
  reference: (_, { full, streaming, dOut, alphas }) => {
    const alpha = alphas.values[1]!;
    const gradient = Float64Array.from(dOut.values);
    const difference = Float64Array.from(full.values, (x, i) => x - streaming.values[i]!);
    return {
      out: difference.map((delta, i) => streaming.values[i]! + alpha * delta),
      dFull: gradient.map((d) => alpha * d),
      dStreaming: gradient.map((d) => (1 - alpha) * d),
      dAlpha: Float64Array.of(2 + gradient.reduce((sum, d, i) => sum + d * difference[i]!, 0)),
    };
  },
  tolerance: (_, output) => ({
    relative: output === 'dAlpha' ? 2e-5 : 1e-6,
    ...(output === 'dAlpha' ? { inBf16: { relative: 2e-5 } } : {}),
  }),
});

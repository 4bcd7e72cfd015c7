import type { RouterOptions } from '../../native/ops';
import { host } from '../host-tensor';
import { defineCases } from './operation';

interface Case extends RouterOptions {
  name: string;
  rows: number;
  experts: number;
  bias?: boolean;
  /** Mean of the bias; far below 0, masked choices of 0 would win. */
  biasMean?: number;
  /** Logits rounded to multiples of this: ties. */
  step?: number;
}

const plain = {
  scoring: 'softmax',
  groupScore: 'max',
  groups: 1,
  topGroups: 1,
  normalize: false,
  scale: 1,
} as const;
const longcat = { ...plain, experts: 768, topK: 12, bias: true, scale: 6 };
const deepseekV3 = {
  ...plain,
  experts: 256,
  topK: 8,
  bias: true,
  scoring: 'sigmoid',
  groupScore: 'topTwoSum',
  groups: 8,
  topGroups: 4,
  normalize: true,
  scale: 2.5,
} as const;
const deepseekV2 = { ...plain, experts: 160, topK: 6, groups: 8, topGroups: 3, scale: 16 };

/** Indices of the `count` largest values, ties to the lower index. */
export function topIndices(values: ArrayLike<number>, count: number): number[] {
  const order = Array.from(values, (_, i) => i);
  return order.sort((a, b) => values[b]! - values[a]! || a - b).slice(0, count);
}

export function softmax(logits: ArrayLike<number>): Float64Array {
  const largest = Array.from(logits).reduce((a, b) => Math.max(a, b));
  const weights = Float64Array.from(logits, (x) => Math.exp(x - largest));
  const total = weights.reduce((a, b) => a + b);
  return weights.map((weight) => weight / total);
}

function maskGroups(choices: Float64Array, c: Case): Float64Array {
  const size = choices.length / c.groups;
  const scores = Array.from({ length: c.groups }, (_, group) => {
    const sorted = choices
      .slice(group * size, (group + 1) * size)
      .sort()
      .reverse();
    return c.groupScore === 'max' ? sorted[0]! : sorted[0]! + sorted[1]!;
  });
  const kept = new Set(topIndices(scores, c.topGroups));
  const masked = c.groupScore === 'max' ? 0 : -Infinity;
  return choices.map((choice, e) => (kept.has(Math.floor(e / size)) ? choice : masked));
}

/** Model-spec sections 1.4 and 4.2, in float64. */
function routeRow(
  logits: ArrayLike<number>,
  bias: ArrayLike<number> | undefined,
  c: Case,
): { ids: number[]; weights: number[] } {
  const p =
    c.scoring === 'softmax'
      ? softmax(logits)
      : Float64Array.from(logits, (x) => 1 / (1 + Math.exp(-x)));
  const choices = p.map((value, e) => value + (bias?.[e] ?? 0));
  const ids = topIndices(c.groups > 1 ? maskGroups(choices, c) : choices, c.topK);
  const chosen = ids.map((id) => p[id]!);
  const divisor = c.normalize ? chosen.reduce((a, b) => a + b) + 1e-20 : 1;
  return { ids, weights: chosen.map((value) => (value / divisor) * c.scale) };
}

export const route = defineCases({
  operation: 'route',
  cases: [
    { name: 'one expert', ...plain, rows: 1, experts: 1, topK: 1 },
    { name: 'every expert', ...plain, rows: 3, experts: 5, topK: 5 },
    { name: 'LongCat', ...longcat, rows: 40 },
    { name: 'LongCat without bias', ...longcat, bias: false, rows: 7 },
    { name: 'LongCat with normalised weights', ...longcat, normalize: true, rows: 7 },
    { name: 'LongCat, many rows', ...longcat, rows: 200 },
    { name: 'LongCat with ties', ...longcat, bias: false, step: 0.5, rows: 20 },
    { name: 'DeepSeek V2 greedy', ...deepseekV2, groups: 1, topGroups: 1, rows: 9 },
    { name: 'DeepSeek V2 with groups', ...deepseekV2, rows: 9 },
    { name: 'DeepSeek V2 with groups and ties', ...deepseekV2, step: 1, rows: 9 },
    { name: 'DeepSeek V3', ...deepseekV3, rows: 20 },
    { name: 'DeepSeek V3, one group of eight', ...deepseekV3, topGroups: 1, rows: 9 },
    { name: 'DeepSeek V3 with ties', ...deepseekV3, bias: false, step: 1, rows: 20 },
    { name: 'DeepSeek V3 with negative choices', ...deepseekV3, biasMean: -3, rows: 9 },
    { name: 'DeepSeek V2 with negative choices', ...deepseekV2, bias: true, biasMean: -3, rows: 9 },
    {
      name: 'sigmoid without groups',
      ...deepseekV3,
      groups: 1,
      topGroups: 1,
      groupScore: 'max',
      rows: 9,
    },
  ] as Case[],
  inputs: (c, random) => {
    const step = c.step ?? 0;
    const raw = random.normals(c.rows * c.experts, 1.5);
    const logits = step === 0 ? raw : raw.map((x) => Math.round(x / step) * step);
    const spread = c.scoring === 'softmax' ? 1 / c.experts : 0.2;
    return {
      logits: host('f32', [c.rows, c.experts], logits),
      bias: c.bias
        ? host(
            'f32',
            [c.experts],
            random.normals(c.experts, spread).map((x) => x + (c.biasMean ?? 0)),
          )
        : undefined,
    };
  },
  run: (ops, { logits, bias }, c) => ops.route(logits, bias, c),
  reference: (c, { logits, bias }) => {
    const ids = new Int32Array(c.rows * c.topK);
    const weights = new Float64Array(c.rows * c.topK);
    for (let row = 0; row < c.rows; row++) {
      const values = logits.values.subarray(row * c.experts, (row + 1) * c.experts);
      const chosen = routeRow(values, bias?.values, c);
      ids.set(chosen.ids, row * c.topK);
      weights.set(chosen.weights, row * c.topK);
    }
    return { ids, weights };
  },
  tolerance: () => ({ relative: 5e-7 }),
});

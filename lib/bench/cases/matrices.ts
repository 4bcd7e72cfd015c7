import type { ExpertPlan } from '../../native/ops';
import type { DType } from '../../native/tensor';
import { bytesPerElement } from '../../native/tensor';
import { Random } from '../../selftest/random';
import type { KernelCase, Prepared, Sizes, Target } from '../kernel-case';
import { groupedLinearWork, linearWork } from '../limits';
import type { Workbench } from '../workbench';

type WeightType = Extract<DType, 'bf16' | 'f8e4m3'>;
const weightTypes: readonly WeightType[] = ['bf16', 'f8e4m3'];
const shown = { bf16: 'bf16', f8e4m3: 'FP8 128×128' } as const;

/** LongCat's feed-forward at the rows of a decode step; weights of 64 MB and more are meant. */
export function smallRowCases(sizes: Sizes): KernelCase[] {
  const [n, k] = [sizes.width(12288), sizes.width(6144)];
  return weightTypes.flatMap((type) =>
    [1, 8, 16, 32, 64].map((rows): KernelCase => ({
      table: 'linear, few rows',
      name: `6144 → 12288, ${shown[type]}, ${rows} rows`,
      ...(type === 'bf16' && rows === 1 ? { peer: '2.25 TB/s (cuBLAS)' } : {}),
      target: { share: 0.85 },
      work: (element) => ({
        ...linearWork({
          rows,
          n,
          k,
          weight: bytesPerElement[type],
          input: element,
          output: element,
        }),
        fp8: type === 'f8e4m3',
      }),
      prepare: (bench) => {
        const x = bench.activations(rows, k);
        const weights = bench.copies(n * k * bytesPerElement[type], () => bench.weight(type, n, k));
        return { sets: weights.length, run: (set) => [bench.ops.linear(x, weights[set]!)] };
      },
    })),
  );
}

interface ExpertsRow {
  tokens: number;
  topK: number;
  experts: number;
  n: number;
  k: number;
  type: WeightType;
  /** Gate and up read the tokens, each as often as it was routed; down reads the slots. */
  fromTokens: boolean;
}

/** Peer and target of the gate and up projection, then of the down projection where it has any. */
const expertTargets: Record<
  WeightType,
  readonly [tokens: number, peer: string, Target, downPeer?: string][]
> = {
  bf16: [
    [16, '3.20 TB/s', { tbs: 3.0 }],
    [128, '2.73 TB/s', { tbs: 2.75 }, '2.6 TB/s'],
    [2048, '466 TFLOP/s', { tflops: 580 }],
    [16384, '658 TFLOP/s', { tflops: 670 }, '658 TFLOP/s'],
  ],
  f8e4m3: [
    [16, '2.98 TB/s', { tbs: 2.8 }],
    [128, '2.55 TB/s', { tbs: 2.6 }, '2.6 TB/s'],
    [2048, '681 TFLOP/s', { tflops: 780 }],
    [16384, '1020 TFLOP/s', { tflops: 1050 }, '898 TFLOP/s'],
  ],
};

/** Experts of LongCat's sizes, 64 of them, 8 real ones a token. */
export function expertCases(sizes: Sizes): KernelCase[] {
  const [hidden, inner] = [sizes.width(6144), sizes.width(2048)];
  const projections = [
    { title: 'gate and up, 6144 → 4096', n: 2 * inner, k: hidden, fromTokens: true },
    { title: 'down, 2048 → 6144', n: hidden, k: inner, fromTokens: false },
  ];
  return projections.flatMap(({ title, n, k, fromTokens }) =>
    weightTypes.flatMap((type) =>
      expertTargets[type].map(([tokens, peer, target, downPeer]): KernelCase => {
        const count = sizes.tokens(tokens);
        const experts = sizes.small ? 16 : 64;
        const row = { tokens: count, topK: 8, experts, n, k, type, fromTokens };
        const shownPeer = fromTokens ? peer : downPeer;
        return {
          table: 'experts',
          name: `${title}, ${shown[type]}, ${tokens} tokens`,
          ...(shownPeer === undefined ? {} : { peer: shownPeer }),
          target,
          work: (element) => expertsWork(row, element),
          prepare: (bench) => prepareExperts(row, bench),
        };
      }),
    ),
  );
}

/** [tokens, topK] different experts a token. */
export function routedIds(tokens: number, topK: number, choices: number): Int32Array {
  const random = new Random('routes');
  const ids = new Int32Array(tokens * topK);
  for (let token = 0; token < tokens; token++) {
    const chosen = new Set<number>();
    while (chosen.size < topK) chosen.add(random.below(choices));
    ids.set([...chosen], token * topK);
  }
  return ids;
}

function expertsWork(
  { tokens, topK, experts, n, k, type, fromTokens }: ExpertsRow,
  element: number,
) {
  const hit = new Set(routedIds(tokens, topK, experts)).size;
  const slots = tokens * topK;
  const sources = fromTokens ? tokens : slots;
  const sizes = { weight: bytesPerElement[type], input: element, output: element };
  return {
    ...groupedLinearWork({ slots, sources, hit, n, k, ...sizes }),
    fp8: type === 'f8e4m3',
  };
}

function prepareExperts(row: ExpertsRow, bench: Workbench): Prepared {
  const { tokens, topK, experts, n, k, type, fromTokens } = row;
  const { ops } = bench;
  const x = bench.activations(fromTokens ? tokens : tokens * topK, k);
  const plan = lastingPlan(bench, routedIds(tokens, topK, experts), tokens, topK, experts);
  const bytes = experts * n * k * bytesPerElement[type];
  const weights = bench.copies(bytes, () => bench.weight(type, experts, n, k));
  return {
    sets: weights.length,
    run: (set) => [ops.groupedLinear(x, weights[set]!, plan, fromTokens ? topK : undefined)],
  };
}

/** The plan of routed ids, made by the operation itself. */
export function lastingPlan(
  bench: Workbench,
  ids: Int32Array,
  tokens: number,
  topK: number,
  experts: number,
): ExpertPlan {
  return bench.lasting.expertPlan(bench.integers(ids, tokens, topK), experts);
}

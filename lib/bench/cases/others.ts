import type { Ops } from '../../native/ops';
import type { Tensor } from '../../native/tensor';
import { Random } from '../../selftest/random';
import type { KernelCase, Sizes, Target } from '../kernel-case';
import type { Work } from '../limits';
import type { Workbench } from '../workbench';
import { latent, rope } from './decode';
import { lastingPlan, routedIds } from './matrices';

/** LongCat-Flash's sizes, 8K tokens, unless the name says otherwise. */
interface Shape {
  tokens: number;
  hidden: number;
  inner: number;
  queryRank: number;
  heads: number;
  topK: number;
  experts: number;
  zeroExperts: number;
  vocabulary: number;
  rows: number;
}

/** `bytes` counts what is read and written once; `element` is the size of an activation. */
interface Other {
  name: string;
  bytes: (element: number) => number;
  flops?: number;
  /** What a set takes, for rotation beyond the caches. */
  prepare: (bench: Workbench, ops: Ops) => { make: () => () => readonly Tensor[] };
}

const target: Target = { share: 0.8 };

export function otherCases(sizes: Sizes): KernelCase[] {
  const shape: Shape = {
    tokens: sizes.tokens(8192),
    hidden: sizes.width(6144),
    inner: sizes.width(12288),
    queryRank: sizes.width(1536),
    heads: sizes.heads(64),
    topK: sizes.small ? 6 : 12,
    experts: sizes.width(512),
    zeroExperts: sizes.width(256),
    vocabulary: sizes.width(131072),
    rows: sizes.batch(32),
  };
  const others = [
    ...tokenCases(shape),
    ...attentionCases(shape),
    ...headCases(shape),
    ...expertCases(shape),
    ...samples(shape),
  ];
  return others.map(({ name, bytes, flops = 0, prepare }): KernelCase => ({
    table: 'everything else',
    name,
    target,
    work: (element): Work => ({ bytes: bytes(element), flops }),
    prepare: (bench) => {
      const { make } = prepare(bench, bench.ops);
      const sets = bench.copies(bytes(bench.activationBytes), make);
      return { sets: sets.length, run: (set) => sets[set]!() };
    },
  }));
}

function tokenCases({ tokens, hidden, inner, queryRank, vocabulary }: Shape): Other[] {
  return [
    {
      name: 'embedding: gather_rows to f32, 6144 wide',
      bytes: () => tokens * (hidden * (2 + 4) + 4),
      prepare: (bench, ops) => {
        const table = bench.weight('bf16', vocabulary, hidden).tensor;
        const ids = bench.integers(bench.random.integers(tokens, vocabulary));
        return { make: () => () => [ops.gatherFloatRows(table, ids)] };
      },
    },
    {
      name: 'rms_norm of the f32 residual, 6144 wide',
      bytes: (element) => tokens * hidden * (4 + element),
      prepare: (bench, ops) => {
        const weight = bench.normal('bf16', [hidden]);
        const make = () => {
          const x = bench.normal('f32', [tokens, hidden]);
          return () => [ops.rmsNorm(x, weight, 1e-5)];
        };
        return { make };
      },
    },
    {
      name: 'rms_norm of the compressed query, 1536 wide',
      bytes: (element) => tokens * queryRank * 2 * element,
      prepare: (bench, ops) => {
        const weight = bench.normal('bf16', [queryRank]);
        const make = () => {
          const x = bench.activations(tokens, queryRank);
          return () => [ops.rmsNorm(x, weight, 1e-5, 2)];
        };
        return { make };
      },
    },
    {
      name: 'swiglu, 12288 wide',
      bytes: (element) => tokens * inner * 3 * element,
      prepare: (bench, ops) => ({
        make: () => {
          const gateUp = bench.activations(tokens, 2 * inner);
          return () => [ops.swiglu(gateUp)];
        },
      }),
    },
    {
      name: 'cast of the f32 attention to activations, 8192 wide',
      bytes: (element) => tokens * (hidden / 3) * 4 * (4 + element),
      prepare: (bench, ops) => ({
        make: () => {
          const input = bench.normal('f32', [tokens, (hidden / 3) * 4]);
          return () => {
            const out = ops.activation(...input.shape);
            ops.cast(out, input);
            return [out];
          };
        },
      }),
    },
  ];
}

function attentionCases({ tokens, heads }: Shape): Other[] {
  const nope = 128;
  return [
    {
      name: 'latent_store, 512 + 64 wide',
      bytes: (element) => tokens * ((latent + rope) * 2 * element + rope * 4 + 4),
      prepare: (bench, ops) => {
        const weight = bench.normal('bf16', [latent]);
        const table = bench.normal('f32', [tokens, rope]);
        const slots = bench.integers(bench.random.permutation(tokens));
        const make = () => {
          const kv = bench.activations(tokens, latent + rope);
          const cache = bench.activations(tokens, latent + rope);
          return () => {
            ops.latentStore(cache, kv, weight, table, slots, 1e-5, 3.46);
            return [cache];
          };
        };
        return { make };
      },
    },
    {
      name: 'rope of the queries, 64 heads of 64 in 192',
      bytes: (element) => tokens * (heads * rope * 2 * element + rope * 4),
      prepare: (bench, ops) => {
        const positions = Int32Array.from({ length: tokens }, (_, i) => i);
        const frequencies = bench.normal('f32', [2, rope / 2], 0.1);
        const at = bench.integers(positions);
        const table = bench.lasting.ropeTable(at, frequencies, 1, false);
        const make = () => {
          const q = bench.activations(tokens, heads, nope + rope);
          const rotated = q.slice(2, nope, nope + rope);
          return () => {
            ops.rope(rotated, table);
            return [q];
          };
        };
        return { make };
      },
    },
  ];
}

/** Products a head, with views of kv_b_proj as the model takes them. */
function headCases({ tokens, heads }: Shape): Other[] {
  const [nope, value] = [128, 128];
  const perHead = (nope + value) * latent;
  const up = { n: latent, k: nope, strides: [perHead, 1, latent], offset: 0 };
  const down = { n: value, k: latent, strides: [perHead, latent, 1], offset: nope * latent };
  const head = (name: string, { n, k, strides, offset }: typeof up): Other => ({
    name,
    bytes: (element) => tokens * heads * (n + k) * element + heads * n * k * 2,
    flops: 2 * tokens * heads * n * k,
    prepare: (bench, ops) => {
      const expand = bench.weight('bf16', heads * (nope + value), latent).tensor;
      const weight = expand.view('bf16', [heads, n, k], strides, offset);
      const make = () => {
        const x = bench.activations(tokens, heads, k);
        return () => {
          const out = ops.activation(tokens, heads, n);
          ops.headLinear(out, x, weight);
          return [out];
        };
      };
      return { make };
    },
  });
  return [
    {
      name: 'absorb_query, 64 heads, 128 → 512 and rope',
      bytes: (element) => tokens * heads * (nope + latent + 2 * rope) * element + tokens * rope * 4,
      flops: 2 * tokens * heads * nope * latent,
      prepare: (bench, ops) => {
        const expand = bench.weight('bf16', heads * (nope + value), latent).tensor;
        const weight = expand.view('bf16', [heads, latent, nope], up.strides, up.offset);
        const table = bench.normal('f32', [tokens, rope]);
        const make = () => {
          const q = bench.activations(tokens, heads, nope + rope);
          return () => [ops.absorbQuery(q, weight, table)];
        };
        return { make };
      },
    },
    head('head_linear, 64 heads, 128 → 512 (W_UK)', up),
    head('head_linear, 64 heads, 512 → 128 (W_UV)', down),
  ];
}

function expertCases(shape: Shape): Other[] {
  const { tokens, hidden, topK, experts, zeroExperts } = shape;
  const choices = experts + zeroExperts;
  const ids = () => routedIds(tokens, topK, choices);
  const real = () => ids().filter((id) => id < experts).length;
  return [
    {
      name: 'route, 12 of 512 + 256',
      bytes: () => tokens * (choices * 4 + topK * 8),
      prepare: (bench, ops) => {
        const bias = bench.normal('f32', [choices], 0.001);
        const base = { topK, groups: 1, topGroups: 1, normalize: false, scale: 6 };
        const options = { ...base, scoring: 'softmax', groupScore: 'max' } as const;
        const make = () => {
          const logits = bench.normal('f32', [tokens, choices]);
          return () => {
            const { ids, weights } = ops.route(logits, bias, options);
            return [ids, weights];
          };
        };
        return { make };
      },
    },
    {
      name: 'expert_plan, 12 of 512 + 256',
      bytes: () => tokens * topK * 12 + experts * 4,
      prepare: (bench, ops) => {
        const make = () => {
          const routed = bench.integers(ids(), tokens, topK);
          return () => {
            const { place, starts } = ops.expertPlan(routed, experts);
            return [place, starts];
          };
        };
        return { make };
      },
    },
    {
      name: 'combine, 12 of 512 + 256, 6144 wide',
      bytes: (element) => {
        const rows = tokens * hidden * (8 + element);
        return rows + real() * hidden * element + tokens * topK * 8;
      },
      prepare: (bench, ops) => {
        const plan = lastingPlan(bench, ids(), tokens, topK, experts);
        const weights = bench.normal('f32', [tokens, topK], 0.01);
        const make = () => {
          const sum = bench.normal('f32', [tokens, hidden]);
          const y = bench.activations(tokens * topK, hidden);
          const identity = bench.activations(tokens, hidden);
          return () => {
            ops.combine(sum, y, plan, weights, identity);
            return [sum];
          };
        };
        return { make };
      },
    },
  ];
}

function samples({ rows, vocabulary }: Shape): Other[] {
  const settings: readonly (readonly [string, number[], number])[] = [
    ['greedy', [0, 1, 0, 1], 0],
    ['temperature 1, top-p 0.95', [1, 0.95, 0, 1], 0],
    ['temperature 1, top-k 50, top-p 0.95', [1, 0.95, 0, 1], 50],
  ];
  return settings.map(([name, row, topK]) => ({
    name: `sample, ${name}, batch 32 of 131072`,
    bytes: () => rows * vocabulary * 4,
    prepare: (bench, ops) => {
      const repeated = Float32Array.from({ length: rows * 4 }, (_, i) => row[i % 4] ?? 0);
      const setting = bench.tensor('f32', rows, 4);
      ops.stream.write(setting, repeated);
      const random = new Random('seeds');
      const drawn = Array.from({ length: rows }, () => [topK, random.bits() | 0, 0, 1]).flat();
      const integers = bench.integers(Int32Array.from(drawn), rows, 4);
      const make = () => {
        const logits = bench.normal('f32', [rows, vocabulary], 3);
        return () => {
          const { tokens, logprobs } = ops.sample(logits, setting, integers, undefined, 0);
          return [tokens, logprobs];
        };
      };
      return { make };
    },
  }));
}

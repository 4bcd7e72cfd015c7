import type { NativeOperation } from '../native/binding';
import { fullRange, type Argument, type KeyRange } from '../native/ops';
import { bytesPerElement, type Tensor } from '../native/tensor';
import { blockTokens } from '../kv/layer-group';

/** What an operation cannot do without: bytes it has to move once, and operations it has to do. */
export interface Work {
  bytes: number;
  /** A multiplication and its addition are two. */
  flops: number;
  /** Multiplied in FP8, at twice the rate of bf16. */
  fp8?: boolean;
}

/** What a device can do a second. */
export interface Limits {
  bytes: number;
  /** In bf16 on tensor cores. */
  flops: number;
}

/** NVIDIA H20: published numbers. */
export const h20: Limits = { bytes: 4.0e12, flops: 148e12 };

/** Seconds that the work takes at the limit, and which of the two it is. */
export function roofline(
  { bytes, flops, fp8 = false }: Work,
  limits: Limits,
): { seconds: number; bound: 'bytes' | 'FLOPs' } {
  const moving = bytes / limits.bytes;
  const computing = flops / (limits.flops * (fp8 ? 2 : 1));
  return moving >= computing
    ? { seconds: moving, bound: 'bytes' }
    : { seconds: computing, bound: 'FLOPs' };
}

/** First key of the local part that a query at `position` sees. */
function localStart(position: number, { sinkBlocks, localBlocks }: KeyRange): number {
  const block = Math.floor(position / blockTokens);
  return Math.max(sinkBlocks, block - localBlocks + 1) * blockTokens;
}

/** Keys that queries at `first` to `last` see between them. */
export function keysSeen(first: number, last: number, range: KeyRange): number {
  const sinks = Math.min(range.sinkBlocks * blockTokens, last + 1);
  return sinks + Math.max(0, last + 1 - Math.max(localStart(first, range), sinks));
}

/** Pairs of query and key of `count` queries from `position` on. */
export function pairsSeen(position: number, count: number, range: KeyRange): number {
  // Without a window every query sees all before it, and itself.
  if (range.localBlocks >= fullRange.localBlocks)
    return count * position + (count * (count + 1)) / 2;
  let pairs = 0;
  for (let t = position; t < position + count; t++) pairs += keysSeen(t, t, range);
  return pairs;
}

interface Matrices {
  rows: number;
  n: number;
  k: number;
  /** Bytes of an element of the weight, the input and the output. */
  weight: number;
  input: number;
  output: number;
  /** The output is added to. */
  accumulate?: boolean;
}

export function linearWork({ rows, n, k, weight, input, output, accumulate }: Matrices): Work {
  const outBytes = rows * n * output * (accumulate ? 2 : 1);
  return { bytes: n * k * weight + rows * k * input + outBytes, flops: 2 * rows * n * k };
}

/**
 * `slots` rows over the experts; only `hit` experts have any, and only their weights are read.
 * `sources` rows of input are read.
 */
export function groupedLinearWork(
  shape: Omit<Matrices, 'rows' | 'accumulate'> & { slots: number; sources: number; hit: number },
): Work {
  const { slots, sources, hit, n, k, weight, input, output } = shape;
  return {
    bytes: hit * n * k * weight + sources * k * input + slots * n * output,
    flops: 2 * slots * n * k,
  };
}

/** Experts that get a row when `slots` fall on `experts` evenly, in expectation. */
export function expertsHit(slots: number, experts: number): number {
  return experts * (1 - (1 - 1 / experts) ** slots);
}

/** `keys` rows of cache are read by all heads; `seen` of them by each row of queries. */
export function decodeWork(shape: {
  rows: number;
  heads: number;
  latent: number;
  rope: number;
  keys: number;
  seen: number;
  element: number;
  /** Bytes of a row of cache. */
  rowBytes: number;
}): Work {
  const { rows, heads, latent, rope, keys, seen, element, rowBytes } = shape;
  const width = latent + rope;
  return {
    bytes: keys * rowBytes + rows * heads * (width + latent) * element,
    flops: 2 * rows * heads * seen * (width + latent),
  };
}

/** Expanded attention of `rows` queries over `keys` expanded keys, `pairs` of them multiplied. */
export function prefillWork(shape: {
  rows: number;
  keys: number;
  pairs: number;
  heads: number;
  queryDim: number;
  valueDim: number;
  ropeDim: number;
  element: number;
}): Work {
  const { rows, keys, pairs, heads, queryDim, valueDim, ropeDim, element } = shape;
  const perHead = queryDim - ropeDim + valueDim;
  const read = keys * (heads * perHead + ropeDim) + rows * heads * queryDim;
  return {
    bytes: read * element + rows * heads * valueDim * 4,
    flops: 2 * pairs * heads * (queryDim + valueDim),
  };
}

/** What the shapes of a step's operations do not say. */
export interface StepFacts {
  /** New tokens of a sequence, and the position of the first. */
  count: number;
  position: number;
  /** Part of the routed slots that real experts get, in expectation. */
  realExperts: number;
}

const isTensor = (argument: Argument): argument is Tensor => typeof argument === 'object';
/** The tensors of a rank: operations may get optional ones between. */
const tensorsOf = (args: readonly Argument[], rank: number): Tensor[] =>
  args.filter(isTensor).filter(({ shape }) => shape.length === rank);
const bytesOf = (argument: Argument): number => (isTensor(argument) ? argument.bytes : 0);
const elementOf = (argument: Argument): number =>
  isTensor(argument) ? bytesPerElement[argument.dtype] : 0;
const allBytes = (args: readonly Argument[]): number =>
  args.reduce<number>((sum, argument) => sum + bytesOf(argument), 0);

type CallWork = (args: readonly Argument[], facts: StepFacts) => Work;

/** One matrix a head: [out, x, weight, more that is read]. */
const headWork: CallWork = (args) => {
  const [, x, weight] = args as [Tensor, Tensor, Tensor];
  return { bytes: allBytes(args), flops: 2 * x.dim(0) * weight.elements };
};

/** One function a kind of operation, by its arguments in the order of its params struct. */
const workOf: Partial<Record<NativeOperation, CallWork>> = {
  Linear: (args) => {
    const [out, x, weight, , accumulate] = args as [Tensor, Tensor, Tensor, Argument, boolean];
    const [rows, n, k] = [x.dim(0), weight.dim(0), weight.dim(1)];
    const sizes = { weight: elementOf(weight), input: elementOf(x), output: elementOf(out) };
    const fp8 = weight.dtype === 'f8e4m3';
    return { ...linearWork({ rows, n, k, ...sizes, accumulate }), fp8 };
  },
  HeadLinear: headWork,
  AbsorbQuery: headWork,
  GroupedLinear: (args, { realExperts }) => {
    const [out, x, weight] = args as [Tensor, Tensor, Tensor];
    const [experts, n, k] = [weight.dim(0), weight.dim(1), weight.dim(2)];
    const slots = out.dim(0) * realExperts;
    const sources = Math.min(x.dim(0), slots);
    const sizes = { weight: elementOf(weight), input: elementOf(x), output: elementOf(out) };
    const hit = expertsHit(slots, experts);
    const fp8 = weight.dtype === 'f8e4m3';
    return { ...groupedLinearWork({ slots, sources, hit, n, k, ...sizes }), fp8 };
  },
  Combine: (args, { realExperts }) => {
    const [out, y, place, weights, identity] = args;
    const read = bytesOf(y) * realExperts + bytesOf(place) + bytesOf(weights) + bytesOf(identity);
    return { bytes: 2 * bytesOf(out) + read, flops: 0 };
  },
  GatherRows: (args) => {
    const [out, table, ids] = args as [Tensor, Tensor, Tensor];
    const read = ids.elements * table.dim(1) * elementOf(table);
    return { bytes: out.bytes + read + ids.bytes, flops: 0 };
  },
  LatentStore: (args) => {
    const [cache, kv, weight, table, slots] = args as [Tensor, Tensor, Tensor, Tensor, Tensor];
    const written = slots.elements * cache.dim(1) * elementOf(cache);
    const query = 2 * bytesOf(args[7]) + bytesOf(args[8]);
    const read = kv.bytes + weight.bytes + table.bytes + slots.bytes;
    return { bytes: written + read + query, flops: 0 };
  },
  Rope: (args) => {
    const tensors = args.filter(isTensor);
    return { bytes: 2 * bytesOf(tensors[0]) + bytesOf(tensors.at(-1)), flops: 0 };
  },
  // Of the cache it takes the type, not a byte.
  AttentionPlan: ([plan, , ...tables]) => ({ bytes: allBytes([plan, ...tables]), flops: 0 }),
  AttentionDecode: (args, { count, position }) => {
    const [out, q] = tensorsOf(args, 3) as [Tensor, Tensor];
    const [sinkBlocks, localBlocks] = args.slice(-2) as [number, number];
    const range = { sinkBlocks, localBlocks };
    const [rows, heads, latent] = [q.dim(0), q.dim(1), out.dim(2)];
    const cache = args[args.indexOf(q) + 1] as Tensor;
    return decodeWork({
      ...{ rows, heads, latent, rope: q.dim(2) - latent },
      keys: (rows / count) * keysSeen(position, position + count - 1, range),
      seen: pairsSeen(position, count, range) / count,
      element: elementOf(q),
      rowBytes: cache.dim(1) * elementOf(cache),
    });
  },
  AttentionPrefill: (args, { count, position }) => {
    const [out, q, kv] = tensorsOf(args, 3) as [Tensor, Tensor, Tensor];
    const kRope = tensorsOf(args.slice(args.indexOf(kv)), 2)[0] as Tensor;
    const [sinkBlocks, localBlocks] = args.slice(-2) as [number, number];
    const range = { sinkBlocks, localBlocks };
    const [rows, heads, keys] = [q.dim(0), q.dim(1), kv.dim(0)];
    // A round has its share of the pairs, by keys: the sum over the rounds is exact.
    const sequences = rows / count;
    const share = keys / (sequences * keysSeen(position, position + count - 1, range));
    return prefillWork({
      ...{ rows, keys, heads, queryDim: q.dim(2), valueDim: out.dim(2), ropeDim: kRope.dim(1) },
      pairs: sequences * pairsSeen(position, count, range) * share,
      element: elementOf(q),
    });
  },
};

/** Reading and writing every tensor once is the limit of what is not listed. */
export function callWork(
  operation: NativeOperation,
  args: readonly Argument[],
  facts: StepFacts,
): Work {
  const work = workOf[operation]?.(args, facts);
  const known = work !== undefined && Number.isFinite(work.bytes + work.flops);
  return known ? work : { bytes: allBytes(args), flops: 0 };
}

/** The shapes that tell calls of one operation apart. */
export function callShape(operation: NativeOperation, args: readonly Argument[]): string {
  const shape = (tensor: Tensor | undefined): string => tensor?.shape.join('×') ?? '';
  if (operation === 'AttentionDecode' || operation === 'AttentionPrefill') {
    const streams = (args.at(-1) as number) < fullRange.localBlocks;
    return `${streams ? 'streaming' : 'full'}, q ${shape(tensorsOf(args, 3)[1])}`;
  }
  const [first, second, third] = args.filter(isTensor);
  if (!operation.endsWith('Linear')) return shape(first);
  return `${shape(second)} · ${shape(third)} ${third?.dtype ?? ''}`;
}

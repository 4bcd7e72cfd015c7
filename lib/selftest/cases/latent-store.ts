import type { DType } from '../../native/tensor';
import { host, roundToBf16 } from '../host-tensor';
import { asLatentCache, hostLatentCache, latentRows, throughCodes } from './latent-cache';
import { defineCases } from './operation';
import { rmsNorm } from './rms-norm';
import { inverseFrequencies, ropeAngles, rotate } from './rope';

interface StoreCase {
  name: string;
  /** 'act': of the type of activations. */
  cache: 'f32' | 'bf16' | 'fp8' | 'act';
  weight: 'f32' | 'bf16';
  rows: number;
  slots: number;
  latent: number;
  rope: number;
  scale: number;
  padded?: boolean; // every third row is padding: slot -1
  /** Width of the compressed query, and its factor. */
  query?: { rank: number; scale: number };
}

const eps = 1e-5;

/** Why a case with this cache is left out. */
export function skipFloatCache(cache: StoreCase['cache'], act: DType): string | undefined {
  return cache === 'f32' && act === 'bf16' ? 'the KV cache is bf16 beside bf16' : undefined;
}

export const latentStore = defineCases({
  operation: 'latent_store',
  cases: [
    {
      name: 'smallest',
      cache: 'act',
      weight: 'f32',
      rows: 1,
      slots: 1,
      latent: 1,
      rope: 2,
      scale: 1,
    },
    {
      name: 'LongCat in f32',
      cache: 'f32',
      weight: 'bf16',
      rows: 20,
      slots: 256,
      latent: 512,
      rope: 64,
      scale: Math.sqrt(12),
      padded: true,
    },
    {
      name: 'LongCat in bf16',
      cache: 'bf16',
      weight: 'bf16',
      rows: 150,
      slots: 256,
      latent: 512,
      rope: 64,
      scale: Math.sqrt(12),
      padded: true,
    },
    {
      name: 'LongCat with its queries',
      cache: 'bf16',
      weight: 'bf16',
      rows: 11,
      slots: 128,
      latent: 512,
      rope: 64,
      scale: Math.sqrt(12),
      padded: true,
      query: { rank: 1536, scale: 2 },
    },
    {
      name: 'many rows with their queries',
      cache: 'bf16',
      weight: 'bf16',
      rows: 1500,
      slots: 1536,
      latent: 64,
      rope: 8,
      scale: 1,
      padded: true,
      query: { rank: 96, scale: 2 },
    },
    {
      name: 'odd sizes with queries',
      cache: 'bf16',
      weight: 'f32',
      rows: 5,
      slots: 30,
      latent: 70,
      rope: 6,
      scale: 1,
      query: { rank: 1301, scale: 0.5 },
    },
    {
      name: 'odd sizes',
      cache: 'bf16',
      weight: 'f32',
      rows: 9,
      slots: 30,
      latent: 37,
      rope: 6,
      scale: 1,
    },
    {
      name: 'LongCat in FP8',
      cache: 'fp8',
      weight: 'bf16',
      rows: 150,
      slots: 256,
      latent: 512,
      rope: 64,
      scale: Math.sqrt(12),
      padded: true,
      query: { rank: 1536, scale: 2 },
    },
    {
      name: 'odd sizes in FP8',
      cache: 'fp8',
      weight: 'f32',
      rows: 9,
      slots: 128,
      latent: 37,
      rope: 6,
      scale: 1,
    },
  ] as StoreCase[],
  skip: ({ cache }, _kind, act) => skipFloatCache(cache, act),
  inputs: (c, random, act) => {
    const width = c.latent + c.rope;
    const positions = random.integers(c.rows, 100000);
    const slots = random.permutation(c.slots).slice(0, c.rows);
    const rows = random.normals(c.slots * width);
    return {
      cache:
        c.cache === 'fp8'
          ? hostLatentCache(rows, c)
          : host(c.cache === 'act' ? act : c.cache, [c.slots, width], rows),
      kv: host(act, [c.rows, width], random.normals(c.rows * width), 3),
      weight: host(c.weight, [c.latent], random.normals(c.latent)),
      table: host(
        'f32',
        [c.rows, c.rope],
        ropeAngles(positions, inverseFrequencies(c.rope, 1e7), false),
      ),
      slots: host(
        'i32',
        [c.rows],
        slots.map((slot, row) => (c.padded && row % 3 === 1 ? -1 : slot)),
      ),
      query: c.query && host(act, [c.rows, c.query.rank], random.normals(c.rows * c.query.rank)),
      queryWeight: c.query && host(c.weight, [c.query.rank], random.normals(c.query.rank)),
    };
  },
  run: (ops, { cache, kv, weight, table, slots, query: x, queryWeight }, c) => {
    const query = x && queryWeight && { x, weight: queryWeight, scale: c.query?.scale ?? 1 };
    const to = c.cache === 'fp8' ? asLatentCache(cache, c) : cache;
    ops.latentStore(to, kv, weight, table, slots, eps, c.scale, query);
    const all = Int32Array.from({ length: c.slots }, (_, slot) => slot);
    const stored =
      c.cache === 'fp8' ? ops.gatherRows(to, ops.upload(all), c.latent + c.rope) : cache;
    return x ? { cache: stored, query: x } : { cache: stored };
  },
  reference: (c, { cache, kv, weight, table, slots, query, queryWeight }) => {
    const width = c.latent + c.rope;
    const fp8 = c.cache === 'fp8';
    const out = Float64Array.from(fp8 ? latentRows(cache, c) : cache.values);
    slots.values.forEach((slot, row) => {
      if (slot === -1) return;
      const x = kv.values.subarray(row * width, (row + 1) * width);
      const angles = table.values.subarray(row * c.rope, (row + 1) * c.rope);
      const latent = rmsNorm(x, weight.values, eps, Math.fround(c.scale));
      const key = rotate(x.subarray(c.latent), angles);
      out.set(fp8 ? throughCodes(latent) : latent, slot * width);
      out.set(fp8 ? key.map(roundToBf16) : key, slot * width + c.latent);
    });
    const rounded = cache.dtype === 'bf16' ? out.map(roundToBf16) : out;
    if (!c.query || !query || !queryWeight) return { cache: rounded };
    const queries = new Float64Array(query.values.length);
    for (let at = 0; at < queries.length; at += c.query.rank) {
      const x = query.values.subarray(at, at + c.query.rank);
      queries.set(rmsNorm(x, queryWeight.values, eps, Math.fround(c.query.scale)), at);
    }
    return { cache: rounded, query: queries };
  },
  // Values beside the middle of two may round the other way: the few are one unit off, in FP8 a
  // sixteenth of the row's largest.
  tolerance: (c, output) => {
    if (output !== 'cache') return { relative: 5e-7 };
    if (c.cache === 'fp8') return { relative: 2e-3, absolute: 2 };
    return { relative: c.cache === 'bf16' ? 1e-4 : 5e-7 };
  },
});

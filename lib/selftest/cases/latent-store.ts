import type { DType } from '../../native/tensor';
import { host, roundToBf16 } from '../host-tensor';
import { defineCases } from './operation';
import { rmsNorm } from './rms-norm';
import { inverseFrequencies, ropeAngles, rotate } from './rope';

interface StoreCase {
  name: string;
  /** 'act': of the type of activations. */
  cache: 'f32' | 'bf16' | 'act';
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
export function skipFloatCache(cache: 'f32' | 'bf16' | 'act', act: DType): string | undefined {
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
  ] as StoreCase[],
  skip: ({ cache }, _kind, act) => skipFloatCache(cache, act),
  inputs: (c, random, act) => {
    const width = c.latent + c.rope;
    const positions = random.integers(c.rows, 100000);
    const slots = random.permutation(c.slots).slice(0, c.rows);
    return {
      cache: host(
        c.cache === 'act' ? act : c.cache,
        [c.slots, width],
        random.normals(c.slots * width),
      ),
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
    ops.latentStore(cache, kv, weight, table, slots, eps, c.scale, query);
    return x ? { cache, query: x } : { cache };
  },
  reference: (c, { cache, kv, weight, table, slots, query, queryWeight }) => {
    const width = c.latent + c.rope;
    const out = Float64Array.from(cache.values);
    slots.values.forEach((slot, row) => {
      if (slot === -1) return;
      const x = kv.values.subarray(row * width, (row + 1) * width);
      const angles = table.values.subarray(row * c.rope, (row + 1) * c.rope);
      out.set(rmsNorm(x, weight.values, eps, Math.fround(c.scale)), slot * width);
      out.set(rotate(x.subarray(c.latent), angles), slot * width + c.latent);
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
  // In bf16, values beside the middle of two may round the other way: the few are one unit off.
  tolerance: (c, output) => ({
    relative: c.cache === 'bf16' && output === 'cache' ? 1e-4 : 5e-7,
  }),
});

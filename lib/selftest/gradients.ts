/**
 * Operations and their gradients in float64: the truth that native gradients are compared with. That
 * `gradients` belongs to `forward` is checked by central differences (differences.ts).
 */

import { softmax } from './cases/route';

export type Numbers = ArrayLike<number>;

export interface Differentiable<Name extends string, Shape> {
  forward(inputs: Record<Name, Numbers>, shape: Shape): Float64Array;
  /** The gradients of <dout, forward(inputs)>. */
  gradients(inputs: Record<Name, Numbers>, dout: Numbers, shape: Shape): Record<Name, Float64Array>;
}

// ---- linear, grouped_linear ------------------------------------------------------------------------

/** Row i of the result is matrices[i].expert times row matrices[i].source of x. */
export interface GroupedShape {
  n: number;
  k: number;
  rows: readonly { expert: number; source: number }[];
}

export const groupedLinearReference: Differentiable<'x' | 'weight', GroupedShape> = {
  forward({ x, weight }, { n, k, rows }) {
    const out = new Float64Array(rows.length * n);
    rows.forEach(({ expert, source }, row) => {
      for (let i = 0; i < n; i++)
        for (let j = 0; j < k; j++)
          out[row * n + i]! += x[source * k + j]! * weight[(expert * n + i) * k + j]!;
    });
    return out;
  },
  gradients({ x, weight }, dout, { n, k, rows }) {
    const [dx, dw] = [new Float64Array(x.length), new Float64Array(weight.length)];
    rows.forEach(({ expert, source }, row) => {
      for (let i = 0; i < n; i++) {
        const [dy, at] = [dout[row * n + i]!, (expert * n + i) * k];
        for (let j = 0; j < k; j++) {
          dx[source * k + j]! += dy * weight[at + j]!;
          dw[at + j]! += dy * x[source * k + j]!;
        }
      }
    });
    return { x: dx, weight: dw };
  },
};

/** One matrix for `rows` rows. */
export function linearShape(rows: number, n: number, k: number): GroupedShape {
  return { n, k, rows: Array.from({ length: rows }, (_, source) => ({ expert: 0, source })) };
}

// ---- rms_norm --------------------------------------------------------------------------------------

export interface RmsNormShape {
  eps: number;
  scale: number;
}

export const rmsNormReference: Differentiable<'x' | 'weight', RmsNormShape> = {
  forward({ x, weight }, { eps, scale }) {
    const width = weight.length;
    const out = Float64Array.from(x);
    for (let row = 0; row < x.length; row += width) {
      const factor = scale * inverseRms(x, row, width, eps);
      for (let i = 0; i < width; i++) out[row + i] = factor * weight[i]! * x[row + i]!;
    }
    return out;
  },
  gradients({ x, weight }, dout, { eps, scale }) {
    const width = weight.length;
    const [dx, dw] = [new Float64Array(x.length), new Float64Array(width)];
    for (let row = 0; row < x.length; row += width) {
      const r = inverseRms(x, row, width, eps);
      let mean = 0;
      for (let i = 0; i < width; i++) {
        mean += (scale * weight[i]! * dout[row + i]! * x[row + i]!) / width;
        dw[i]! += scale * dout[row + i]! * x[row + i]! * r;
      }
      for (let i = 0; i < width; i++)
        dx[row + i] = r * (scale * weight[i]! * dout[row + i]! - x[row + i]! * r * r * mean);
    }
    return { x: dx, weight: dw };
  },
};

function inverseRms(x: Numbers, from: number, width: number, eps: number): number {
  let squares = 0;
  for (let i = 0; i < width; i++) squares += x[from + i]! ** 2;
  return 1 / Math.sqrt(squares / width + eps);
}

// ---- rope ------------------------------------------------------------------------------------------

/** `table`: cosine and sine of each pair. */
export const ropeReference: Differentiable<'x', { table: Numbers }> = {
  forward: ({ x }, { table }) => rotate(x, table, 1),
  gradients: (_, dout, { table }) => ({ x: rotate(dout, table, -1) }),
};

function rotate(x: Numbers, table: Numbers, direction: 1 | -1): Float64Array {
  const out = new Float64Array(x.length);
  for (let i = 0; i < x.length; i += 2) {
    const [cosine, sine] = [table[i]!, direction * table[i + 1]!];
    out[i] = x[i]! * cosine - x[i + 1]! * sine;
    out[i + 1] = x[i + 1]! * cosine + x[i]! * sine;
  }
  return out;
}

// ---- swiglu ----------------------------------------------------------------------------------------

export const swigluReference: Differentiable<'gate' | 'up', object> = {
  forward: ({ gate, up }) => Float64Array.from(gate, (x, i) => (x * up[i]!) / (1 + Math.exp(-x))),
  gradients({ gate, up }, dout) {
    const sigmoid = Float64Array.from(gate, (x) => 1 / (1 + Math.exp(-x)));
    return {
      gate: sigmoid.map((s, i) => dout[i]! * up[i]! * s * (1 + gate[i]! * (1 - s))),
      up: sigmoid.map((s, i) => dout[i]! * gate[i]! * s),
    };
  },
};

// ---- route, combine --------------------------------------------------------------------------------

export interface RouteShape {
  experts: number;
  topK: number;
  ids: Numbers; // [rows, topK], held constant
  scoring: 'softmax' | 'sigmoid';
  normalize: boolean;
  scale: number;
}

function scoresOf(logits: Numbers, row: number, { experts, scoring }: RouteShape): Float64Array {
  const values = Float64Array.from({ length: experts }, (_, e) => logits[row * experts + e]!);
  return scoring === 'softmax' ? softmax(values) : values.map((x) => 1 / (1 + Math.exp(-x)));
}

export const routeReference: Differentiable<'logits', RouteShape> = {
  forward({ logits }, shape) {
    const { topK, ids, normalize, scale } = shape;
    const out = new Float64Array(ids.length);
    for (let row = 0; row * topK < ids.length; row++) {
      const p = scoresOf(logits, row, shape);
      let sum = 1e-20;
      for (let i = 0; i < topK; i++) sum += p[ids[row * topK + i]!]!;
      for (let i = 0; i < topK; i++)
        out[row * topK + i] = (scale * p[ids[row * topK + i]!]!) / (normalize ? sum : 1);
    }
    return out;
  },
  gradients({ logits }, dout, shape) {
    const { experts, topK, ids, normalize, scale, scoring } = shape;
    const dlogits = new Float64Array(logits.length);
    for (let row = 0; row * topK < ids.length; row++) {
      const p = scoresOf(logits, row, shape);
      const slots = Array.from({ length: topK }, (_, i) => row * topK + i);
      const sum = slots.reduce((total, s) => total + p[ids[s]!]!, 1e-20);
      const weighted = slots.reduce((total, s) => total + dout[s]! * p[ids[s]!]!, 0);
      const dp = new Float64Array(experts);
      for (const s of slots)
        dp[ids[s]!] = normalize ? (scale / sum) * (dout[s]! - weighted / sum) : scale * dout[s]!;
      const mean = dp.reduce((total, value, e) => total + value * p[e]!, 0);
      dp.forEach((value, e) => {
        const slope = scoring === 'softmax' ? value - mean : (1 - p[e]!) * value;
        dlogits[row * experts + e] = p[e]! * slope;
      });
    }
    return { logits: dlogits };
  },
};

export interface CombineShape {
  topK: number;
  width: number;
  place: Numbers; // [rows * topK]
}

export const combineReference: Differentiable<'out' | 'y' | 'weights' | 'identity', CombineShape> =
  {
    forward({ out, y, weights, identity }, { topK, width, place }) {
      const sum = Float64Array.from(out);
      for (let slot = 0; slot < place.length; slot++) {
        const [row, at] = [Math.floor(slot / topK) * width, place[slot]! * width];
        for (let i = 0; i < width; i++)
          sum[row + i]! += weights[slot]! * (at < 0 ? identity[row + i]! : y[at + i]!);
      }
      return sum;
    },
    gradients({ y, weights, identity }, dout, { topK, width, place }) {
      const dy = new Float64Array(y.length);
      const [dweights, didentity] = [
        new Float64Array(weights.length),
        new Float64Array(dout.length),
      ];
      for (let slot = 0; slot < place.length; slot++) {
        const [row, at] = [Math.floor(slot / topK) * width, place[slot]! * width];
        for (let i = 0; i < width; i++) {
          dweights[slot]! += dout[row + i]! * (at < 0 ? identity[row + i]! : y[at + i]!);
          if (at < 0) didentity[row + i]! += weights[slot]! * dout[row + i]!;
          else dy[at + i] = weights[slot]! * dout[row + i]!;
        }
      }
      return { out: Float64Array.from(dout), y: dy, weights: dweights, identity: didentity };
    },
  };

// ---- both ends of a model --------------------------------------------------------------------------

export const gatherRowsReference: Differentiable<'table', { width: number; ids: Numbers }> = {
  forward({ table }, { width, ids }) {
    return Float64Array.from({ length: ids.length * width }, (_, i) => {
      return table[ids[Math.floor(i / width)]! * width + (i % width)]!;
    });
  },
  gradients({ table }, dout, { width, ids }) {
    const dtable = new Float64Array(table.length);
    for (let i = 0; i < dout.length; i++)
      dtable[ids[Math.floor(i / width)]! * width + (i % width)]! += dout[i]!;
    return { table: dtable };
  },
};

export interface LossShape {
  width: number;
  targets: Numbers; // [rows], or [rows, width] for squared_difference
  weights: Numbers; // [rows]
}

/** One loss a row; rows of weight 0 do not count. */
export const crossEntropyReference: Differentiable<'logits', LossShape> = {
  forward({ logits }, { width, targets, weights }) {
    return Float64Array.from(weights, (weight, row) => {
      if (weight === 0) return 0;
      const values = Array.from({ length: width }, (_, i) => logits[row * width + i]!);
      const largest = values.reduce((a, b) => Math.max(a, b));
      const sum = values.reduce((total, x) => total + Math.exp(x - largest), 0);
      return weight * (Math.log(sum) + largest - values[targets[row]!]!);
    });
  },
  gradients({ logits }, dout, { width, targets, weights }) {
    const dlogits = new Float64Array(logits.length);
    for (let row = 0; row < weights.length; row++) {
      const factor = dout[row]! * weights[row]!;
      if (factor === 0) continue;
      const values = Float64Array.from({ length: width }, (_, i) => logits[row * width + i]!);
      softmax(values).forEach((p, i) => {
        dlogits[row * width + i] = factor * (p - (i === targets[row] ? 1 : 0));
      });
    }
    return { logits: dlogits };
  },
};

export const squaredDifferenceReference: Differentiable<'x', LossShape> = {
  forward({ x }, { width, targets, weights }) {
    const loss = new Float64Array(weights.length);
    for (let i = 0; i < x.length; i++)
      loss[Math.floor(i / width)]! += (x[i]! - targets[i]!) ** 2 / width;
    return loss.map((value, row) => value * weights[row]!);
  },
  gradients({ x }, dout, { width, targets, weights }) {
    const dx = Float64Array.from(x, (value, i) => {
      const row = Math.floor(i / width);
      return ((dout[row]! * weights[row]! * 2) / width) * (value - targets[i]!);
    });
    return { x: dx };
  },
};

import type { Sequence } from '../engine/sequence';
import type { LoadedModel } from '../load-model';
import { greedy, seat } from './sequences';
import { randomIntegers } from './statistics';

/** What a model says to a short prompt, before anything is timed. */
export interface GateResult {
  finite: boolean;
  /** Greedy tokens of decode steps as they are timed (recorded on a GPU), and run eagerly. */
  tokens: number[];
  eagerTokens: number[];
  /** After the prompt. */
  logits: Float32Array;
}

export interface GateVerdict {
  passed: boolean;
  problems: string[];
  /** Of the logits of the arms after a prompt that every window holds; undefined for one arm. */
  similarity: number | undefined;
}

export const promptTokens = 256;
const newTokens = 8;
/** Below this the arms do not compute the same: rounding of bf16 and of routing stays above it. */
const leastSimilarity = 0.99;

/** Runs a prompt that ends before any window does, and a few greedy tokens in both ways. */
export async function tryModel(loaded: LoadedModel, seed: number): Promise<GateResult> {
  const { groups, plan, parts } = loaded;
  const draw = randomIntegers(seed, plan.model.mla.vocabSize);
  const prompt = Array.from({ length: promptTokens }, draw);
  const run = async (alternatives: number) => {
    const seating = { batch: 1, depth: 0, tokens: () => prompt };
    const [sequence] = seat(groups, seating) as [Sequence];
    try {
      const sample = { ...greedy, alternatives };
      const work = { sequence, count: promptTokens, sample, score: [promptTokens - 1] };
      let [output] = await parts.runner.start([work]).outputs;
      const logits = output?.logits ?? new Float32Array([NaN]);
      const tokens: number[] = [];
      while (output?.sampled !== undefined && tokens.push(output.sampled.token) < newTokens) {
        sequence.tokens.push(output.sampled.token);
        [output] = await parts.runner.start([{ sequence, count: 1, sample }]).outputs;
      }
      return { logits, tokens };
    } finally {
      sequence.release();
    }
  };
  const { logits, tokens } = await run(0);
  const { tokens: eagerTokens } = await run(1); // steps that want alternatives are not recorded
  return { finite: logits.every(Number.isFinite), tokens, eagerTokens, logits };
}

/** Every arm must be finite, the same recorded and eager, and as the first where all see all. */
export function judge(arms: readonly { name: string; gate: GateResult }[]): GateVerdict {
  const problems: string[] = [];
  for (const { name, gate } of arms) {
    if (!gate.finite) problems.push(`${name}: logits are not finite`);
    if (gate.tokens.join() !== gate.eagerTokens.join()) {
      const both = `${gate.tokens.join(' ')} against ${gate.eagerTokens.join(' ')}`;
      problems.push(`${name}: recorded and eager decode steps differ, ${both}`);
    }
  }
  const [first, ...others] = arms;
  const similarities = others.map(({ gate }) => cosine(first?.gate.logits, gate.logits));
  const similarity = similarities.length > 0 ? Math.min(...similarities) : undefined;
  if (similarity !== undefined && !(similarity >= leastSimilarity)) {
    const found = `cosine ${similarity.toFixed(4)} of their logits, at least ${leastSimilarity} is due`;
    problems.push(`the arms differ on a prompt of ${promptTokens} tokens: ${found}`);
  }
  return { passed: problems.length === 0, problems, similarity };
}

function cosine(a: Float32Array = new Float32Array(), b: Float32Array): number {
  let [dot, aa, bb] = [0, 0, 0];
  a.forEach((x, i) => {
    const y = b[i] ?? NaN;
    dot += x * y;
    aa += x * x;
    bb += y * y;
  });
  return dot / Math.sqrt(aa * bb);
}

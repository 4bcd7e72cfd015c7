import type { Engine } from '../../lib/engine/engine';
import { GenerateJob, type GenerateResult } from '../../lib/engine/generate-job';
import { normalizeGenerateOptions, type GenerateOptions } from '../../lib/runner/sampling';

/** Continues tokens on an engine that a test made itself, with limits of its own. */
export function generateOn(
  engine: Engine,
  tokens: Int32Array,
  vocabSize: number,
  options: GenerateOptions & { maxNewTokens: number },
): Promise<GenerateResult> {
  const defaults = { temperature: 0, topK: 0, topP: 1, repetitionPenalty: 1, eosIds: [] };
  const params = normalizeGenerateOptions(
    { ignoreEos: true, ...options },
    { ...defaults, vocabSize },
  );
  return new Promise((onDone, onError) => {
    const listener = { onPart: () => {}, onDone, onError };
    const { maxNewTokens } = options;
    engine.submit(new GenerateJob(tokens, params, maxNewTokens, listener, vocabSize, undefined));
  });
}

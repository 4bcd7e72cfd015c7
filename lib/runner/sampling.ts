import { aGenerationConfig, anArgument, type Source } from './sampling-checks';

/** How far a generation is. */
export interface GenerateProgress {
  /** `prefill` while the prompt is read, then `decode`. */
  readonly phase: 'prefill' | 'decode';
  /** Tokens of this phase that are done. */
  readonly done: number;
  /** Tokens of this phase at most: the prompt's, or `maxNewTokens`. */
  readonly total: number;
  /** Milliseconds until the first new token, estimated; only in `prefill`, from the third chunk on. */
  readonly leftMs?: number;
}

/** How to continue a prompt. Every option may be left out. */
export interface GenerateOptions {
  /** Most tokens to generate (default 256). */
  maxNewTokens?: number | undefined;
  /** Samples of the same prompt, which is read once (default 1, at most 64); sample i uses the seed + i. */
  n?: number | undefined;
  /** 0 picks the most likely token; higher is more varied, up to 100. Default: the checkpoint's, or 0. */
  temperature?: number | undefined;
  /** Sample from this many most likely tokens; 0 for all. Default: the checkpoint's, or 0. */
  topK?: number | undefined;
  /** Sample from the fewest tokens whose probabilities reach this sum, in (0, 1]. Default likewise, or 1. */
  topP?: number | undefined;
  /** Sample from tokens at least this likely, relative to the most likely one, in [0, 1] (default 0). */
  minP?: number | undefined;
  /** Above 1 makes tokens less likely that already occurred. Default: the checkpoint's, or 1. */
  repetitionPenalty?: number | undefined;
  /** In [0, 2^53 - 1]; the same seed gives the same tokens. Default: random, and reported back. */
  seed?: number | undefined;
  /** End before any of these texts (at most 16). */
  stop?: string | readonly string[] | undefined;
  /** End at any of these tokens, besides the checkpoint's end tokens. */
  stopTokenIds?: readonly number[] | undefined;
  /** Go on past the checkpoint's end tokens (default false). */
  ignoreEos?: boolean | undefined;
  /** Report log probabilities: true for the chosen tokens, or with this many alternatives (0 to 20). */
  logprobs?: boolean | number | undefined;
  signal?: AbortSignal | undefined;
  onProgress?: ((progress: GenerateProgress) => void) | undefined;
}

/** `GenerateOptions` with every default filled in and every value checked. */
export interface SamplingParams {
  readonly maxNewTokens: number;
  readonly n: number;
  /** 0 means greedy: the other sampling values, but for the repetition penalty, play no part. */
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly repetitionPenalty: number;
  readonly seed: number;
  readonly stop: readonly string[];
  readonly stopTokenIds: readonly number[];
  /** The checkpoint's end tokens; empty where `ignoreEos` was given. */
  readonly eosIds: readonly number[];
  /** false, or the number of alternatives to report besides the chosen token. */
  readonly logprobs: number | false;
  readonly signal: AbortSignal | undefined;
  readonly onProgress: ((progress: GenerateProgress) => void) | undefined;
}

/** What generation_config.json says. */
export interface GenerationDefaults {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly repetitionPenalty: number;
  readonly eosIds: readonly number[];
}

const defaultMaxNewTokens = 256;
export const maxSamples = 64;
const maxStopStrings = 16;
const maxAlternatives = 20;

const optionNames: readonly (keyof GenerateOptions)[] = [
  'maxNewTokens',
  'n',
  'temperature',
  'topK',
  'topP',
  'minP',
  'repetitionPenalty',
  'seed',
  'stop',
  'stopTokenIds',
  'ignoreEos',
  'logprobs',
  'signal',
  'onProgress',
];

/**
 * Checks `options` and fills in what they leave out from `defaults`. `vocabSize` bounds token ids.
 * Errors: ERR_LOZA_INVALID_ARG, naming the option.
 */
export function normalizeGenerateOptions(
  options: GenerateOptions | undefined,
  defaults: GenerationDefaults & { readonly vocabSize: number },
): SamplingParams {
  const from = anArgument(options === undefined ? {} : options, optionNames);
  const temperature = from.number('temperature', 0, 100) ?? defaults.temperature;
  return {
    maxNewTokens: from.integer('maxNewTokens', 1) ?? defaultMaxNewTokens,
    n: from.integer('n', 1, maxSamples) ?? 1,
    temperature,
    ...readFilters(from, defaults),
    minP: from.number('minP', 0, 1) ?? 0,
    repetitionPenalty: from.positive('repetitionPenalty') ?? defaults.repetitionPenalty,
    seed: from.integer('seed', 0) ?? randomSeed(),
    stop: readStop(from),
    stopTokenIds: from.integers('stopTokenIds', defaults.vocabSize - 1) ?? [],
    eosIds: from.flag('ignoreEos') ? [] : defaults.eosIds,
    logprobs: readLogprobs(from),
    signal: readSignal(from),
    onProgress: readCallback(from),
  };
}

/**
 * Reads a parsed generation_config.json (undefined where there is none). As in Hugging Face, its
 * sampling values (temperature, top_k, top_p) count only where `do_sample` is true; otherwise the
 * model is meant to be greedy, and they are set to temperature 0, topK 0, topP 1. The repetition
 * penalty and the end tokens count in both cases. `fallbackEosIds` serve where it names no end token.
 * Errors: ERR_LOZA_CONFIG, naming the key.
 */
export function readGenerationDefaults(
  plain: unknown,
  fallbackEosIds: readonly number[],
): GenerationDefaults {
  const from = aGenerationConfig(plain === undefined ? {} : plain);
  const sample = from.flag('do_sample') ?? false;
  const temperature = from.number('temperature', 0, 100) ?? 1;
  const topK = from.integer('top_k', 0) ?? 0;
  const topP = from.fraction('top_p') ?? 1;
  const filters = sample ? { temperature, topK, topP } : { temperature: 0, topK: 0, topP: 1 };
  const eos = from.value('eos_token_id');
  const eosIds = typeof eos === 'number' ? from.integer('eos_token_id', 0) : undefined;
  return {
    ...filters,
    repetitionPenalty: from.positive('repetition_penalty') ?? 1,
    eosIds:
      eosIds === undefined ? (from.integers('eos_token_id') ?? [...fallbackEosIds]) : [eosIds],
  };
}

function readFilters(from: Source, defaults: GenerationDefaults): { topK: number; topP: number } {
  return {
    topK: from.integer('topK', 0) ?? defaults.topK,
    topP: from.fraction('topP') ?? defaults.topP,
  };
}

function readStop(from: Source): readonly string[] {
  const value = from.value('stop');
  if (value === undefined) return [];
  const list: unknown[] = Array.isArray(value) ? value : [value];
  if (list.length > maxStopStrings) {
    throw from.error('stop', `at most ${maxStopStrings} strings`, value);
  }
  return list.map((text) => {
    // An unpaired surrogate never occurs in decoded text.
    if (typeof text === 'string' && text !== '' && !/\p{Cs}/u.test(text)) return text;
    throw from.error('stop', 'a non-empty, well-formed string or a list of them', text);
  });
}

function readLogprobs(from: Source): number | false {
  const value = from.value('logprobs');
  if (value === undefined || value === false) return false;
  if (value === true) return 0;
  if (Number.isInteger(value) && (value as number) >= 0 && (value as number) <= maxAlternatives) {
    return value as number;
  }
  throw from.error('logprobs', `true, false or an integer in [0, ${maxAlternatives}]`, value);
}

function readSignal(from: Source): AbortSignal | undefined {
  const value = from.value('signal');
  if (value === undefined) return undefined;
  // Not instanceof: the signal may come from another realm, such as jest's.
  const like = typeof value === 'object' && value !== null && 'aborted' in value;
  if (like && 'addEventListener' in value) return value as AbortSignal;
  throw from.error('signal', 'an AbortSignal', value);
}

function readCallback(from: Source): ((progress: GenerateProgress) => void) | undefined {
  const value = from.value('onProgress');
  if (value === undefined || typeof value === 'function') {
    return value as ((progress: GenerateProgress) => void) | undefined;
  }
  throw from.error('onProgress', 'a function', value);
}

/** 53 random bits: every seed there is, equally likely. */
function randomSeed(): number {
  const bits = crypto.getRandomValues(new BigUint64Array(1))[0] as bigint;
  return Number(bits >> 11n);
}

import { LozaError, show } from '../errors';
import { checkObject, type LoadOptions } from '../load-options';
import { armNames } from './arms';
import { builtInText } from './built-in-text';
import { tasks, type TaskName } from './tasks';

/** What to measure. Every option may be left out. */
export interface EvalOptions {
  /** Default: all of them. */
  tasks?: readonly TaskName[] | undefined;
  /** Tokens of prompt and answer (default 1,024, 2,048 and 4,096). */
  lengths?: readonly number[] | undefined;
  /** Where pass keys are hidden: 0 at the beginning, 1 at the end (default 0, 0.1, ... 1). */
  depths?: readonly number[] | undefined;
  /** Prompts of each task and length, and of each depth for pass keys (default 10). */
  samples?: number | undefined;
  /** Windows of text, as long as the longest prompt, for perplexity by position (default 0). */
  windows?: number | undefined;
  /** Arms: full, loza, even, odd, streaming, or a digit for each attention (default full, and loza where the config has a pattern). */
  attention?: readonly string[] | undefined;
  /** The text that needles are hidden in (default: a small one that comes with loza). */
  haystack?: string | undefined;
  /** The same seed, text and tokenizer give the same prompts (default 0). */
  seed?: number | undefined;
  /** How to load the model, in every arm. */
  load?: Omit<LoadOptions, 'attention' | 'signal' | 'onProgress'> | undefined;
  signal?: AbortSignal | undefined;
  onProgress?: ((progress: EvalProgress) => void) | undefined;
}

export interface EvalProgress {
  /** The arm that runs. */
  arm: string;
  /** Prompts and windows of all arms. */
  done: number;
  total: number;
}

export interface ResolvedEvalOptions {
  tasks: readonly TaskName[];
  lengths: readonly number[];
  depths: readonly number[];
  samples: number;
  windows: number;
  attention: readonly string[] | undefined;
  haystack: string;
  seed: number;
  load: Omit<LoadOptions, 'attention' | 'signal' | 'onProgress'>;
  signal: AbortSignal | undefined;
  onProgress: ((progress: EvalProgress) => void) | undefined;
}

const defaultDepths = Array.from({ length: 11 }, (_, i) => i / 10);

/** Fills in defaults and checks types and ranges. Throws ERR_LOZA_INVALID_ARG with the option's name. */
export function resolveEvalOptions(options: EvalOptions): ResolvedEvalOptions {
  checkObject('The eval options', options, [
    ...['tasks', 'lengths', 'depths', 'samples', 'windows', 'attention', 'haystack', 'seed'],
    ...['load', 'signal', 'onProgress'],
  ]);
  const names = Object.keys(tasks) as TaskName[];
  const { attention, haystack = builtInText, load = {}, signal, onProgress } = options;
  if (typeof haystack !== 'string') throw invalid('haystack', 'a text', haystack);
  checkObject(
    'load',
    load,
    Object.keys(load).filter((key) => key !== 'attention'),
  );
  const isArm = (arm: unknown) =>
    typeof arm === 'string' &&
    ((armNames as readonly string[]).includes(arm) || /^[01]+$/.test(arm));
  return {
    tasks: list('tasks', options.tasks ?? names, `of ${names.join(', ')}`, (name) =>
      names.includes(name),
    ),
    lengths: list('lengths', options.lengths ?? [1024, 2048, 4096], 'of 256 to 2^24', (length) =>
      isWhole(length, 256, 2 ** 24),
    ),
    depths: list(
      'depths',
      options.depths ?? defaultDepths,
      'of 0 to 1',
      (depth) => typeof depth === 'number' && depth >= 0 && depth <= 1,
    ),
    samples: whole('samples', options.samples ?? 10, 1, 1e6),
    windows: whole('windows', options.windows ?? 0, 0, 1e6),
    attention:
      attention === undefined
        ? undefined
        : list('attention', attention, `of ${armNames.join(', ')} or digits`, isArm),
    haystack,
    seed: whole('seed', options.seed ?? 0, 0, Number.MAX_SAFE_INTEGER),
    ...{ load, signal, onProgress },
  };
}

function list<T>(
  name: string,
  values: readonly T[],
  expected: string,
  fits: (value: T) => boolean,
): readonly T[] {
  if (!Array.isArray(values)) throw invalid(name, `an array ${expected}`, values);
  const all = values as readonly T[];
  const bad = all.find((value) => !fits(value));
  if (bad !== undefined || all.includes(undefined as T)) throw invalid(name, expected, bad);
  return [...new Set(all)];
}

const isWhole = (value: unknown, min: number, max: number): boolean =>
  Number.isInteger(value) && (value as number) >= min && (value as number) <= max;

function whole(name: string, value: number, min: number, max: number): number {
  if (isWhole(value, min, max)) return value;
  throw invalid(name, `an integer of ${min} to ${max}`, value);
}

function invalid(name: string, expected: string, value: unknown): LozaError {
  const problem = `${name} must be ${expected}, got ${show(value)}`;
  return new LozaError('ERR_LOZA_INVALID_ARG', problem, { value });
}

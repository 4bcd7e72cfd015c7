import { LozaError, show, type LozaErrorCode } from '../errors';
import { hintAtNames } from '../nearest-name';

/**
 * Typed reading of untrusted keys. Each method gives undefined where the key is absent, and throws
 * where its value is not what the method promises.
 */
export class Source {
  constructor(
    private readonly values: Readonly<Record<string, unknown>>,
    private readonly code: LozaErrorCode,
    private readonly label: string,
    private readonly nullIsAbsent: boolean,
  ) {}

  /** Unchecked. */
  value(key: string): unknown {
    const value = Object.hasOwn(this.values, key) ? this.values[key] : undefined;
    return value === null && this.nullIsAbsent ? undefined : value;
  }

  /** A finite number in [min, max]. */
  number(key: string, min: number, max: number): number | undefined {
    const fits = (value: number) => value >= min && value <= max;
    return this.#checked(key, `a number in [${min}, ${max}]`, fits);
  }

  /** A number in (0, 1]. */
  fraction(key: string): number | undefined {
    return this.#checked(key, 'a number in (0, 1]', (value) => value > 0 && value <= 1);
  }

  /** A finite number above 0. */
  positive(key: string): number | undefined {
    return this.#checked(key, 'a finite number above 0', (value) => value > 0 && value < Infinity);
  }

  /** An integer from `min` to `max`. */
  integer(key: string, min: number, max = Number.MAX_SAFE_INTEGER): number | undefined {
    const fits = (value: number) => Number.isInteger(value) && value >= min && value <= max;
    const end = max === Number.MAX_SAFE_INTEGER ? '2^53 - 1' : max;
    return this.#checked(key, `an integer in [${min}, ${end}]`, fits);
  }

  /** A list of integers in [0, max]; a copy. */
  integers(key: string, max: number = Number.MAX_SAFE_INTEGER): number[] | undefined {
    const value = this.value(key);
    if (value === undefined) return undefined;
    const expected = `a list of integers in [0, ${max}]`;
    if (!Array.isArray(value)) throw this.error(key, expected, value);
    for (const item of value as unknown[]) {
      const fits = Number.isInteger(item) && (item as number) >= 0 && (item as number) <= max;
      if (!fits) throw this.error(key, expected, item);
    }
    return [...(value as number[])];
  }

  flag(key: string): boolean | undefined {
    const value = this.value(key);
    if (value === undefined || typeof value === 'boolean') return value;
    throw this.error(key, 'true or false', value);
  }

  error(key: string, expected: string, value: unknown): LozaError {
    const problem = `${this.label} ${key} must be ${expected}, found ${show(value)}`;
    return new LozaError(this.code, problem, { value });
  }

  #checked(key: string, expected: string, fits: (value: number) => boolean): number | undefined {
    const value = this.value(key);
    if (value === undefined || (typeof value === 'number' && fits(value))) return value;
    throw this.error(key, expected, value);
  }
}

/** Options of a call: unknown keys are errors, with the nearest known key as a suggestion. */
export function anArgument(options: unknown, known: readonly string[]): Source {
  const code = 'ERR_LOZA_INVALID_ARG';
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    const problem = `Options must be an object, found ${show(options)}`;
    throw new LozaError(code, problem, { value: options });
  }
  for (const key of Object.keys(options)) {
    if (known.includes(key)) continue;
    throw new LozaError(code, `There is no option ${show(key)}`, {
      value: key,
      hint: hintAtNames(key, known),
    });
  }
  return new Source(options as Record<string, unknown>, code, 'Option', false);
}

/** A parsed generation_config.json: unknown keys are ignored, null means absent. */
export function aGenerationConfig(plain: unknown): Source {
  const code = 'ERR_LOZA_CONFIG';
  if (typeof plain !== 'object' || plain === null || Array.isArray(plain)) {
    const problem = `generation_config.json must hold an object, found ${show(plain)}`;
    throw new LozaError(code, problem, { value: plain });
  }
  return new Source(plain as Record<string, unknown>, code, 'generation_config.json:', true);
}

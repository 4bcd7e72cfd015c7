import { LozaError, show } from '../errors';
import { readJsonFile } from './files';
import { JsonNumber, parseJson, showJson, type JsonObject, type JsonValue } from './json';

/**
 * Caps on what a config may ask for, far above any released model: they bound what a hostile file
 * can allocate.
 */
export const configCaps = {
  hiddenSize: 65_536,
  layers: 1_024,
  heads: 1_024,
  experts: 4_096,
  vocabSize: 2 ** 21,
  positions: 2 ** 24,
} as const;

/**
 * One key, or several spellings of one key; at most one of them may be present unless they agree.
 */
export type Keys = string | readonly string[];

export interface IntOptions<D> {
  /** Default 1. */
  min?: number;
  max: number;
  /** Given for an absent key; without it the key is required. */
  default?: D;
}

export interface NumberOptions<D> {
  min?: number;
  exclusiveMin?: number;
  max?: number;
  default?: D;
}

export interface StringOptions<T extends string, D> {
  oneOf?: readonly T[];
  default?: D;
}

const code = 'ERR_LOZA_CONFIG';
/** How large and deep a config file may be. */
export const configLimits = { maxBytes: 2 ** 20, maxDepth: 16, code } as const;

/**
 * A typed reader over one JSON object of a config file. `null` counts as absent. Every error is an
 * ERR_LOZA_CONFIG that names the file, the key with its path, what was expected and what was found.
 */
export class Config {
  private constructor(
    private readonly entries: JsonObject,
    /** The file that this was read from. */
    readonly file: string,
    private readonly prefix: string,
  ) {}

  /** Reads a file of at most 1 MiB. */
  static async read(path: string): Promise<Config> {
    return Config.of(await readJsonFile(path, configLimits), path);
  }

  static parse(bytes: Uint8Array, file: string): Config {
    return Config.of(parseJson(bytes, { file, ...configLimits }), file);
  }

  private static of(value: JsonValue, file: string): Config {
    if (value instanceof Map) return new Config(value, file, '');
    throw new LozaError(code, `${file} must be a JSON object, got ${showJson(value)}`, { value });
  }

  /** The same config with other values for some keys. */
  with(changes: JsonObject): Config {
    return new Config(new Map([...this.entries, ...changes]), this.file, this.prefix);
  }

  /** True if the key is present and not null. */
  has(key: string): boolean {
    return (this.entries.get(key) ?? null) !== null;
  }

  /** What the file says, unchecked; undefined if absent. */
  value(key: string): JsonValue | undefined {
    return this.entries.get(key);
  }

  /** An integer in plain digits; 16.0 is not one. */
  int<D = never>(keys: Keys, options: IntOptions<D>): number | D {
    const { min = 1, max } = options;
    return this.scalar(keys, `an integer of ${min}..${max}`, options, (value) => {
      const int = value instanceof JsonNumber ? value.toInteger() : undefined;
      return int !== undefined && int >= min && int <= max ? int : undefined;
    });
  }

  /** A finite number. */
  number<D = never>(keys: Keys, options: NumberOptions<D> = {}): number | D {
    const { min = -Infinity, exclusiveMin = -Infinity, max = Infinity } = options;
    return this.scalar(keys, describeNumber(options), options, (value) => {
      const number = value instanceof JsonNumber ? value.value : NaN;
      const fits = number >= min && number > exclusiveMin && number <= max;
      return fits && Number.isFinite(number) ? number : undefined;
    });
  }

  boolean<D = never>(keys: Keys, options: { default?: D } = {}): boolean | D {
    return this.scalar(keys, 'true or false', options, (value) =>
      typeof value === 'boolean' ? value : undefined,
    );
  }

  string<T extends string = string, D = never>(
    keys: Keys,
    options: StringOptions<T, D> = {},
  ): T | D {
    const { oneOf } = options;
    const expected = oneOf === undefined ? 'a string' : `one of ${oneOf.map(show).join(', ')}`;
    return this.scalar(keys, expected, options, (value) => {
      if (typeof value !== 'string') return undefined;
      return oneOf === undefined || oneOf.includes(value as T) ? (value as T) : undefined;
    });
  }

  /** A nested object, whose errors carry the whole path of a key; undefined if absent. */
  object(key: string): Config | undefined {
    const value = this.entries.get(key) ?? null;
    if (value === null) return undefined;
    if (!(value instanceof Map)) throw this.error(key, 'an object', value);
    return new Config(value, this.file, `${this.path(key)}.`);
  }

  /** An array of strings; undefined if absent. */
  strings(key: string): string[] | undefined {
    return this.array(key, 'an array of strings', (item) =>
      typeof item === 'string' ? item : undefined,
    );
  }

  /** An array of integers, or a single one (as `eos_token_id` may be); undefined if absent. */
  ints(key: string, { min = 1, max }: { min?: number; max: number }): number[] | undefined {
    return this.array(key, `an integer of ${min}..${max} or an array of such`, (item) => {
      const int = item instanceof JsonNumber ? item.toInteger() : undefined;
      return int !== undefined && int >= min && int <= max ? int : undefined;
    });
  }

  /** The key with the path that leads to it, such as `rope_parameters.factor`. */
  path(key: string): string {
    return this.prefix + key;
  }

  /** An error about this file, for rules that span several keys. */
  problem(text: string, value?: unknown): LozaError {
    return new LozaError(code, `${this.file}: ${text}`, { value });
  }

  /** An ERR_LOZA_UNSUPPORTED about this file: the config is valid, but this build cannot run it. */
  unsupported(text: string, value?: unknown): LozaError {
    return new LozaError('ERR_LOZA_UNSUPPORTED', `${this.file}: ${text}`, { value });
  }

  private scalar<T, D>(
    keys: Keys,
    expected: string,
    options: { default?: D },
    convert: (value: JsonValue) => T | undefined,
  ): T | D {
    const names = typeof keys === 'string' ? [keys] : keys;
    let found: { key: string; value: T } | undefined;
    for (const key of names.filter((name) => this.has(name))) {
      const raw = this.entries.get(key) as JsonValue;
      const value = convert(raw);
      if (value === undefined) throw this.error(key, expected, raw);
      found ??= { key, value };
      if (found.value !== value) {
        const both = `${this.path(found.key)} and ${this.path(key)}`;
        const got = `${show(found.value)} and ${show(value)}`;
        throw this.problem(`${both} mean the same and must agree, got ${got}`, value);
      }
    }
    if (found !== undefined) return found.value;
    if ('default' in options) return options.default;
    const missing = names.map((name) => this.path(name)).join(' or ');
    throw this.problem(`${missing} is missing, expected ${expected}`);
  }

  private array<T>(
    key: string,
    expected: string,
    convert: (item: JsonValue) => T | undefined,
  ): T[] | undefined {
    const value = this.entries.get(key) ?? null;
    if (value === null) return undefined;
    const single = value instanceof JsonNumber;
    if (!single && !Array.isArray(value)) throw this.error(key, expected, value);
    return (single ? [value] : value).map((item, index) => {
      const converted = convert(item);
      if (converted !== undefined) return converted;
      throw this.error(single ? key : `${key}[${index}]`, expected, item);
    });
  }

  private error(key: string, expected: string, value: JsonValue): LozaError {
    return this.problem(`${this.path(key)} must be ${expected}, got ${showJson(value)}`, value);
  }
}

function describeNumber({ min, exclusiveMin, max }: NumberOptions<unknown>): string {
  const bounds: string[] = [];
  if (min !== undefined) bounds.push(`at least ${min}`);
  if (exclusiveMin !== undefined) bounds.push(`above ${exclusiveMin}`);
  if (max !== undefined) bounds.push(`at most ${max}`);
  return bounds.length === 0 ? 'a finite number' : `a finite number ${bounds.join(' and ')}`;
}

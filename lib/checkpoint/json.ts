import { LozaError, show, type LozaErrorCode } from '../errors';

/**
 * A number as it is spelled in the file: `JSON.parse` would turn 16.0, 16e0 and -0 into integers
 * and round 2^64.
 */
export class JsonNumber {
  constructor(readonly text: string) {}

  get value(): number {
    return Number(this.text);
  }

  /**
   * The number if it is spelled as a plain integer and held exactly by a double, else undefined.
   */
  toInteger(): number | undefined {
    if (!/^(?:0|-?[1-9][0-9]{0,15})$/.test(this.text)) return undefined;
    return Number.isSafeInteger(this.value) ? this.value : undefined;
  }
}

/** An object of a JSON text. A Map, so that a key such as `__proto__` is only a key. */
export type JsonObject = Map<string, JsonValue>;
export type JsonValue = null | boolean | string | JsonNumber | JsonValue[] | JsonObject;

export type PlainValue = null | boolean | string | number | PlainValue[] | PlainObject;
export interface PlainObject {
  [key: string]: PlainValue;
}

export interface JsonOptions {
  /** Named in errors. */
  file: string;
  /** Arrays and objects inside each other; a scalar has depth 0, `[]` depth 1. */
  maxDepth: number;
  /** The code of the errors thrown. */
  code: LozaErrorCode;
  /**
   * Values in the whole text, default 2,000,000: the three bytes `{},` cost some 170 bytes of
   * heap, so without a limit a large file of them would end the process.
   */
  maxValues?: number;
}

/**
 * Parses RFC 8259 JSON and nothing more: strict UTF-8 without a byte order mark, no duplicate
 * keys, no lone surrogates, bounded depth.
 *
 * @throws LozaError with `options.code`, naming the file, the place and what was expected there.
 */
export function parseJson(bytes: Uint8Array, options: JsonOptions): JsonValue {
  return new Parser(decode(bytes, options), options).document();
}

/**
 * Plain objects and numbers, for libraries that expect what `JSON.parse` gives. Objects have no
 * prototype.
 */
export function toPlain(value: JsonValue): PlainValue {
  if (value instanceof JsonNumber) return value.value;
  if (Array.isArray(value)) return value.map(toPlain);
  if (!(value instanceof Map)) return value;
  const plain = Object.create(null) as PlainObject;
  for (const [key, item] of value) plain[key] = toPlain(item);
  return plain;
}

/** `show` for values that came from `parseJson`. */
export function showJson(value: JsonValue | undefined): string {
  if (value === undefined) return 'nothing';
  if (value instanceof JsonNumber) {
    return value.text.length <= 40 ? value.text : `${value.text.slice(0, 37)}...`;
  }
  return value instanceof Map ? `an object of ${value.size}` : show(value);
}

function decode(bytes: Uint8Array, { file, code }: JsonOptions): string {
  if (bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf) {
    throw new LozaError(code, `${file}: expected JSON, got a byte order mark at its start`);
  }
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw new LozaError(code, `${file}: expected UTF-8 text, got bytes that are not`, { cause });
  }
}

const codeOf = (character: string): number => character.charCodeAt(0);
const quote = codeOf('"');
const backslash = codeOf('\\');
const comma = codeOf(',');
const colon = codeOf(':');
const minus = codeOf('-');
const plus = codeOf('+');
const dot = codeOf('.');
const openBrace = codeOf('{');
const closeBrace = codeOf('}');
const openBracket = codeOf('[');
const closeBracket = codeOf(']');

const isDigit = (code: number): boolean => code >= 0x30 && code <= 0x39;
const isSpace = (code: number): boolean =>
  code === 0x20 || code === 0x0a || code === 0x0d || code === 0x09;

/** Recursive descent over UTF-16 code units; `maxDepth` bounds the recursion. */
class Parser {
  private at = 0;
  private values = 0;
  private readonly maxValues: number;

  constructor(
    private readonly text: string,
    private readonly options: JsonOptions,
  ) {
    this.maxValues = options.maxValues ?? 2_000_000;
  }

  document(): JsonValue {
    this.skipSpace();
    const value = this.value(0);
    this.skipSpace();
    if (this.at < this.text.length) this.fail('the end of the text');
    return value;
  }

  private value(depth: number): JsonValue {
    this.values += 1;
    if (this.values > this.maxValues) this.fail(`at most ${this.maxValues} values`);
    const code = this.text.charCodeAt(this.at);
    if (code === quote) return this.string();
    if (code === openBrace || code === openBracket) {
      if (depth >= this.options.maxDepth) {
        this.fail(`nesting of at most ${this.options.maxDepth} levels`);
      }
      return code === openBrace ? this.object(depth + 1) : this.array(depth + 1);
    }
    if (isDigit(code) || code === minus) return this.number();
    if (this.takeWord('true')) return true;
    if (this.takeWord('false')) return false;
    if (this.takeWord('null')) return null;
    return this.fail('a JSON value');
  }

  private object(depth: number): JsonObject {
    const object: JsonObject = new Map();
    this.at += 1;
    this.skipSpace();
    if (this.take(closeBrace)) return object;
    do {
      this.skipSpace();
      if (this.text.charCodeAt(this.at) !== quote) this.fail('a key in double quotes');
      const start = this.at;
      const key = this.string();
      if (object.has(key)) this.failDuplicate(key, start);
      this.skipSpace();
      if (!this.take(colon)) this.fail(`":" after the key ${show(key)}`);
      this.skipSpace();
      object.set(key, this.value(depth));
      this.skipSpace();
    } while (this.take(comma));
    if (!this.take(closeBrace)) this.fail('"," or "}"');
    return object;
  }

  private array(depth: number): JsonValue[] {
    const array: JsonValue[] = [];
    this.at += 1;
    this.skipSpace();
    if (this.take(closeBracket)) return array;
    do {
      this.skipSpace();
      array.push(this.value(depth));
      this.skipSpace();
    } while (this.take(comma));
    if (!this.take(closeBracket)) this.fail('"," or "]"');
    return array;
  }

  private string(): string {
    const start = this.at;
    let escaped = false;
    for (let at = start + 1; ; at += 1) {
      const code = this.text.charCodeAt(at);
      if (code === quote) {
        this.at = at + 1;
        return escaped ? this.unescape(start) : this.text.slice(start + 1, at);
      }
      if (code === backslash) {
        escaped = true;
        at += 1;
      } else if (!(code >= 0x20)) {
        // A control character, or NaN past the end.
        this.at = Math.min(at, this.text.length);
        this.fail('a string without raw control characters, ended by a double quote');
      }
    }
  }

  private unescape(start: number): string {
    let text: string | undefined;
    try {
      text = JSON.parse(this.text.slice(start, this.at)) as string;
    } catch {
      // The slice is one string literal, so only its escapes can be wrong.
    }
    if (text === undefined || /\p{Surrogate}/u.test(text)) {
      this.at = start;
      this.fail('a string whose escapes are valid Unicode');
    }
    return text;
  }

  private number(): JsonNumber {
    const start = this.at;
    this.take(minus);
    if (!this.take(0x30)) this.digits();
    if (this.take(dot)) this.digits();
    if (this.take(codeOf('e')) || this.take(codeOf('E'))) {
      if (!this.take(plus)) this.take(minus);
      this.digits();
    }
    return new JsonNumber(this.text.slice(start, this.at));
  }

  private digits(): void {
    if (!isDigit(this.text.charCodeAt(this.at))) this.fail('a digit');
    while (isDigit(this.text.charCodeAt(this.at))) this.at += 1;
  }

  private skipSpace(): void {
    while (isSpace(this.text.charCodeAt(this.at))) this.at += 1;
  }

  private take(code: number): boolean {
    if (this.text.charCodeAt(this.at) !== code) return false;
    this.at += 1;
    return true;
  }

  private takeWord(word: string): boolean {
    if (!this.text.startsWith(word, this.at)) return false;
    this.at += word.length;
    return true;
  }

  private failDuplicate(key: string, at: number): never {
    const { code, file } = this.options;
    const problem = `${file}: the key ${show(key)} appears twice in one JSON object`;
    throw new LozaError(code, `${problem} (again at character ${at})`, { value: key });
  }

  private fail(expected: string): never {
    const { code, file } = this.options;
    const rest = this.text.slice(this.at, this.at + 16);
    const got = rest === '' ? 'the end of the text' : show(rest);
    const problem = `${file}: bad JSON at character ${this.at}: expected ${expected}, got ${got}`;
    throw new LozaError(code, problem, { value: rest });
  }
}

/** JSON with the numbers as the file spelled them, indented by one space a level. */
export function writeJson(value: JsonValue, indent = ''): string {
  if (value instanceof JsonNumber) return value.text;
  const inner = `${indent} `;
  const block = (open: string, items: string[], close: string) =>
    items.length === 0
      ? open + close
      : `${open}\n${items.map((item) => inner + item).join(',\n')}\n${indent}${close}`;
  if (Array.isArray(value)) {
    return block(
      '[',
      value.map((item) => writeJson(item, inner)),
      ']',
    );
  }
  if (!(value instanceof Map)) return JSON.stringify(value);
  const fields = [...value].map(
    ([key, item]) => `${JSON.stringify(key)}: ${writeJson(item, inner)}`,
  );
  return block('{', fields, '}');
}

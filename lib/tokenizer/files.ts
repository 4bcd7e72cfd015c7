import { readExactly, withFile } from '../checkpoint/files';
import { parseJson, toPlain } from '../checkpoint/json';
import { LozaError, show, type LozaErrorCode } from '../errors';

/** Reads of the small text files of a checkpoint: size-limited, UTF-8, absent files are no error. */

export type PlainObject = Record<string, unknown>;

/** Room for the largest published vocabularies with their merges as pairs (about 1.2 million). */
const maxValues = 8_000_000;

export function isPlainObject(value: unknown): value is PlainObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/**
 * The bytes of `file`, or undefined when it does not exist.
 * Errors: `code` when it has more than `limit` bytes, ERR_LOZA_IO when it cannot be read.
 */
export async function readOptionalFile(
  file: string,
  limit: number,
  code: LozaErrorCode,
): Promise<Uint8Array | undefined> {
  try {
    return await withFile(file, (handle, bytes) => {
      if (bytes > limit) {
        throw new LozaError(code, `${file} has ${bytes} bytes, more than the limit of ${limit}`, {
          value: bytes,
          hint: 'Check that it is the file published with the model',
        });
      }
      return readExactly(handle, bytes, 0, file);
    });
  } catch (error) {
    if (LozaError.isInstance(error) && error.code === 'ERR_LOZA_NOT_FOUND') return undefined;
    throw error;
  }
}

/** The text in `bytes`; error `code` when it is not valid UTF-8. */
export function decodeUtf8(bytes: Uint8Array, file: string, code: LozaErrorCode): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new LozaError(code, `${file} is not valid UTF-8`, {
      hint: 'The file is damaged: copy it again',
      cause,
    });
  }
}

/**
 * The JSON object in `bytes`; error `code` when it is anything else. Strict: of a token or an id
 * that stands twice, `JSON.parse` would silently keep the last.
 */
export function parseJsonObject(bytes: Uint8Array, file: string, code: LozaErrorCode): PlainObject {
  const value: unknown = toPlain(parseJson(bytes, { file, code, maxDepth: 64, maxValues }));
  if (isPlainObject(value)) return value;
  throw new LozaError(code, `${file} must hold a JSON object, found ${show(value)}`, { value });
}

/** Where a surrogate without its partner stands in `text` (UTF-16 index), or -1. */
export function loneSurrogateIndex(text: string): number {
  // With the u flag a pair is one code point, so only unpaired halves are of category Cs.
  return text.search(/\p{Cs}/u);
}

/** `tokenizer_config.json` of the folder, or an empty object. Error `code` when it is malformed. */
export async function readTokenizerConfig(file: string, code: LozaErrorCode): Promise<PlainObject> {
  const bytes = await readOptionalFile(file, 64 * 2 ** 20, code);
  return bytes === undefined ? {} : parseJsonObject(bytes, file, code);
}

/** A named token of tokenizer_config.json (`bos_token`, ...), written as text or as an object. */
export function namedToken(config: PlainObject, name: string): string | undefined {
  const value = config[name];
  const content = isPlainObject(value) ? value['content'] : value;
  return typeof content === 'string' && content !== '' ? content : undefined;
}

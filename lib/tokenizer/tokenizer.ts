import { access } from 'node:fs/promises';
import path from 'node:path';
import * as library from '@huggingface/tokenizers';
import { LozaError, show, throwIfAborted } from '../errors';
import { encodeInWorker, type EncodeJob } from './encode-worker';
import {
  loneSurrogateIndex,
  namedToken,
  parseJsonObject,
  readOptionalFile,
  readTokenizerConfig,
  type PlainObject,
} from './files';
import { checkTokenizerJson, type TokenizerJson } from './tokenizer-json';

const maxFileBytes = 64 * 2 ** 20;

/** What is used of the library. Its own types cannot be resolved under Node's module rules. */
interface LibraryTokenizer {
  encode(text: string, options: { add_special_tokens: boolean }): { ids: (number | undefined)[] };
  decode(ids: readonly number[], options: { clean_up_tokenization_spaces: boolean }): string;
  id_to_token(id: number): string | undefined;
  token_to_id(token: string): number | undefined;
}
const { Tokenizer: LibraryTokenizer } = library as unknown as {
  Tokenizer: new (json: TokenizerJson, config: object) => LibraryTokenizer;
};

/** Longer texts (in UTF-16 units) are encoded in a worker thread; about 0.2 s of work. */
export const maxInPlaceLength = 100_000;

export interface EncodeOptions {
  /**
   * Add what the checkpoint adds around raw text, such as BOS (default true). Pass false for text
   * that a chat template made, which holds its special tokens already.
   */
  addSpecialTokens?: boolean | undefined;
  signal?: AbortSignal | undefined;
}

export interface DecodeOptions {
  /** Leave special tokens such as EOS out of the text (default false). */
  skipSpecialTokens?: boolean | undefined;
}

/** Text to token ids and back, as the `tokenizer.json` of a checkpoint says. */
export class Tokenizer {
  /** The beginning-of-text token, if the checkpoint names one. */
  readonly bosId: number | undefined;
  /** The end-of-text tokens that tokenizer_config.json names: none or one. */
  readonly eosIds: readonly number[];
  readonly #library: LibraryTokenizer;
  readonly #specialIds: ReadonlySet<number>;
  readonly #postProcessorAddsBos: boolean;
  readonly #configAddsBos: boolean;

  /** What a worker thread needs to build the same tokenizer. */
  readonly #recipe: Pick<EncodeJob, 'file' | 'overrides'>;

  private constructor(
    private readonly vocabSize: number,
    json: TokenizerJson,
    file: SharedArrayBuffer,
    config: PlainObject,
  ) {
    this.#library = buildLibraryTokenizer(json);
    // The model part is by far the largest: workers take it from the shared file instead.
    this.#recipe = { file, overrides: { ...json, model: undefined } };
    this.#specialIds = new Set(json.added_tokens.filter((t) => t.special).map((t) => t.id));
    this.bosId = this.#namedId(config, 'bos_token');
    const eosId = this.#namedId(config, 'eos_token');
    this.eosIds = eosId === undefined ? [] : [eosId];
    const around = this.#library.encode('', { add_special_tokens: true }).ids;
    this.#postProcessorAddsBos = this.bosId !== undefined && around[0] === this.bosId;
    this.#configAddsBos = config['add_bos_token'] === true && !this.#postProcessorAddsBos;
  }

  /**
   * Reads tokenizer.json and tokenizer_config.json of a checkpoint folder. Undefined when the folder
   * has no tokenizer.json: see `missingTokenizerError`. `vocabSize` is the model's.
   * Errors: ERR_LOZA_TOKENIZER, ERR_LOZA_UNSUPPORTED (not BPE), ERR_LOZA_IO.
   */
  static async load(dir: string, vocabSize: number): Promise<Tokenizer | undefined> {
    const file = path.join(dir, 'tokenizer.json');
    const configFile = path.join(dir, 'tokenizer_config.json');
    const bytes = await readOptionalFile(file, maxFileBytes, 'ERR_LOZA_TOKENIZER');
    if (bytes === undefined) return undefined;
    const config = await readTokenizerConfig(configFile, 'ERR_LOZA_TOKENIZER');
    checkConfig(config);
    const plain = parseJsonObject(bytes, file, 'ERR_LOZA_TOKENIZER');
    const json = withNamedTokens(checkTokenizerJson(plain, vocabSize), config);
    // Kept for worker threads: they share these bytes, and see no later change of the file.
    const shared = new SharedArrayBuffer(bytes.length);
    new Uint8Array(shared).set(bytes);
    return new Tokenizer(vocabSize, json, shared, config);
  }

  /**
   * Token ids of `text`. Special tokens written in the text count as such, as in Hugging Face.
   * A text that begins with BOS gets no second one.
   * Errors: ERR_LOZA_INVALID_ARG, ERR_LOZA_TOKENIZER (unpaired surrogates), ERR_LOZA_ABORTED.
   */
  async encode(text: string, options: EncodeOptions = {}): Promise<Int32Array> {
    const { addSpecialTokens = true, signal } = options;
    checkText(text);
    throwIfAborted(signal);
    const ids =
      text.length > maxInPlaceLength
        ? await encodeInWorker({ ...this.#recipe, text, addSpecialTokens }, signal)
        : this.#encodeInPlace(text, addSpecialTokens);
    const bad = ids.find((id) => id < 0 || id >= this.vocabSize);
    if (bad !== undefined) {
      throw new LozaError('ERR_LOZA_TOKENIZER', 'The text needs a token that does not exist');
    }
    return addSpecialTokens ? this.#fixBos(ids) : ids;
  }

  /**
   * Text of token ids. Ids in [0, vocabSize) without a token (padding of the embedding) give nothing;
   * bytes that are no UTF-8 give U+FFFD. Errors: ERR_LOZA_INVALID_ARG for any other id.
   */
  decode(ids: ArrayLike<number>, options: DecodeOptions = {}): string {
    const known: number[] = [];
    for (const id of Array.from(ids)) {
      if (!Number.isInteger(id) || id < 0 || id >= this.vocabSize) {
        const problem = `A token id must be an integer in [0, ${this.vocabSize}), found ${show(id)}`;
        throw new LozaError('ERR_LOZA_INVALID_ARG', problem, { value: id });
      }
      if (this.#library.id_to_token(id) === undefined) continue;
      if (!(options.skipSpecialTokens && this.#specialIds.has(id))) known.push(id);
    }
    if (known.length === 0) return '';
    // Cleaning up spaces is never wanted: it changes the model's text, and needs all of it at once.
    return this.#library.decode(known, { clean_up_tokenization_spaces: false });
  }

  /** The id of a token as the vocabulary spells it, or undefined. */
  idOf(token: string): number | undefined {
    return this.#library.token_to_id(token);
  }

  /** Whether `id` is a special token (control, not text). */
  isSpecial(id: number): boolean {
    return this.#specialIds.has(id);
  }

  #encodeInPlace(text: string, addSpecialTokens: boolean): Int32Array {
    try {
      const { ids } = this.#library.encode(text, { add_special_tokens: addSpecialTokens });
      return Int32Array.from(ids, (id) => id ?? -1);
    } catch (cause) {
      throw new LozaError('ERR_LOZA_TOKENIZER', 'The text could not be encoded', { cause });
    }
  }

  /** Exactly one BOS where the checkpoint asks for one. */
  #fixBos(ids: Int32Array): Int32Array {
    const { bosId } = this;
    if (bosId === undefined) return ids;
    if (this.#postProcessorAddsBos) return ids[1] === bosId ? ids.slice(1) : ids;
    if (!this.#configAddsBos || ids[0] === bosId) return ids;
    const longer = new Int32Array(ids.length + 1);
    longer[0] = bosId;
    longer.set(ids, 1);
    return longer;
  }

  #namedId(config: PlainObject, name: string): number | undefined {
    const token = namedToken(config, name);
    return token === undefined ? undefined : this.idOf(token);
  }
}

/**
 * Why `Tokenizer.load` found nothing in `dir`, as an error to throw when text is asked for.
 * Codes: ERR_LOZA_UNSUPPORTED (a tokenizer of another format), ERR_LOZA_NOT_FOUND.
 */
export async function missingTokenizerError(dir: string): Promise<LozaError> {
  const hint = 'Convert it to tokenizer.json with Hugging Face transformers, or pass token ids';
  for (const name of ['tiktoken.model', 'tokenizer.model']) {
    const found = await access(path.join(dir, name)).then(
      () => true,
      () => false,
    );
    if (!found) continue;
    const problem = `${dir} has only ${show(name)}, a tokenizer format that is not supported`;
    return new LozaError('ERR_LOZA_UNSUPPORTED', problem, { value: name, hint });
  }
  return new LozaError('ERR_LOZA_NOT_FOUND', `${dir} has no tokenizer.json`, {
    value: dir,
    hint: 'Put the tokenizer.json of the model there, or pass token ids',
  });
}

function buildLibraryTokenizer(json: TokenizerJson): LibraryTokenizer {
  try {
    return new LibraryTokenizer(json, {});
  } catch (cause) {
    const problem = `tokenizer.json is not usable: ${cause instanceof Error ? cause.message : ''}`;
    throw new LozaError('ERR_LOZA_TOKENIZER', problem, {
      hint: 'Use the tokenizer.json that was published with this model',
      cause,
    });
  }
}

function checkConfig(config: PlainObject): void {
  const value = config['add_bos_token'] ?? false;
  if (typeof value === 'boolean') return;
  const problem = `tokenizer_config.json: add_bos_token must be true or false, found ${show(value)}`;
  throw new LozaError('ERR_LOZA_TOKENIZER', problem, { value });
}

/** Named tokens that are only in the vocabulary become special tokens, as in Hugging Face. */
function withNamedTokens(json: TokenizerJson, config: PlainObject): TokenizerJson {
  const { vocab } = json.model;
  const listed = new Set(json.added_tokens.map((token) => token.content));
  const names = ['bos_token', 'eos_token', 'pad_token', 'unk_token'];
  const missing = new Set(names.map((name) => namedToken(config, name)));
  const extra = [...missing].flatMap((content) => {
    if (content === undefined || listed.has(content) || !Object.hasOwn(vocab, content)) return [];
    return [{ id: vocab[content] as number, content, special: true, normalized: false }];
  });
  return { ...json, added_tokens: [...json.added_tokens, ...extra] };
}

function checkText(text: unknown): asserts text is string {
  if (typeof text !== 'string') {
    const problem = `The text to encode must be a string, found ${show(text)}`;
    throw new LozaError('ERR_LOZA_INVALID_ARG', problem, { value: text });
  }
  const index = loneSurrogateIndex(text);
  if (index === -1) return;
  const value = text.charCodeAt(index);
  const problem = `The text has an unpaired surrogate (0x${value.toString(16)}) at index ${index}`;
  throw new LozaError('ERR_LOZA_TOKENIZER', problem, {
    value,
    hint: 'Cut strings between characters, or call text.toWellFormed()',
  });
}

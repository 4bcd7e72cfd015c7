import { LozaError, show, type LozaErrorCode } from '../errors';
import { isPlainObject, type PlainObject } from './files';

/**
 * Checks of tokenizer.json. The tokenizer library trusts its input: a wrong id or merge would only
 * show as wrong text, so everything that encoding and decoding rely on is checked when it is read.
 */

export interface AddedToken {
  id: number;
  content: string;
  special: boolean;
  [key: string]: unknown;
}

export interface TokenizerJson {
  added_tokens: AddedToken[];
  model: { type: 'BPE'; vocab: Record<string, number>; [key: string]: unknown };
  [key: string]: unknown;
}

type ComponentKind = 'normalizer' | 'pre_tokenizer' | 'post_processor' | 'decoder';

/** The components that the library has; CTC is left out because it cannot be decoded in a stream. */
const componentTypes: Record<ComponentKind, ReadonlySet<string>> = {
  normalizer: new Set(
    'BertNormalizer Precompiled Sequence Replace NFC NFD NFKC NFKD Strip StripAccents Lowercase Prepend'.split(
      ' ',
    ),
  ),
  pre_tokenizer: new Set(
    'BertPreTokenizer Sequence Whitespace WhitespaceSplit Metaspace ByteLevel Split Punctuation Digits Replace FixedLength'.split(
      ' ',
    ),
  ),
  post_processor: new Set(
    'TemplateProcessing ByteLevel BertProcessing RobertaProcessing Sequence'.split(' '),
  ),
  decoder: new Set(
    'ByteLevel WordPiece Metaspace BPEDecoder Sequence Replace Fuse Strip ByteFallback'.split(' '),
  ),
};

/** The key under which a Sequence lists its parts. */
const partsKey: Record<ComponentKind, string> = {
  normalizer: 'normalizers',
  pre_tokenizer: 'pretokenizers',
  post_processor: 'processors',
  decoder: 'decoders',
};

const componentKinds = Object.keys(partsKey) as ComponentKind[];
const maxComponentDepth = 8;

function malformed(problem: string, value?: unknown): LozaError {
  return fail('ERR_LOZA_TOKENIZER', problem, value);
}

function fail(code: LozaErrorCode, problem: string, value?: unknown): LozaError {
  const hint = 'Use the tokenizer.json that was published with this model';
  return new LozaError(code, `tokenizer.json: ${problem}`, { value, hint });
}

/**
 * A checked copy of the top level of tokenizer.json, with absent parts filled in.
 * Errors: ERR_LOZA_TOKENIZER when malformed or when an id is outside [0, vocabSize),
 * ERR_LOZA_UNSUPPORTED for a model type other than BPE.
 */
export function checkTokenizerJson(json: PlainObject, vocabSize: number): TokenizerJson {
  const model = checkModel(json['model'], vocabSize);
  const added = checkAddedTokens(json['added_tokens'] ?? [], model.vocab, vocabSize);
  const components: PlainObject = {};
  for (const kind of componentKinds) {
    const component = json[kind] ?? null;
    checkComponent(kind, component, 0);
    components[kind] = component;
  }
  const known = new Set(added.map((token) => token.content));
  checkTemplate(components['post_processor'], (token) => {
    return known.has(token) || Object.hasOwn(model.vocab, token);
  });
  return { ...json, ...components, model, added_tokens: added };
}

function checkModel(model: unknown, vocabSize: number): TokenizerJson['model'] {
  if (!isPlainObject(model))
    throw malformed(`model must be an object, found ${show(model)}`, model);
  // Files from before 2022 leave out the type; only BPE has merges.
  const type = model['type'] ?? ('merges' in model ? 'BPE' : undefined);
  if (type === 'Unigram' || type === 'WordPiece' || type === 'WordLevel') {
    throw fail(
      'ERR_LOZA_UNSUPPORTED',
      `model.type ${show(type)} is not supported, only "BPE"`,
      type,
    );
  }
  if (type !== 'BPE') throw malformed(`model.type must be "BPE", found ${show(type)}`, type);
  const vocab = checkVocab(model['vocab'], vocabSize);
  const prefix = model['continuing_subword_prefix'] ?? '';
  if (prefix !== '') {
    throw fail('ERR_LOZA_UNSUPPORTED', 'model.continuing_subword_prefix is not supported', prefix);
  }
  const unknown = model['unk_token'] ?? null;
  if (unknown !== null && !(typeof unknown === 'string' && Object.hasOwn(vocab, unknown))) {
    throw malformed(`model.unk_token ${show(unknown)} is not in the vocabulary`, unknown);
  }
  checkMerges(model['merges'], vocab);
  return { ...model, type, vocab };
}

function checkVocab(vocab: unknown, vocabSize: number): Record<string, number> {
  if (!isPlainObject(vocab)) {
    throw malformed(`model.vocab must be an object, found ${show(vocab)}`, vocab);
  }
  const owner = new Map<number, string>();
  for (const [token, id] of Object.entries(vocab)) {
    checkId(token, id, vocabSize);
    const other = owner.get(id);
    if (other !== undefined) {
      throw malformed(`tokens ${show(other)} and ${show(token)} share the id ${id}`, id);
    }
    owner.set(id, token);
  }
  if (owner.size === 0) throw malformed('model.vocab is empty', vocab);
  return vocab as Record<string, number>;
}

function checkId(token: string, id: unknown, vocabSize: number): asserts id is number {
  if (Number.isInteger(id) && (id as number) >= 0 && (id as number) < vocabSize) return;
  throw malformed(
    `token ${show(token)} has the id ${show(id)}, expected an integer in [0, ${vocabSize})`,
    id,
  );
}

function checkMerges(merges: unknown, vocab: Record<string, number>): void {
  if (!Array.isArray(merges)) {
    throw malformed(`model.merges must be an array, found ${show(merges)}`, merges);
  }
  const seen = new Set<string>();
  const asPairs = Array.isArray(merges[0]);
  for (const [rank, merge] of (merges as unknown[]).entries()) {
    const pair = mergePair(merge, asPairs);
    if (pair === undefined) throw malformed(`merge ${rank} is malformed: ${show(merge)}`, merge);
    for (const token of [...pair, pair.join('')]) {
      if (!Object.hasOwn(vocab, token)) {
        throw malformed(`merge ${rank} needs the token ${show(token)}, which is missing`, token);
      }
    }
    const key = pair.join(' ');
    if (seen.has(key)) throw malformed(`merge ${rank} repeats an earlier one: ${show(key)}`, key);
    seen.add(key);
  }
}

/** The two parts of a merge, which a file writes either as "a b" or as ["a", "b"] throughout. */
function mergePair(merge: unknown, asPairs: boolean): [string, string] | undefined {
  const parts: unknown = asPairs ? merge : typeof merge === 'string' ? merge.split(' ') : undefined;
  if (!Array.isArray(parts) || parts.length !== 2) return undefined;
  const [left, right] = parts as unknown[];
  const usable = typeof left === 'string' && typeof right === 'string' && left && right;
  return usable ? [left, right] : undefined;
}

function checkAddedTokens(
  list: unknown,
  vocab: Record<string, number>,
  vocabSize: number,
): AddedToken[] {
  if (!Array.isArray(list)) {
    throw malformed(`added_tokens must be an array, found ${show(list)}`, list);
  }
  const owner = new Map(Object.entries(vocab).map(([token, id]) => [id, token]));
  const ids = new Map(Object.entries(vocab));
  const added = new Set<string>();
  return (list as unknown[]).map((entry) => {
    if (!isPlainObject(entry)) throw malformed(`an added token is ${show(entry)}`, entry);
    const { content, id } = entry;
    if (typeof content !== 'string' || content === '') {
      throw malformed(
        `an added token has the content ${show(content)}, expected some text`,
        content,
      );
    }
    checkId(content, id, vocabSize);
    if (added.has(content))
      throw malformed(`added token ${show(content)} is listed twice`, content);
    // The same token may stand in the vocabulary and in added_tokens, if both give one id.
    if ((owner.get(id) ?? content) !== content || (ids.get(content) ?? id) !== id) {
      throw malformed(
        `added token ${show(content)} and token ${show(owner.get(id) ?? content)} clash at id ${id}`,
        id,
      );
    }
    added.add(content);
    owner.set(id, content);
    ids.set(content, id);
    return { ...entry, content, id, special: entry['special'] === true };
  });
}

function checkComponent(kind: ComponentKind, component: unknown, depth: number): void {
  if (component === null && depth === 0) return;
  if (!isPlainObject(component)) {
    throw malformed(`a ${kind} must be an object, found ${show(component)}`, component);
  }
  const type = component['type'];
  if (typeof type !== 'string' || !componentTypes[kind].has(type)) {
    throw malformed(`unknown ${kind} type ${show(type)}`, type);
  }
  if (type !== 'Sequence') return;
  if (depth === maxComponentDepth) throw malformed(`${kind} sequences are nested too deeply`);
  const parts = component[partsKey[kind]];
  if (!Array.isArray(parts)) {
    throw malformed(`a ${kind} sequence needs ${partsKey[kind]}, found ${show(parts)}`, parts);
  }
  for (const part of parts as unknown[]) checkComponent(kind, part, depth + 1);
}

/** Every special token that a post-processor template inserts must exist, or it would become id 0. */
function checkTemplate(component: unknown, exists: (token: string) => boolean): void {
  if (!isPlainObject(component)) return;
  if (component['type'] === 'Sequence') {
    for (const part of component['processors'] as unknown[]) checkTemplate(part, exists);
  }
  if (component['type'] !== 'TemplateProcessing') return;
  const template = component['single'];
  if (!Array.isArray(template)) {
    throw malformed(`post_processor.single must be an array, found ${show(template)}`, template);
  }
  for (const item of template as unknown[]) {
    const special = isPlainObject(item) ? item['SpecialToken'] : undefined;
    const id = isPlainObject(special) ? special['id'] : undefined;
    if (special !== undefined && !(typeof id === 'string' && exists(id))) {
      throw malformed(`post_processor inserts the token ${show(id)}, which is missing`, id);
    }
  }
}

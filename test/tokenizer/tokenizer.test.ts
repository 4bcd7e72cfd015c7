import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { Detokenizer } from '../../lib/tokenizer/detokenizer';
import { maxInPlaceLength, missingTokenizerError, Tokenizer } from '../../lib/tokenizer/tokenizer';
import {
  errorOf,
  firstByteId,
  firstUnusedId,
  makeDir,
  makeTokenizerJson,
  prepend,
  special,
  thinkId,
  vocabSize,
  type Json,
} from './fixture';

const config = { bos_token: '<s>', eos_token: { content: '</s>' } };
const byte = (text: string) => firstByteId + text.charCodeAt(0);
const hi = firstByteId + 256;

async function load(json: Json = makeTokenizerJson(), more: Json = {}): Promise<Tokenizer> {
  const dir = makeDir({ 'tokenizer.json': json, 'tokenizer_config.json': { ...config, ...more } });
  const tokenizer = await Tokenizer.load(dir, vocabSize);
  if (tokenizer === undefined) throw new Error('no tokenizer');
  return tokenizer;
}

async function encode(tokenizer: Tokenizer, text: string, addSpecialTokens?: boolean) {
  return [...(await tokenizer.encode(text, { addSpecialTokens }))];
}

describe('encode and decode', () => {
  it.each([
    ['nothing', '', []],
    ['merges', 'hi', [hi]],
    ['special tokens in the text', '<user>hi</s>', [special.user, hi, special.eos]],
    ['added tokens that are not special', 'x<think>', [byte('x'), thinkId]],
    ['a text that only resembles a special token', '<s', [byte('<'), byte('s')]],
  ])('%s', async (_, text, ids) => {
    const tokenizer = await load();
    expect(await encode(tokenizer, text)).toEqual(ids);
    expect(tokenizer.decode(ids)).toBe(text);
  });

  it.each(['\0\t\n', 'é漢😀', 'a\u200d\ufeffb', '\ufeff'])('text %j comes back', async (text) => {
    const tokenizer = await load();
    expect(tokenizer.decode(await tokenizer.encode(text))).toBe(text);
  });

  it('leaves special tokens out on request', async () => {
    const ids = [special.bos, hi, thinkId, special.eos];
    expect((await load()).decode(ids, { skipSpecialTokens: true })).toBe('hi<think>');
  });

  it('gives no text for ids without a token', async () => {
    expect((await load()).decode([hi, firstUnusedId, hi])).toBe('hihi');
  });

  it('never changes spaces', async () => {
    const tokenizer = await load(undefined, { clean_up_tokenization_spaces: true });
    expect(tokenizer.decode(await tokenizer.encode("a . b n't"))).toBe("a . b n't");
  });

  it('knows its tokens', async () => {
    const tokenizer = await load();
    expect(tokenizer.bosId).toBe(special.bos);
    expect(tokenizer.eosIds).toEqual([special.eos]);
    expect(tokenizer.idOf('<think>')).toBe(thinkId);
    expect(tokenizer.idOf('missing')).toBeUndefined();
    expect([special.eos, thinkId, hi].map((id) => tokenizer.isSpecial(id))).toEqual([
      true,
      false,
      false,
    ]);
  });

  it('makes a named token special that is only in the vocabulary', async () => {
    const tokenizer = await load(undefined, { eos_token: 'hi' });
    expect(tokenizer.isSpecial(hi)).toBe(true);
  });
});

describe('BOS', () => {
  const withProcessor = { ...makeTokenizerJson(), post_processor: prepend('<s>') };
  const addBos = { add_bos_token: true };
  it.each([
    ['is not added unasked', makeTokenizerJson(), {}, true, 'hi', [hi]],
    ['is added by add_bos_token', makeTokenizerJson(), addBos, true, 'hi', [special.bos, hi]],
    ['is added to an empty text', makeTokenizerJson(), addBos, true, '', [special.bos]],
    ['is not repeated', makeTokenizerJson(), addBos, true, '<s>hi', [special.bos, hi]],
    ['is not added to templated text', makeTokenizerJson(), addBos, false, 'hi', [hi]],
    ['is added by a post-processor', withProcessor, {}, true, 'hi', [special.bos, hi]],
    ['is not added twice', withProcessor, addBos, true, 'hi', [special.bos, hi]],
    ['of a post-processor is not repeated', withProcessor, {}, true, '<s>', [special.bos]],
    ['of a post-processor can be left out', withProcessor, {}, false, 'hi', [hi]],
  ])('%s', async (_, json, more, addSpecialTokens, text, ids) => {
    expect(await encode(await load(json, more), text, addSpecialTokens)).toEqual(ids);
  });
});

describe('a long text', () => {
  const text = '<user>hi é 😀 '.repeat(Math.ceil(maxInPlaceLength / 14) + 1);

  it('gives the same ids, and leaves the event loop free', async () => {
    const tokenizer = await load(undefined, { add_bos_token: true });
    let ticks = 0;
    const timer = setInterval(() => ticks++, 1);
    const ids = await tokenizer.encode(text);
    clearInterval(timer);
    expect(text.length).toBeGreaterThan(maxInPlaceLength);
    expect(ticks).toBeGreaterThan(2);
    const part = await encode(tokenizer, '<user>hi é 😀 ', false);
    expect([...ids.subarray(0, part.length + 1)]).toEqual([special.bos, ...part]);
    expect(tokenizer.decode(ids, { skipSpecialTokens: false })).toBe(`<s>${text}`);
  });

  it('can be aborted', async () => {
    const tokenizer = await load();
    const controller = new AbortController();
    const pending = errorOf(() => tokenizer.encode(text, { signal: controller.signal }));
    setImmediate(() => controller.abort('enough'));
    expect(await pending).toMatchObject({ code: 'ERR_LOZA_ABORTED', cause: 'enough' });
  });
});

describe('refused calls', () => {
  it.each([
    ['a text that is no string', 5, 'ERR_LOZA_INVALID_ARG'],
    ['a lone high surrogate', 'a\ud83d', 'ERR_LOZA_TOKENIZER'],
    ['a lone low surrogate', '\ude00a', 'ERR_LOZA_TOKENIZER'],
    ['swapped surrogates', '\ude00\ud83d', 'ERR_LOZA_TOKENIZER'],
  ])('encode: %s', async (_, text, code) => {
    const tokenizer = await load();
    expect((await errorOf(() => tokenizer.encode(text as string))).code).toBe(code);
  });

  it.each([-1, vocabSize, 1.5, NaN, '7'])('decode: id %p', async (id) => {
    const tokenizer = await load();
    const error = await errorOf(() => tokenizer.decode([id as number]));
    expect(error).toMatchObject({ code: 'ERR_LOZA_INVALID_ARG', value: id });
  });

  it('an aborted signal', async () => {
    const tokenizer = await load();
    const error = await errorOf(() => tokenizer.encode('hi', { signal: AbortSignal.abort() }));
    expect(error.code).toBe('ERR_LOZA_ABORTED');
  });
});

describe('a folder without tokenizer.json', () => {
  it.each([
    ['nothing at all', {}, 'ERR_LOZA_NOT_FOUND'],
    ['tiktoken.model', { 'tiktoken.model': '' }, 'ERR_LOZA_UNSUPPORTED'],
    ['tokenizer.model', { 'tokenizer.model': '' }, 'ERR_LOZA_UNSUPPORTED'],
  ])('with %s is explained', async (_, files, code) => {
    const dir = makeDir(files);
    expect(await Tokenizer.load(dir, vocabSize)).toBeUndefined();
    expect(await missingTokenizerError(dir)).toMatchObject({ code });
  });

  it('but a folder of that name is refused', async () => {
    const dir = makeDir({});
    mkdirSync(path.join(dir, 'tokenizer.json'));
    expect((await errorOf(() => Tokenizer.load(dir, vocabSize))).code).toBe('ERR_LOZA_IO');
  });
});

const tiny = path.join(__dirname, '../../models/loza-tiny');
(existsSync(path.join(tiny, 'tokenizer.json')) ? describe : describe.skip)('loza-tiny', () => {
  it.each(['text', 'passkey'])('%s is encoded and decoded as published', async (name) => {
    const want = readExpected(name);
    const tokenizer = (await Tokenizer.load(tiny, 2048)) as Tokenizer;
    const ids = [...(await tokenizer.encode(want.prompt))];
    expect(ids).toHaveLength(want.tokens);
    expect(ids).toEqual(readInt32(`${name}.input_ids`));
    const greedy = readInt32(`${name}.greedy`);
    expect(tokenizer.decode(greedy)).toBe(want.greedy_text);
    const stream = new Detokenizer(tokenizer, { skipSpecialTokens: false });
    const streamed = greedy.map((id) => stream.push(id)).join('') + stream.flush();
    expect(streamed).toBe(want.greedy_text);
  });
});

interface Expected {
  prompt: string;
  tokens: number;
  greedy_text: string;
}

function readExpected(name: string): Expected {
  const text = readFileSync(path.join(tiny, 'expected.json'), 'utf8');
  return (JSON.parse(text) as Record<string, Expected>)[name] as Expected;
}

function readInt32(name: string): number[] {
  const file = readFileSync(path.join(tiny, 'expected.safetensors'));
  const start = 8 + Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.toString('utf8', 8, start)) as Record<
    string,
    { data_offsets: [number, number] }
  >;
  const [from, to] = (header[name] as { data_offsets: [number, number] }).data_offsets;
  return [...new Int32Array(new Uint8Array(file.subarray(start + from, start + to)).buffer)];
}

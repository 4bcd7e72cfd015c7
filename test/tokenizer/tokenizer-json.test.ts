import { truncateSync } from 'node:fs';
import path from 'node:path';
import { Tokenizer } from '../../lib/tokenizer/tokenizer';
import {
  errorOf,
  makeDir,
  makeTokenizerJson,
  prepend,
  vocabSize,
  type TokenizerFixture,
} from './fixture';

type Break = (json: TokenizerFixture) => unknown;

const sequence = (depth: number): unknown =>
  depth === 0 ? { type: 'NFC' } : { type: 'Sequence', normalizers: [sequence(depth - 1)] };

const broken: [string, Break][] = [
  ['an id of vocabSize', (json) => (json.model.vocab['A'] = vocabSize)],
  ['a negative id', (json) => (json.model.vocab['A'] = -1)],
  ['a fractional id', (json) => (json.model.vocab['A'] = 1.5)],
  ['an id as text', (json) => (json.model.vocab['A'] = '7')],
  ['two tokens of one id', (json) => (json.model.vocab['A'] = json.model.vocab['B'])],
  ['an empty vocabulary', (json) => (json.model.vocab = {})],
  ['a vocabulary that is an array', (json) => Object.assign(json.model, { vocab: [] })],
  ['an unknown token that is missing', (json) => (json.model['unk_token'] = '<none>')],
  ['no model', (json) => delete (json as Partial<TokenizerFixture>).model],
  ['an unknown model type', (json) => (json.model['type'] = 'GPT')],
  ['merges that are no array', (json) => Object.assign(json.model, { merges: {} })],
  ['a merge with a missing left part', (json) => (json.model.merges[0] = ['zz', 'i'])],
  ['a merge with a missing right part', (json) => (json.model.merges[0] = ['h', 'zz'])],
  ['a merge with a missing result', (json) => (json.model.merges[0] = ['h', 'z'])],
  ['a merge of three parts', (json) => (json.model.merges[0] = ['h', 'i', 'h'])],
  ['a merge with an empty part', (json) => (json.model.merges[0] = ['hi', ''])],
  ['a merge that is a number', (json) => (json.model.merges[0] = 3)],
  ['merges written in two ways', (json) => (json.model.merges[1] = 'h i')],
  ['a repeated merge', (json) => json.model.merges.push(json.model.merges[0])],
  ['a text merge without a space', (json) => (json.model.merges = ['hi'])],
  ['added tokens that are no array', (json) => Object.assign(json, { added_tokens: {} })],
  ['an added token that is text', (json) => json.added_tokens.push('x' as never)],
  ['an empty added token', (json) => json.added_tokens.push({ id: 270, content: '' })],
  ['an added token without content', (json) => json.added_tokens.push({ id: 270 })],
  ['an added id of vocabSize', (json) => json.added_tokens.push({ id: vocabSize, content: 'x!' })],
  ['two added tokens of one id', (json) => json.added_tokens.push({ id: 1, content: 'x!' })],
  ['an added token listed twice', (json) => json.added_tokens.push({ id: 1, content: '<s>' })],
  ['an added token at an id of the vocabulary', (json) => (json.added_tokens[0]!['id'] = 50)],
  ['an added token with two ids', (json) => json.added_tokens.push({ id: 268, content: 'A' })],
  ['an unknown normalizer', (json) => (json['normalizer'] = { type: 'Nmt' })],
  ['an unknown pre-tokenizer', (json) => (json['pre_tokenizer'] = { type: 'Python' })],
  ['a component without a type', (json) => (json['pre_tokenizer'] = {})],
  ['a component that is text', (json) => (json['pre_tokenizer'] = 'ByteLevel')],
  ['an unknown post-processor', (json) => (json['post_processor'] = { type: '__proto__' })],
  ['an unknown decoder', (json) => (json['decoder'] = { type: 'CTC' })],
  ['an unknown part', (json) => (json['decoder'] = { type: 'Sequence', decoders: [{}] })],
  ['a sequence without parts', (json) => (json['decoder'] = { type: 'Sequence' })],
  ['sequences nested too deeply', (json) => (json['normalizer'] = sequence(10))],
  ['a template with a missing token', (json) => (json['post_processor'] = prepend('<none>'))],
  ['a template that is none', (json) => (json['post_processor'] = { type: 'TemplateProcessing' })],
  [
    'a regular expression that is none',
    (json) => (json['pre_tokenizer'] = { type: 'Split', pattern: { Regex: '(' } }),
  ],
];

describe('tokenizer.json', () => {
  it.each(broken)('with %s is refused', async (_, breakIt) => {
    const json = makeTokenizerJson();
    breakIt(json);
    const dir = makeDir({ 'tokenizer.json': json });
    const error = await errorOf(() => Tokenizer.load(dir, vocabSize));
    expect(error.code).toBe('ERR_LOZA_TOKENIZER');
    expect(error.message).toMatch(/^tokenizer\.json/);
  });

  it.each([
    ['text merges', (json) => (json.model.merges = ['h i'])],
    ['no type, but merges', (json) => delete json.model['type']],
    ['absent components', (json) => delete json['normalizer']],
    ['a token in both lists', (json) => (json.model.vocab['<s>'] = 1)],
    ['nested sequences', (json) => (json['normalizer'] = sequence(5))],
  ] as [string, Break][])('with %s is read', async (_, change) => {
    const json = makeTokenizerJson();
    change(json);
    const tokenizer = await Tokenizer.load(makeDir({ 'tokenizer.json': json }), vocabSize);
    expect(tokenizer?.decode(await tokenizer.encode('<s>hi'))).toBe('<s>hi');
  });

  it.each([
    ['another model', (json) => (json.model['type'] = 'Unigram')],
    ['a subword prefix', (json) => (json.model['continuing_subword_prefix'] = '##')],
  ] as [string, Break][])('with %s is not supported', async (_, change) => {
    const json = makeTokenizerJson();
    change(json);
    const dir = makeDir({ 'tokenizer.json': json });
    const error = await errorOf(() => Tokenizer.load(dir, vocabSize));
    expect(error.code).toBe('ERR_LOZA_UNSUPPORTED');
  });

  it.each([
    ['is empty', ''],
    ['is cut short', '{"model": {'],
    ['is an array', '[]'],
    ['is not UTF-8', Buffer.from([0x7b, 0xff, 0x7d])],
  ])('that %s is refused', async (_, content) => {
    const dir = makeDir({ 'tokenizer.json': content });
    const error = await errorOf(() => Tokenizer.load(dir, vocabSize));
    expect(error.code).toBe('ERR_LOZA_TOKENIZER');
  });

  it('above 64 MB is refused unread', async () => {
    const dir = makeDir({ 'tokenizer.json': '{}' });
    truncateSync(path.join(dir, 'tokenizer.json'), 64 * 2 ** 20 + 1);
    const error = await errorOf(() => Tokenizer.load(dir, vocabSize));
    expect(error).toMatchObject({ code: 'ERR_LOZA_TOKENIZER', value: 64 * 2 ** 20 + 1 });
  });
});

describe('tokenizer_config.json', () => {
  it.each([
    ['is cut short', '{'],
    ['is a number', '5'],
    ['has add_bos_token as text', { add_bos_token: 'yes' }],
  ])('that %s is refused', async (_, config) => {
    const dir = makeDir({ 'tokenizer.json': makeTokenizerJson(), 'tokenizer_config.json': config });
    const error = await errorOf(() => Tokenizer.load(dir, vocabSize));
    expect(error.code).toBe('ERR_LOZA_TOKENIZER');
  });
});

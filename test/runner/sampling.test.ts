import { LozaError } from '../../lib/errors';
import {
  normalizeGenerateOptions,
  readGenerationDefaults,
  type GenerateOptions,
} from '../../lib/runner/sampling';

const defaults = { ...readGenerationDefaults(undefined, [2]), vocabSize: 100 };

function caught(work: () => unknown): LozaError {
  try {
    work();
  } catch (error) {
    if (LozaError.isInstance(error)) return error;
    throw error;
  }
  throw new Error('expected an error');
}

describe('options', () => {
  it('all have a default', () => {
    const { seed, ...rest } = normalizeGenerateOptions(undefined, defaults);
    expect(Number.isSafeInteger(seed) && seed >= 0).toBe(true);
    expect(rest).toEqual({
      maxNewTokens: 256,
      n: 1,
      temperature: 0,
      topK: 0,
      topP: 1,
      minP: 0,
      repetitionPenalty: 1,
      stop: [],
      stopTokenIds: [],
      eosIds: [2],
      logprobs: false,
      signal: undefined,
      onProgress: undefined,
    });
  });

  it('get another seed each time', () => {
    const seeds = Array.from({ length: 20 }, () => normalizeGenerateOptions({}, defaults).seed);
    expect(new Set(seeds).size).toBe(20);
  });

  it('replace the published values', () => {
    const published = {
      temperature: 0.6,
      topK: 40,
      topP: 0.95,
      repetitionPenalty: 1.1,
      eosIds: [7, 8],
    };
    const all = { ...published, vocabSize: 100 };
    expect(normalizeGenerateOptions({}, all)).toMatchObject(published);
    const own = { temperature: 0, topK: 1, topP: 0.5, repetitionPenalty: 1 };
    expect(normalizeGenerateOptions(own, all)).toMatchObject({ ...own, eosIds: [7, 8] });
  });

  const { signal } = new AbortController();
  const onProgress = () => undefined;
  it.each<[GenerateOptions, object]>([
    [{ maxNewTokens: 1 }, { maxNewTokens: 1 }],
    [{ temperature: 100 }, { temperature: 100 }],
    [
      { topP: 1, minP: 1 },
      { topP: 1, minP: 1 },
    ],
    [{ seed: 2 ** 53 - 1 }, { seed: 2 ** 53 - 1 }],
    [{ seed: 0 }, { seed: 0 }],
    [{ stop: 'x' }, { stop: ['x'] }],
    [{ stop: ['x', '😀'] }, { stop: ['x', '😀'] }],
    [{ stop: [] }, { stop: [] }],
    [{ stopTokenIds: [0, 99] }, { stopTokenIds: [0, 99] }],
    [{ ignoreEos: true }, { eosIds: [] }],
    [{ ignoreEos: false }, { eosIds: [2] }],
    [{ logprobs: true }, { logprobs: 0 }],
    [{ logprobs: 0 }, { logprobs: 0 }],
    [{ logprobs: 20 }, { logprobs: 20 }],
    [{ logprobs: false }, { logprobs: false }],
    [
      { temperature: undefined, stop: undefined },
      { temperature: 0, stop: [] },
    ],
    [
      { signal, onProgress },
      { signal, onProgress },
    ],
  ])('%j give %j', (options, params) => {
    expect(normalizeGenerateOptions(options, defaults)).toMatchObject(params);
  });

  it.each<[string, unknown]>([
    ['maxNewTokens', 0],
    ['maxNewTokens', -1],
    ['maxNewTokens', 1.5],
    ['maxNewTokens', '5'],
    ['maxNewTokens', Infinity],
    ['maxNewTokens', null],
    ['temperature', -0.1],
    ['temperature', 100.1],
    ['temperature', NaN],
    ['temperature', Infinity],
    ['temperature', '1'],
    ['topK', -1],
    ['topK', 0.5],
    ['topP', 0],
    ['topP', 1.01],
    ['topP', NaN],
    ['minP', -0.01],
    ['minP', 1.01],
    ['repetitionPenalty', 0],
    ['repetitionPenalty', -1],
    ['repetitionPenalty', Infinity],
    ['seed', -1],
    ['seed', 2 ** 53],
    ['seed', 0.5],
    ['seed', 1n],
    ['stop', ''],
    ['stop', 5],
    ['stop', null],
    ['stop', ['x', '']],
    ['stop', ['\ud800']],
    ['stop', new Array(17).fill('x')],
    ['stopTokenIds', 5],
    ['stopTokenIds', [-1]],
    ['stopTokenIds', [100]],
    ['stopTokenIds', ['5']],
    ['ignoreEos', 1],
    ['logprobs', -1],
    ['logprobs', 21],
    ['logprobs', 1.5],
    ['logprobs', 'all'],
    ['signal', {}],
    ['signal', null],
    ['onProgress', 'log'],
  ])('%s: %p is refused', (key, value) => {
    const error = caught(() => normalizeGenerateOptions({ [key]: value }, defaults));
    expect(error.code).toBe('ERR_LOZA_INVALID_ARG');
    expect(error.message).toContain(key);
    expect(error.message).toContain('found ');
  });

  it.each([null, [], 'greedy', 5])('%p in place of an object is refused', (options) => {
    const error = caught(() => normalizeGenerateOptions(options as GenerateOptions, defaults));
    expect(error.code).toBe('ERR_LOZA_INVALID_ARG');
  });

  it.each([
    ['max_tokens', 'maxNewTokens'],
    ['maxTokens', 'maxNewTokens'],
    ['temprature', 'temperature'],
    ['top_p', 'topP'],
    ['topk', 'topK'],
    ['stops', 'stop'],
    ['repetition_penalty', 'repetitionPenalty'],
    ['log_probs', 'logprobs'],
    ['abortSignal', 'signal'],
  ])('%s is unknown, and %s suggested', (key, suggestion) => {
    const error = caught(() => normalizeGenerateOptions({ [key]: undefined }, defaults));
    expect(error).toMatchObject({ code: 'ERR_LOZA_INVALID_ARG', value: key });
    expect(error.hint).toBe(`Did you mean ${suggestion}?`);
  });
});

describe('generation_config.json', () => {
  const greedy = { temperature: 0, topK: 0, topP: 1, repetitionPenalty: 1, eosIds: [2] };
  const sampling = { temperature: 0.6, top_k: 40, top_p: 0.95, repetition_penalty: 1.1 };
  const sampled = { temperature: 0.6, topK: 40, topP: 0.95, repetitionPenalty: 1.1, eosIds: [2] };
  it.each<[string, unknown, object]>([
    ['none', undefined, greedy],
    ['an empty one', {}, greedy],
    ['sampling', { ...sampling, do_sample: true }, sampled],
    ['sampling without values', { do_sample: true }, { ...greedy, temperature: 1 }],
    ['no do_sample', sampling, { ...greedy, repetitionPenalty: 1.1 }],
    ['do_sample false', { ...sampling, do_sample: false }, { ...greedy, repetitionPenalty: 1.1 }],
    ['null values', { top_k: null, eos_token_id: null, do_sample: null }, greedy],
    ['one end token', { eos_token_id: 0 }, { ...greedy, eosIds: [0] }],
    ['several end tokens', { eos_token_id: [5, 6] }, { ...greedy, eosIds: [5, 6] }],
    ['other keys', { transformers_version: '5', max_length: 9 }, greedy],
  ])('%s', (_, plain, expected) => {
    expect(readGenerationDefaults(plain, [2])).toEqual(expected);
  });

  it.each<[string, unknown]>([
    ['an array', []],
    ['null', null],
    ['do_sample as text', { do_sample: 'yes' }],
    ['temperature as text', { temperature: 'hot' }],
    ['a negative temperature', { temperature: -1 }],
    ['top_p of 0', { top_p: 0 }],
    ['top_k of 0.5', { top_k: 0.5 }],
    ['repetition_penalty of 0', { repetition_penalty: 0 }],
    ['an end token as text', { eos_token_id: '2' }],
    ['a negative end token', { eos_token_id: -1 }],
    ['end tokens as text', { eos_token_id: ['2'] }],
  ])('%s is refused', (_, plain) => {
    expect(caught(() => readGenerationDefaults(plain, [2])).code).toBe('ERR_LOZA_CONFIG');
  });
});

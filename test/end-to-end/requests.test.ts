import path from 'node:path';
import { LanguageModel, type LoadOptions, type LozaErrorCode } from '../../lib';
import { listDevices } from '../../lib/native/device';
import { expectLozaError } from '../support/errors';
import { goldenDir, tinyDir } from '../support/goldens';

const golden = path.join(goldenDir, 'longcat-zigzag-yarn'); // 4 attentions, 320 tokens, 4096 positions
const text = 'a'.repeat(10);

describe('load refuses', () => {
  type Case = [name: string, options: unknown, code: LozaErrorCode, message: string];
  const invalid = 'ERR_LOZA_INVALID_ARG';
  test.each<Case>([
    ['options that are no object', 7, invalid, 'load options must be an object'],
    ['options that are an array', [], invalid, 'load options must be an object'],
    ['an unknown option', { devise: 'cpu' }, invalid, 'devise'],
    ['an unknown device', { device: 'tpu' }, invalid, 'device must be one of'],
    ['an unknown dtype', { dtype: 'int4' }, invalid, 'dtype must be one of'],
    ['maxTokens of 0', { maxTokens: 0 }, invalid, 'maxTokens must be an integer'],
    ['maxTokens of NaN', { maxTokens: NaN }, invalid, 'maxTokens must be an integer'],
    ['maxTokens as text', { maxTokens: '4096' }, invalid, 'maxTokens must be an integer'],
    ['chunkTokens below 1', { chunkTokens: -1 }, invalid, 'chunkTokens'],
    ['maxSequences of a half', { maxSequences: 0.5 }, invalid, 'maxSequences'],
    [
      'expandedMinTokens of Infinity',
      { expandedMinTokens: Infinity },
      invalid,
      'expandedMinTokens',
    ],
    ['a rope option that is no object', { rope: 8 }, invalid, 'rope must be an object'],
    ['an unknown rope option', { rope: { factor: 8 } }, invalid, 'yarnFactor'],
    ['a yarnFactor below 1', { rope: { yarnFactor: 0.5 } }, invalid, 'yarnFactor'],
    ['a yarnFactor of NaN', { rope: { yarnFactor: NaN } }, invalid, 'yarnFactor'],
    ['a yarnFactor that shortens the model', { rope: { yarnFactor: 2 } }, invalid, 'shorten'],
    ['exactAngles as text', { rope: { exactAngles: 'yes' } }, invalid, 'exactAngles'],
    ['a signal that is none', { signal: {} }, invalid, 'signal must be an AbortSignal'],
    ['a progress callback that is none', { onProgress: 1 }, invalid, 'onProgress'],
    ['an unknown attention', { attention: 'sparse' }, invalid, 'attention must be'],
    ['a null attention', { attention: null }, invalid, 'attention must be'],
    ['a pattern too short', { attention: { layerType: '01' } }, invalid, '4 characters'],
    ['a pattern too long', { attention: { layerType: '01011' } }, invalid, '4 characters'],
    ['a pattern of other characters', { attention: { layerType: '01x1' } }, invalid, '0 or 1'],
    ['no sink blocks', { attention: { layerType: '0101', sinkBlocks: 0 } }, invalid, 'sinkBlocks'],
    [
      'half a local block',
      { attention: { layerType: '0101', localBlocks: 0.5 } },
      invalid,
      'localBlocks',
    ],
    ['an unknown pattern key', { attention: { layerType: '0101', block: 64 } }, invalid, 'block'],
  ])('%s', async (_, options, code, message) => {
    await expectLozaError(() => LanguageModel.load(golden, options as LoadOptions), code, message);
  });

  test.each<[string, unknown, LozaErrorCode]>([
    ['a folder that does not exist', '/nowhere/at/all', 'ERR_LOZA_NOT_FOUND'],
    ['a file', path.join(golden, 'config.json'), 'ERR_LOZA_INVALID_ARG'],
    ['a number', 5, 'ERR_LOZA_INVALID_ARG'],
    ['an empty path', '', 'ERR_LOZA_INVALID_ARG'],
    ['a folder without a checkpoint', __dirname, 'ERR_LOZA_NOT_FOUND'],
  ])('%s', async (_, dir, code) => {
    await expectLozaError(() => LanguageModel.load(dir as string), code, '');
  });

  const cuda = listDevices().find(({ kind }) => kind === 'cuda');
  (cuda?.usable ? test.skip : test)('a GPU that is not there, with the reason', async () => {
    const loading = () => LanguageModel.load(golden, { device: 'cuda' });
    await expectLozaError(loading, 'ERR_LOZA_DEVICE_UNAVAILABLE', cuda?.reason ?? 'cuda');
  });

  test('a signal that has fired', async () => {
    const signal = AbortSignal.abort(new Error('not today'));
    await expectLozaError(
      () => LanguageModel.load(golden, { signal }),
      'ERR_LOZA_ABORTED',
      'aborted',
    );
  });
});

describe('a loaded model refuses', () => {
  let model: LanguageModel;
  beforeAll(async () => {
    model = await LanguageModel.load(golden, { device: 'cpu', maxTokens: 1024 });
  });
  afterAll(async () => {
    // Whatever was refused left nothing behind, and the model still works.
    const { full, streaming } = model.memory.kv;
    expect([full, streaming]).toMatchObject([{ resident: 0 }, { resident: 0 }]);
    const { tokens } = await model
      .generate([1, 2, 3], { maxNewTokens: 2, ignoreEos: true })
      .result();
    expect(tokens).toHaveLength(2);
    await model.close();
  });

  type Case = [
    name: string,
    prompt: unknown,
    options: unknown,
    code: LozaErrorCode,
    message: string,
  ];
  const invalid = 'ERR_LOZA_INVALID_ARG';
  const ids = [1, 2, 3];
  test.each<Case>([
    ['an empty prompt', [], {}, invalid, 'at least one token'],
    ['an empty typed array', new Int32Array(), {}, invalid, 'at least one token'],
    ['no prompt', undefined, {}, invalid, 'prompt must be'],
    ['a prompt of the wrong type', { text: 'x' }, {}, invalid, 'prompt must be'],
    ['a token past the vocabulary', [1, 320], {}, invalid, 'Token 1'],
    ['a negative token', [-1], {}, invalid, 'Token 0'],
    ['half a token', [0.5], {}, invalid, 'Token 0'],
    ['a NaN token', [NaN], {}, invalid, 'Token 0'],
    ['a token as text', ['1'], {}, invalid, 'Token 0'],
    ['a null token', [1, null], {}, invalid, 'Token 1'],
    ['text without a tokenizer', text, {}, 'ERR_LOZA_NOT_FOUND', 'tokenizer'],
    [
      'a chat without a tokenizer',
      [{ role: 'user', content: 'hi' }],
      {},
      'ERR_LOZA_NOT_FOUND',
      'tokenizer',
    ],
    [
      'a prompt past the KV budget',
      new Int32Array(1025),
      {},
      'ERR_LOZA_CONTEXT_LENGTH',
      'maxTokens',
    ],
    [
      'a prompt past the positions',
      new Int32Array(4097),
      {},
      'ERR_LOZA_CONTEXT_LENGTH',
      'yarnFactor',
    ],
    ['options that are no object', ids, 'fast', invalid, 'object'],
    ['an unknown option', ids, { maxToken: 5 }, invalid, 'maxToken'],
    ['maxNewTokens of 0', ids, { maxNewTokens: 0 }, invalid, 'maxNewTokens'],
    ['maxNewTokens of Infinity', ids, { maxNewTokens: Infinity }, invalid, 'maxNewTokens'],
    ['a NaN temperature', ids, { temperature: NaN }, invalid, 'temperature'],
    ['a negative temperature', ids, { temperature: -1 }, invalid, 'temperature'],
    ['topP of 0', ids, { topP: 0 }, invalid, 'topP'],
    ['topP above 1', ids, { topP: 1.5 }, invalid, 'topP'],
    ['topK of a half', ids, { topK: 0.5 }, invalid, 'topK'],
    ['minP above 1', ids, { minP: 2 }, invalid, 'minP'],
    ['a NaN minP', ids, { minP: NaN }, invalid, 'minP'],
    ['a repetition penalty of 0', ids, { repetitionPenalty: 0 }, invalid, 'repetitionPenalty'],
    [
      'an infinite repetition penalty',
      ids,
      { repetitionPenalty: Infinity },
      invalid,
      'repetitionPenalty',
    ],
    ['a seed past the safe integers', ids, { seed: 2 ** 53 }, invalid, 'seed'],
    ['an empty stop string', ids, { stop: '' }, invalid, 'stop'],
    ['a stop token past the vocabulary', ids, { stopTokenIds: [320] }, invalid, 'stopTokenIds'],
    ['too many logprobs', ids, { logprobs: 21 }, invalid, 'logprobs'],
    ['a signal that is none', ids, { signal: 5 }, invalid, 'signal'],
  ])('to continue: %s', async (_, prompt, options, code, message) => {
    const generate = () => model.generate(prompt as string, options as object);
    await expectLozaError(() => generate().result(), code, message);
    await expectLozaError(
      async () => {
        for await (const part of generate()) expect(part).toBeUndefined();
      },
      code,
      message,
    );
  });

  test.each<[string, unknown, unknown, LozaErrorCode, string]>([
    ['no tokens', [], {}, invalid, 'at least one token'],
    ['text', 'hello', {}, invalid, 'prompt must be'],
    ['a position past the prompt', ids, { positions: [3] }, invalid, 'positions'],
    ['a negative position', ids, { positions: [-1] }, invalid, 'positions'],
    ['a NaN position', ids, { positions: [NaN] }, invalid, 'positions'],
    ['no positions', ids, { positions: [] }, invalid, 'positions'],
    ['positions that are no array', ids, { positions: 2 }, invalid, 'positions'],
    ['an unknown option', ids, { position: [0] }, invalid, 'position'],
    [
      'a prompt past the KV budget',
      new Int32Array(1025),
      {},
      'ERR_LOZA_CONTEXT_LENGTH',
      'maxTokens',
    ],
  ])('to score: %s', async (_, tokens, options, code, message) => {
    await expectLozaError(() => model.score(tokens as number[], options as object), code, message);
  });
});

test('with a tokenizer, text that encodes to nothing is refused', async () => {
  await using model = await LanguageModel.load(tinyDir, { device: 'cpu' });
  await expectLozaError(
    () => model.generate('').result(),
    'ERR_LOZA_INVALID_ARG',
    'at least one token',
  );
  await expectLozaError(() => model.generate('\ud800').result(), 'ERR_LOZA_TOKENIZER', 'surrogate');
});

test('a checkpoint with more positions than the KV budget still stops at its end', async () => {
  await using model = await LanguageModel.load(golden, { device: 'cpu', maxTokens: 128 });
  const result = await model
    .generate(new Int32Array(120).fill(5), { maxNewTokens: 50, ignoreEos: true })
    .result();
  expect(result.tokens).toHaveLength(9); // 128 cached positions, and one token that is never read back
  expect(result.finishReason).toBe('length');
});

test('an explicit YaRN extension is accepted and reported', async () => {
  await using model = await LanguageModel.load(golden, {
    device: 'cpu',
    rope: { yarnFactor: 16 },
    maxTokens: 8192,
  });
  expect(model.info.maxPosition).toBe(8192);
  expect(model.info.rope).toMatchObject({ type: 'yarn', factor: 16, originalMaxPosition: 512 });
  const { rows } = await model.score(new Int32Array(5000).fill(7), { positions: [4999] });
  expect(rows).toBe(1);
});

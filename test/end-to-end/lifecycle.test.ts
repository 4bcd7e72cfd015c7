import path from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { LanguageModel, type LoadOptions } from '../../lib';
import type { LoadedModel } from '../../lib/load-model';
import { Device, type Purpose } from '../../lib/native/device';
import { expectLozaError } from '../support/errors';
import { goldenDir, tinyDir } from '../support/goldens';
import { randomTokens } from '../support/prompts';

const golden = path.join(goldenDir, 'longcat-zigzag-yarn');
const load = (options: LoadOptions = {}) =>
  LanguageModel.load(golden, { device: 'cpu', maxTokens: 4096, ...options });
const prompt = randomTokens(1500, 320, 4);
const options = { maxNewTokens: 1000, ignoreEos: true };

describe('aborting', () => {
  test.each([0, 1, 5, 20, 60])('a generation after %i ms frees its blocks', async (delay) => {
    await using model = await load();
    const abort = new AbortController();
    const result = model.generate(prompt, { ...options, signal: abort.signal }).result();
    setTimeout(() => abort.abort(new Error('enough')), delay);
    await expectLozaError(() => result, 'ERR_LOZA_ABORTED', 'aborted');
    await result.catch((error: unknown) =>
      expect(error).toMatchObject({ cause: new Error('enough') }),
    );
    await expectResident(model, 0);
  });

  test('scoring frees its blocks', async () => {
    await using model = await load();
    const abort = new AbortController();
    const long = randomTokens(4000, 320, 1);
    // Aborts as soon as the first chunk has been read, so that work is certainly under way.
    const onProgress = () => abort.abort();
    const score = () => model.score(long, { positions: [0], signal: abort.signal, onProgress });
    await expectLozaError(score, 'ERR_LOZA_ABORTED', 'aborted');
    await expectResident(model, 0);
  });

  test('by leaving the loop frees its blocks', async () => {
    await using model = await load();
    let parts = 0;
    for await (const part of model.generate(prompt, options)) {
      expect(part.index).toBe(parts++);
      if (parts === 3) break;
    }
    expect(parts).toBe(3);
    await expectResident(model, 0);
  });

  test('one of several leaves the others as they were', async () => {
    await using model = await load();
    const short = { maxNewTokens: 40, ignoreEos: true };
    const alone = await model.generate([1, 2, 3], short).result();
    const abort = new AbortController();
    const doomed = model.generate(prompt, { ...options, signal: abort.signal }).result();
    const survivor = model.generate([1, 2, 3], short).result();
    setTimeout(() => abort.abort(), 30);
    await expectLozaError(() => doomed, 'ERR_LOZA_ABORTED', '');
    expect((await survivor).tokens).toEqual(alone.tokens);
  });
});

describe('closing', () => {
  test('fails what is running and what comes later, and can be repeated', async () => {
    const model = await load();
    const running = model.generate(prompt, options).result();
    const failed = expectLozaError(() => running, 'ERR_LOZA_CLOSED', 'closed');
    await new Promise((resolve) => setTimeout(resolve, 10));
    await Promise.all([model.close(), model.close()]);
    await failed;
    await model.close();
    await expectLozaError(() => model.generate([1]).result(), 'ERR_LOZA_CLOSED', 'closed');
    await expectLozaError(() => model.score([1]), 'ERR_LOZA_CLOSED', 'closed');
    await expectLozaError(() => model.memory, 'ERR_LOZA_CLOSED', 'closed');
  });

  test('returns all memory: 60 loads leave the process where it was', async () => {
    const cycle = async () => {
      const model = await load();
      await model.generate([1, 2, 3], { maxNewTokens: 3, ignoreEos: true }).result();
      await model.close();
    };
    for (let i = 0; i < 20; i++) await cycle();
    const before = process.memoryUsage().rss;
    for (let i = 0; i < 60; i++) await cycle();
    const grown = process.memoryUsage().rss - before;
    expect(grown).toBeLessThan(40 * 2 ** 20); // 60 leaked KV pools would be 900 MiB
  });
});

describe('running out of memory', () => {
  test.each<Purpose>(['weights', 'kv', 'workspace'])(
    'for %s at load closes the device',
    async (purpose) => {
      const close = jest.spyOn(Device.prototype, 'close');
      const { allocate } = Device.prototype;
      Device.prototype.allocate = function (this: Device, dtype, shape, wanted) {
        // More than the address space holds, so that the operating system itself refuses.
        return allocate.call(this, dtype, wanted === purpose ? [2 ** 15, 2 ** 31] : shape, wanted);
      };
      try {
        await expectLozaError(load, 'ERR_LOZA_OUT_OF_MEMORY', 'bytes');
        expect(close).toHaveBeenCalled();
      } finally {
        Device.prototype.allocate = allocate;
        close.mockRestore();
      }
    },
  );

  test('in the middle of a step fails that request alone', async () => {
    await using model = await load();
    const { device, groups } = internals(model);
    device.failAllocationAfter(0);
    const score = () => model.score(prompt, { positions: [0] });
    await expectLozaError(score, 'ERR_LOZA_OUT_OF_MEMORY', 'bytes');
    expect(groups.map((group) => group.pool.inUse)).toEqual(groups.map(() => 0));
    expect((await score()).rows).toBe(1);
  });
});

describe('what no query may read can hold anything', () => {
  const generate = (model: LanguageModel) =>
    model.generate(prompt, { maxNewTokens: 40, ignoreEos: true, logprobs: true }).result();

  test.each([
    { prefixCache: true },
    { prefixCache: false },
    { prefixCache: false, kvDtype: 'fp8' },
  ] as const)('NaN in unused and freed blocks changes nothing (%p)', async (options) => {
    await using model = await load(options);
    const clean = await generate(model);
    const taken = poisonUnusedBlocks(model);
    const poisoned = await generate(model);
    expect(taken()).toBeGreaterThan(0);
    expect(poisoned.tokens).toEqual(clean.tokens);
    expect(poisoned.logprobs?.some(Number.isNaN)).toBe(false);
    // With the cache the prompt is cut elsewhere.
    if (!options.prefixCache) expect(poisoned.logprobs).toEqual(clean.logprobs);
  });
});

/** Every block that is free or will be holds NaN when it is given out again; counts those. */
function poisonUnusedBlocks(model: LanguageModel): () => number {
  let taken = 0;
  const { groups, parts } = internals(model);
  for (const group of groups) {
    const allocate = group.pool.allocate.bind(group.pool);
    group.pool.allocate = () => {
      const block = allocate();
      taken++;
      for (let n = 0; n < group.attentions.length; n++) {
        const rows = group.cache(n).slice(0, block * 128, (block + 1) * 128);
        const floats = rows.bytes / 4; // NaN scales, codes and keys, where it is FP8
        const { ops } = parts;
        ops.fill(rows.dtype === 'f8e4m3' ? rows.view('f32', [floats], [1], 0) : rows, NaN);
      }
      return block;
    };
  }
  return () => taken;
}

function internals(model: LanguageModel): LoadedModel {
  return (model as unknown as { loaded: LoadedModel }).loaded;
}

test('the event loop stays free while a prompt is read', async () => {
  await using model = await LanguageModel.load(tinyDir, { device: 'cpu' });
  const delay = monitorEventLoopDelay({ resolution: 5 });
  delay.enable();
  await model.score(randomTokens(3000, 2048, 1), { positions: [2999] });
  delay.disable();
  expect(delay.max / 1e6).toBeLessThan(150); // milliseconds; a blocking call would take seconds
});

test('memory is reported by purpose', async () => {
  await using model = await load();
  const stream = model.generate(prompt, { maxNewTokens: 3, ignoreEos: true });
  for await (const part of stream) {
    if (part.index !== 1) continue;
    const { kv, weights, mappedWeights, workspace, peak } = model.memory;
    // 1,501 tokens: 12 blocks everywhere, of which a streaming attention keeps 1 + 7.
    const block = 128 * 40 * 4 * 2; // tokens * (latent + rope) * fp32 * attentions of the group
    expect(kv.full).toMatchObject({ resident: 12 * block, freed: 0 });
    expect(kv.streaming).toMatchObject({ resident: 8 * block, freed: 4 * block });
    expect(mappedWeights).toBeGreaterThan(1e6);
    expect(weights).toBeGreaterThan(mappedWeights);
    expect(workspace).toBeGreaterThan(0);
    expect(peak).toBeGreaterThanOrEqual(weights + workspace);
  }
});

async function expectResident(model: LanguageModel, bytes: number): Promise<void> {
  // The step that was running when the work was dropped ends first.
  await model.generate([1], { maxNewTokens: 1 }).result();
  const { full, streaming } = model.memory.kv;
  expect(full.resident + streaming.resident).toBe(bytes);
}

import path from 'node:path';
import { Engine } from '../../lib/engine/engine';
import type { GenerateResult } from '../../lib/engine/generate-job';
import { ScoreJob } from '../../lib/engine/score-job';
import { loadModel, type LoadedModel } from '../../lib/load-model';
import { resolveLoadOptions } from '../../lib/load-options';
import { Random } from '../../lib/selftest/random';
import { generateOn } from '../support/engine-requests';
import { goldenDir } from '../support/goldens';
import { randomTokens } from '../support/prompts';

/** Prompt, new tokens, temperature. */
type Request = readonly [number, number, number];

class Requests {
  private constructor(
    private readonly loaded: LoadedModel,
    readonly engine: Engine,
  ) {}

  static async load(dir: string, maxTokens: number, prefixCache: boolean): Promise<Requests> {
    // With the cache also recorded steps, which run ahead.
    const more = { prefixCache, decodeGraphs: prefixCache };
    const options = resolveLoadOptions({ device: 'cpu', maxTokens, ...more });
    const loaded = await loadModel(dir, options);
    // Nobody's growth is foreseen, so that blocks run out.
    const limits = { stepTokens: 128, chunkTokens: 128, maxSequences: 4, growthTokens: 0 };
    return new Requests(loaded, new Engine(loaded.parts.runner, limits));
  }

  get vocabSize(): number {
    return this.loaded.plan.model.mla.vocabSize;
  }

  run([prompt, maxNewTokens, temperature]: Request, seed: number): Promise<GenerateResult> {
    const { vocabSize } = this;
    const tokens = Int32Array.from(randomTokens(prompt, vocabSize, seed));
    return generateOn(this.engine, tokens, vocabSize, { maxNewTokens, temperature, seed });
  }

  /** Each on its own, then all together. */
  async compare(requests: readonly Request[]): Promise<void> {
    const alone: number[][] = [];
    for (const [i, request] of requests.entries()) {
      alone.push(Array.from((await this.run(request, i)).tokens));
    }
    const before = this.engine.load.preemptions;
    const together = await Promise.all(requests.map((request, i) => this.run(request, i)));
    expect(together.map(({ tokens }) => Array.from(tokens))).toEqual(alone);
    expect(this.engine.load.preemptions).toBeGreaterThan(before);
    expect(this.loaded.groups.map(({ pool }) => pool.inUse)).toEqual([0, 0]);
  }

  async close(): Promise<void> {
    await this.engine.close();
    this.loaded.device.close();
  }
}

const tiny = path.join(__dirname, '../../models/loza-tiny');
const golden = path.join(goldenDir, 'longcat-zigzag-yarn');

test('loza-tiny without enough blocks: the tokens that each request gives alone', async () => {
  const requests = await Requests.load(tiny, 512, true);
  await requests.compare([
    [100, 110, 0],
    [30, 120, 0],
    [140, 30, 0.8],
  ]);
  await requests.close();
});

describe.each([false, true])('blocks run out; prefix cache: %s', (prefixCache) => {
  test('random requests: the tokens that each gives alone', async () => {
    const requests = await Requests.load(golden, 896, prefixCache);
    for (const seed of [1, 2]) {
      const random = new Random(seed);
      const sizes = () => [random.below(300) + 1, random.below(200) + 150];
      await requests.compare(
        Array.from({ length: 5 }, (_, i) => [...sizes(), i % 3 === 2 ? 0.7 : 0] as never),
      );
    }
    await requests.close();
  });

  test('a score that makes room for others has each of its rows once', async () => {
    const requests = await Requests.load(golden, 896, prefixCache);
    const { engine, vocabSize } = requests;
    const tokens = Int32Array.from(randomTokens(500, vocabSize, 7));
    const positions = [0, 3, 127, 128, 300, 301, 499];
    const score = async () => {
      const job = new ScoreJob(tokens, positions, vocabSize, undefined);
      engine.submit(job);
      await job.done;
      return job.logits;
    };
    const alone = await score();
    // Two texts that take every block while it is read: it came last, so it goes.
    const texts = [1, 2].map((seed) => requests.run([60, 500, 0], seed));
    const beside = await score();
    expect(alone.length).toBe(positions.length * vocabSize);
    beside.forEach((value, i) => expect(value).toBeCloseTo(alone[i]!, 4));
    await Promise.all(texts);
    await requests.close();
  });
});

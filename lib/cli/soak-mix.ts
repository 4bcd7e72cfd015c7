import { LozaError, throwIfAborted } from '../errors';
import type { LanguageModel } from '../language-model';
import { Random } from '../selftest/random';

/** Who send one request after another: more than are served at a time, so that some wait. */
const userCount = 12;

/** Random requests of every kind, the same ones every time. */
export class MixedWork {
  requests = 0;
  tokens = 0;
  private readonly random = new Random('mixed work');

  constructor(private readonly model: LanguageModel) {}

  /** Sends requests until then, and waits for all of them. Throws what one has thrown. */
  async runUntil(end: number, signal: AbortSignal): Promise<void> {
    const failures: unknown[] = [];
    const goesOn = () => performance.now() < end && failures.length === 0 && !signal.aborted;
    const user = async () => {
      for (; goesOn(); this.requests++) await this.request();
    };
    const users = Array.from({ length: userCount }, user);
    await Promise.all(users.map((one) => one.catch((error: unknown) => failures.push(error))));
    if (failures.length > 0) throw failures[0];
    throwIfAborted(signal);
    const { full, streaming } = this.model.memory.kv;
    const held = full.resident + streaming.resident;
    if (held === 0) return;
    throw new LozaError('ERR_LOZA_INTERNAL', `${held} bytes of KV blocks are held by nobody`);
  }

  private request(): Promise<void> {
    switch (this.random.below(7)) {
      case 0:
        return this.abort();
      case 1:
        return this.chat();
      case 2:
        return this.score();
      case 3:
        return this.writeMany();
      default:
        return this.write();
    }
  }

  private async write(): Promise<void> {
    const result = await this.model.generate(this.prompt(900), this.options(700)).result();
    this.count(result.usage.totalTokens);
  }

  private async writeMany(): Promise<void> {
    const options = { ...this.options(60), n: 3, temperature: 0.8 };
    const results = await this.model.generate(this.prompt(400), options).results();
    for (const { usage } of results) this.count(usage.completionTokens);
  }

  /** Aborted while it waits, reads or writes. */
  private async abort(): Promise<void> {
    const controller = new AbortController();
    const tokens = this.random.below(30);
    const options = { ...this.options(1000), maxNewTokens: 64, signal: controller.signal };
    await endsAborted(true, async () => {
      const generation = this.model.generate(this.prompt(900), {
        ...options,
        onProgress: ({ phase }) => {
          if (tokens === 1 && phase === 'prefill') controller.abort();
        },
      });
      if (tokens === 0) setTimeout(() => controller.abort(), 20);
      for await (const { index } of generation) if (index >= tokens) controller.abort();
    });
  }

  private async chat(): Promise<void> {
    await using session = this.model.createSession();
    for (let turn = 0; turn < 3; turn++) {
      const { usage } = await session.generate(this.prompt(200), this.options(40)).result();
      this.count(usage.completionTokens);
    }
  }

  private async score(): Promise<void> {
    const prompt = this.prompt(900);
    await this.model.score(prompt, { positions: [0, prompt.length - 1] });
    this.count(prompt.length);
  }

  private count(tokens: number): void {
    this.tokens += tokens;
  }

  /** Half of the prompts begin alike. */
  private prompt(most: number): Int32Array {
    const { random, model } = this;
    const { vocabSize, maxPosition } = model.info;
    const length = 1 + random.below(Math.min(most, Math.floor(maxPosition / 4)));
    const own = random.below(2) * random.below(1000);
    return Int32Array.from({ length }, (_, i) => (i * 31 + own * (i >> 7)) % vocabSize);
  }

  private options(most: number) {
    const { random } = this;
    const maxNewTokens = 1 + random.below(random.below(4) === 0 ? most : Math.min(most, 50));
    const temperature = random.below(2);
    return { maxNewTokens, temperature, seed: random.below(2 ** 30), ignoreEos: true };
  }
}

/** Runs what a signal aborts; throws if it is, and nothing ended. */
export async function endsAborted(expected: boolean, run: () => Promise<void>): Promise<void> {
  try {
    await run();
  } catch (error) {
    if (expected && LozaError.isInstance(error) && error.code === 'ERR_LOZA_ABORTED') return;
    throw error;
  }
  if (expected) throw new LozaError('ERR_LOZA_INTERNAL', 'a signal aborted, but nothing ended');
}

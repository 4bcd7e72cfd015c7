import { LozaError, throwIfAborted } from '../errors';
import type { GenerateUsage } from '../engine/generate-job';
import type { LanguageModel } from '../language-model';
import { Random } from '../selftest/random';
import type { Session } from '../session';

/** Who send one request after another: more than are served at a time, so that some wait. */
const userCount = 12;

export interface MixedCounts {
  /** Read or written; of these, found in the cache. */
  tokens: number;
  cachedTokens: number;
  /** Chats, with their forks, and sessions that pause. */
  sessions: number;
  /** Of those that pause: others took their blocks meanwhile, and most of these were found again. */
  resumed: number;
}

/** Random requests of every kind, the same ones every time. */
export class MixedWork {
  requests = 0;
  readonly counts: MixedCounts = { tokens: 0, cachedTokens: 0, sessions: 0, resumed: 0 };
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
    switch (this.random.below(9)) {
      case 0:
        return this.abort();
      case 1:
        return this.chat();
      case 2:
        return this.score();
      case 3:
        return this.writeMany();
      case 4:
        return this.pause();
      default:
        return this.write();
    }
  }

  private async write(): Promise<void> {
    const result = await this.model.generate(this.prompt(900), this.options(700)).result();
    this.count(result.usage);
  }

  private async writeMany(): Promise<void> {
    const options = { ...this.options(60), n: 3, temperature: 0.8 };
    const results = await this.model.generate(this.prompt(400), options).results();
    for (const { usage } of results) this.count(usage);
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

  /** The last turn is answered twice, in a fork too, and once more in other words. */
  private async chat(): Promise<void> {
    await using session = this.session();
    for (let turn = 0; turn < 2; turn++) await this.turn(session, 200);
    const heard = session.length;
    await using fork = session.fork();
    this.counts.sessions++;
    await Promise.all([this.turn(session, 200), this.turn(fork, 200)]);
    session.truncate(heard);
    await this.turn(session, 200);
  }

  /** Between its turns others need the room: its blocks go to the host and come back. */
  private async pause(): Promise<void> {
    await using session = this.session();
    await this.turn(session, 600);
    const { length } = session;
    for (let i = 0; i < 3; i++) await this.write();
    const isGone = session.tokens === 0;
    const { cachedTokens } = await this.turn(session, 100);
    if (isGone && cachedTokens > length / 2) this.counts.resumed++;
  }

  private session(): Session {
    this.counts.sessions++;
    return this.model.createSession();
  }

  private async turn(session: Session, most: number): Promise<GenerateUsage> {
    const { usage } = await session.generate(this.prompt(most), this.options(40)).result();
    this.count(usage);
    return usage;
  }

  private async score(): Promise<void> {
    const prompt = this.prompt(900);
    await this.model.score(prompt, { positions: [0, prompt.length - 1] });
    this.counts.tokens += prompt.length;
  }

  private count({ totalTokens, cachedTokens }: GenerateUsage): void {
    this.counts.tokens += totalTokens;
    this.counts.cachedTokens += cachedTokens;
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

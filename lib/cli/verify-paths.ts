import { setMaxListeners } from 'node:events';

import type { GenerateResult } from '../engine/generate-job';
import { blockTokens } from '../kv/layer-group';
import type { LanguageModel } from '../language-model';
import type { LoadOptions } from '../load-options';
import { Random } from '../selftest/random';
import type { Session } from '../session';
import { addUp, compareGreedy, type GreedyComparison } from './compare';
import type { Context } from './context';
import { withModel } from './open-model';
import { startProgress } from './progress';

/** A prompt, the likeliest tokens behind it, and by how much each of them won. */
export interface Ask {
  name: string;
  inputIds: Int32Array;
  greedy: Int32Array;
  margins: readonly number[];
}

/** What a path gave to all prompts together. */
export interface PathVerdict {
  path: PathName;
  /** What the path does. */
  about: string;
  greedy: GreedyComparison;
  /** Why the path was not the one it should be, if so. */
  problem: string | undefined;
  passed: boolean;
}

/** A prompt, and the next turn of its conversation. */
interface Exam {
  ask: Ask;
  /** New tokens of the next turn, and with all of the conversation before them. */
  turn: Int32Array;
  next: Ask;
}

interface Path {
  about: string;
  /** How the model is loaded, for prompts of at most so many tokens, the next turn included. */
  load: (longest: number) => LoadOptions;
  run: (proof: Proof, exams: readonly Exam[]) => Promise<void>;
}

/** Blocks that a text writes at least while the longest prompt is read; it is expected to write 4. */
const writtenBlocks = 7;
/** Tokens of the prompt's end that the next turn repeats. */
const turnTokens = 32;
const eager = { prefixCache: false, decodeGraphs: false } as const;

const chunks = (chunkTokens: number): Path => ({
  about: `read in chunks of ${chunkTokens}`,
  load: () => ({ ...eager, chunkTokens }),
  run: oneByOne,
});

/** The ways in which a prompt can be read and answered. */
const paths = {
  recorded: {
    about: 'decode steps replayed from a graph, with the bits of eager ones',
    load: (longest) => ({ prefixCache: false, decodeGraphs: true, chunkTokens: longest }),
    run: sameBits,
  },
  chunks: chunks(997),
  'small-chunks': chunks(77),
  tokens: {
    about: 'read one token after the other, all prompts together',
    load: () => ({ ...eager, chunkTokens: 1 }),
    run: (proof, exams) => proof.together(exams),
  },
  company: {
    about: 'among short prompts that come and go',
    load: () => ({ prefixCache: false, maxSequences: 8 }),
    run: inCompany,
  },
  cached: {
    about: 'asked again, with the keys of the first time',
    load: () => ({ prefixCache: true }),
    run: fromTheCache,
  },
  session: {
    about: 'two turns of a session, the second one in two forks',
    load: () => ({ prefixCache: false }),
    run: inTurns,
  },
  taken: {
    about: 'a session whose blocks others took reads them again',
    load: (longest) => ({ prefixCache: false, maxTokens: tight(longest) }),
    run: (proof, exams) => afterOthers(proof, exams, false),
  },
  host: {
    about: "a session whose blocks come back from the host's memory",
    load: (longest) => {
      return { prefixCache: true, maxTokens: tight(longest), hostTokens: 4 * longest };
    },
    run: (proof, exams) => afterOthers(proof, exams, true),
  },
  preempted: {
    about: 'blocks run out while it is read, and it starts again',
    load: (longest) => {
      const chunkTokens = slowly(longest);
      const maxTokens = tight(longest) + (writtenBlocks - 3) * blockTokens;
      return { prefixCache: false, chunkTokens, stepTokens: chunkTokens, maxTokens };
    },
    run: preempted,
  },
  score: {
    about: 'the likeliest tokens of scores',
    load: () => ({ prefixCache: false }),
    run: scored,
  },
} satisfies Record<string, Path>;

export type PathName = keyof typeof paths;
export const pathNames = Object.keys(paths) as PathName[];

/**
 * Answers the prompts on every path that the engine has. The greedy tokens must be as expected, up
 * to one that won by at most `margin`; the next turns must be answered as the whole text is that was
 * read in one chunk. Prompts that leave no positions for a next turn are left out.
 */
export async function verifyPaths(
  dir: string,
  options: LoadOptions,
  asks: readonly Ask[],
  { margin, names = pathNames }: { margin: number; names?: readonly PathName[] },
  context: Context,
): Promise<PathVerdict[]> {
  const known = asks.filter(({ greedy }) => greedy.length > 0);
  if (known.length === 0) return [];
  const { signal } = context;
  setMaxListeners(0, signal); // everything that runs together listens
  const longest = Math.max(...known.map(sizeOf)) + turnTokens;
  const whole = { ...options, ...eager, chunkTokens: longest };
  const { exams, plain } = await withModel(dir, whole, context, async (model) => {
    const exams: Exam[] = [];
    const { maxPosition } = model.info;
    const fitting = known.filter((ask) => sizeOf(ask) + turnTokens <= maxPosition);
    for (const ask of fitting) exams.push(await makeExam(model, ask, signal));
    const proof = new Proof(model, margin, signal, [], longest);
    const plain: GenerateResult[] = [];
    for (const { ask } of exams) plain.push(await proof.generate(ask.inputIds, ask));
    return { exams, plain };
  });
  if (exams.length === 0) return [];
  const verdicts: PathVerdict[] = [];
  for (const path of names) {
    const { about, load, run } = paths[path];
    const how = { ...options, ...load(longest) };
    const { greedy, problem } = await withModel(dir, how, context, async (model) => {
      const progress = startProgress(context, 'paths', 'runs');
      progress.update(verdicts.length, names.length);
      const proof = new Proof(model, margin, signal, plain, longest);
      try {
        await run(proof, exams);
        return proof;
      } finally {
        progress.stop();
      }
    });
    verdicts.push({ path, about, greedy, problem, passed: greedy.passed && !problem });
  }
  return verdicts;
}

/** The greedy tokens behind a prompt, and their margins, as this model has them. */
export async function askPlainly(
  model: LanguageModel,
  name: string,
  inputIds: Int32Array,
  newTokens: number,
  signal?: AbortSignal,
): Promise<Ask> {
  const options = { ...greedily, maxNewTokens: newTokens, signal };
  const { tokens } = await model.generate(inputIds, options).result();
  const ask = { name, inputIds, greedy: tokens, margins: [] };
  return { ...ask, margins: (await scoresOf(model, ask, signal)).map(({ margin }) => margin) };
}

const greedily = { temperature: 0, repetitionPenalty: 1, ignoreEos: true, logprobs: true };

/** What one path gave so far. */
class Proof {
  greedy: GreedyComparison = { equal: 0, expected: 0, passed: true };
  problem: string | undefined;

  constructor(
    readonly model: LanguageModel,
    private readonly margin: number,
    readonly signal: AbortSignal,
    /** What each prompt gave when it was read in one chunk, alone, without recorded steps. */
    readonly plain: readonly GenerateResult[],
    /** As in `Path.load`. */
    readonly longest: number,
  ) {}

  /** `tokens` are what the path answered; true if they are as expected. */
  compare(tokens: ArrayLike<number>, { greedy, margins }: Ask): boolean {
    const one = compareGreedy(tokens, greedy, margins, this.margin);
    this.greedy = addUp([this.greedy, one]);
    return one.equal === one.expected;
  }

  /** Notes that the path was not what it should be. */
  expect(holds: boolean, problem: string): void {
    if (!holds) this.problem ??= problem;
  }

  generate(inputIds: Int32Array, { greedy }: Ask, from?: Session): Promise<GenerateResult> {
    const options = { ...greedily, maxNewTokens: greedy.length, signal: this.signal };
    return (from ?? this.model).generate(inputIds, options).result();
  }

  async together(exams: readonly Exam[]): Promise<void> {
    const results = exams.map(({ ask }) => this.generate(ask.inputIds, ask));
    for (const [i, { tokens }] of (await Promise.all(results)).entries())
      this.compare(tokens, (exams[i] as Exam).ask);
  }

  /** Tokens for which others have to give up some of theirs. */
  room(held: number): number {
    const { maxTokens } = this.model.info;
    return Math.min(maxTokens - held + blockTokens, maxTokens - 2);
  }

  /** Some other text, which decides nothing. */
  async write(tokens: number, maxNewTokens: number, name: string): Promise<void> {
    const ids = new Random(name).integers(tokens, this.model.info.vocabSize);
    const options = { ...greedily, maxNewTokens, signal: this.signal };
    await this.model.generate(ids, options).result();
  }
}

async function makeExam(model: LanguageModel, ask: Ask, signal: AbortSignal): Promise<Exam> {
  const { name, inputIds, greedy } = ask;
  const turn = inputIds.slice(-turnTokens);
  const whole = Int32Array.from([...inputIds, ...greedy, ...turn]);
  return { ask, turn, next: await askPlainly(model, name, whole, greedy.length, signal) };
}

/** The likeliest token at each place of the answer, and by how much it won. */
async function scoresOf(
  model: LanguageModel,
  { inputIds, greedy }: Ask,
  signal: AbortSignal | undefined,
): Promise<{ token: number; margin: number }[]> {
  const text = Int32Array.from([...inputIds, ...greedy.subarray(0, -1)]);
  const positions = Array.from(greedy, (_, i) => inputIds.length - 1 + i);
  const { logits, vocabSize } = await model.score(text, { positions, signal });
  return positions.map((_, row) => {
    const values = logits.subarray(row * vocabSize, (row + 1) * vocabSize);
    let [token, second] = [0, -Infinity];
    for (let i = 1; i < vocabSize; i++) {
      const value = values[i] as number;
      const best = values[token] as number;
      second = Math.max(second, Math.min(value, best));
      if (value > best) token = i;
    }
    return { token, margin: (values[token] as number) - second };
  });
}

async function oneByOne(proof: Proof, exams: readonly Exam[]): Promise<void> {
  for (const { ask } of exams) {
    proof.compare((await proof.generate(ask.inputIds, ask)).tokens, ask);
  }
}

async function sameBits(proof: Proof, exams: readonly Exam[]): Promise<void> {
  for (const [i, { ask }] of exams.entries()) {
    const result = await proof.generate(ask.inputIds, ask);
    proof.compare(result.tokens, ask);
    const values = ({ tokens, logprobs }: GenerateResult) => [...tokens, ...(logprobs ?? [])];
    const eagerly = values(proof.plain[i] as GenerateResult);
    const same = values(result).every((value, j) => Object.is(value, eagerly[j]));
    proof.expect(same, 'other bits than eager steps');
  }
}

async function inCompany(proof: Proof, exams: readonly Exam[]): Promise<void> {
  const random = new Random('company');
  let over = false;
  const others = [0, 1, 2, 3, 4].map(async (one) => {
    for (let i = 0; !over; i++) {
      await proof.write(1 + random.below(60), 1 + random.below(12), `${one} ${i}`);
    }
  });
  try {
    await proof.together(exams);
  } finally {
    over = true;
    await Promise.allSettled(others);
  }
}

async function fromTheCache(proof: Proof, exams: readonly Exam[]): Promise<void> {
  for (const { ask } of exams) {
    await proof.generate(ask.inputIds, ask);
    const { tokens, usage } = await proof.generate(ask.inputIds, ask);
    proof.compare(tokens, ask);
    const blocks = Math.floor((ask.inputIds.length - 1) / blockTokens);
    proof.expect(usage.cachedTokens === blocks * blockTokens, 'not all of it was in the cache');
  }
}

async function inTurns(proof: Proof, exams: readonly Exam[]): Promise<void> {
  for (const exam of exams) {
    const session = await firstTurn(proof, exam);
    if (session === undefined) continue;
    const forks = [session, session.fork()];
    const results = forks.map((one) => proof.generate(exam.turn, exam.next, one));
    for (const { tokens, usage } of await Promise.all(results)) {
      proof.compare(tokens, exam.next);
      proof.expect(
        usage.cachedTokens >= exam.ask.inputIds.length,
        'the turn before was read again',
      );
    }
    for (const one of forks) one.close();
  }
}

async function afterOthers(proof: Proof, exams: readonly Exam[], hosted: boolean): Promise<void> {
  for (const exam of exams) {
    const session = await firstTurn(proof, exam);
    if (session === undefined) continue;
    await proof.write(proof.room(session.tokens), 2, exam.ask.name);
    const { tokens, usage } = await proof.generate(exam.turn, exam.next, session);
    proof.compare(tokens, exam.next);
    const read = usage.promptTokens - usage.cachedTokens;
    if (!hosted) proof.expect(usage.cachedTokens === 0, 'the session kept its blocks');
    else if (exam.ask.inputIds.length > 2 * blockTokens) {
      proof.expect(proof.model.memory.host > 0, 'nothing went to the host');
      proof.expect(read <= turnTokens + 2 * blockTokens, 'what was on the host was read again');
    }
    session.close();
  }
}

/** A session that has answered; undefined where it did not say what is expected. */
async function firstTurn(proof: Proof, { ask }: Exam): Promise<Session | undefined> {
  const session = proof.model.createSession();
  const { tokens } = await proof.generate(ask.inputIds, ask, session);
  if (proof.compare(tokens, ask)) return session;
  session.close();
  return undefined;
}

/** The longest prompt, for which there are blocks only as long as the other text is short. */
async function preempted(proof: Proof, exams: readonly Exam[]): Promise<void> {
  const [{ ask }] = [...exams].sort((a, b) => sizeOf(b.ask) - sizeOf(a.ask)) as [Exam];
  const before = proof.model.status.preemptions;
  const beside = Math.ceil(ask.inputIds.length / slowly(proof.longest));
  const other = proof.write(1, beside, 'other');
  const { tokens } = await proof.generate(ask.inputIds, ask);
  await other;
  proof.compare(tokens, ask);
  const isLong = ask.inputIds.length >= writtenBlocks * blockTokens;
  proof.expect(!isLong || proof.model.status.preemptions > before, 'it was not preempted');
}

async function scored(proof: Proof, exams: readonly Exam[]): Promise<void> {
  for (const { ask } of exams) {
    const scores = await scoresOf(proof.model, ask, proof.signal);
    proof.compare(
      scores.map(({ token }) => token),
      ask,
    );
  }
}

/** Chunks in which a prompt takes so long that much is written beside it. */
const slowly = (tokens: number): number =>
  Math.max(1, Math.floor(tokens / (writtenBlocks * blockTokens)));

const sizeOf = ({ inputIds, greedy }: Ask): number => inputIds.length + 2 * greedy.length;

/** Room for one conversation, and not for two. */
const tight = (longest: number): number => (Math.ceil(longest / blockTokens) + 1) * blockTokens;

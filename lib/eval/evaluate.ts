import { setMaxListeners } from 'node:events';
import { setImmediate as yieldToOthers } from 'node:timers/promises';

import { attentionBlock, type AttentionPattern } from '../checkpoint/streaming-config';
import { LozaError, throwIfAborted } from '../errors';
import { LanguageModel } from '../language-model';
import { planLoad, type LoadPlan } from '../load-model';
import { resolveLoadOptions } from '../load-options';
import { ChatTemplate } from '../tokenizer/chat-template';
import { missingTokenizerError, Tokenizer } from '../tokenizer/tokenizer';
import { evalAttention, inWindow } from './arms';
import { resolveEvalOptions, type EvalOptions, type ResolvedEvalOptions } from './options';
import { measurePerplexity, type PerplexityBucket } from './perplexity';
import { PieceEncoder } from './piece-encoder';
import { PromptMaker, type EvalPrompt } from './prompts';
import { wilson, type Interval } from './score';
import { tasks, type TaskName } from './tasks';

/** What one arm answered to one prompt. */
export interface EvalAnswer extends Omit<EvalPrompt, 'parts'> {
  arm: string;
  answer: string;
  /** Share of what was expected that the answer has. */
  recall: number;
  right: boolean;
  /** All that had to be found lay where a streaming attention of this arm sees it. */
  inWindow: boolean;
}

/** The answers of one arm to one task at one length (and depth). */
export interface EvalCell extends Interval {
  task: TaskName;
  length: number;
  depth: number | undefined;
  count: number;
  right: number;
  /** right / count; `low` to `high` is its 95 % confidence interval (Wilson). */
  share: number;
  recall: number;
  /** Share of the prompts that test nothing: see `EvalAnswer.inWindow`. */
  inWindow: number;
}

export interface EvalArm {
  name: string;
  /** A character for each attention: '1' streams. */
  layerType: string;
  device: string;
  dtype: string;
  cells: EvalCell[];
  perplexity: PerplexityBucket[];
  answers: EvalAnswer[];
}

export interface EvalResult {
  dir: string;
  seed: number;
  samples: number;
  arms: EvalArm[];
}

/** A prompt as the model reads it. */
type ExamPrompt = Omit<EvalPrompt, 'parts'> & { ids: Int32Array };

/** What all arms share. */
interface Exam {
  prompts: ExamPrompt[];
  text: Int32Array;
  window: number;
}

/** KV budgets up to this are the default of a load. */
const defaultMaxTokens = 65_536;

/**
 * Measures what a checkpoint finds in long prompts, and how well it predicts text, with several
 * attention patterns side by side on the same prompts. Rejects with a LozaError; every model that was
 * loaded is closed then.
 */
export async function evaluate(dir: string, options: EvalOptions = {}): Promise<EvalResult> {
  const wanted = withOwnSignal(resolveEvalOptions(options));
  throwIfAborted(wanted.signal);
  const { load, signal } = wanted;
  const plan = await planLoad(dir, { ...resolveLoadOptions({ ...load }), signal });
  const names = wanted.attention ?? (plan.pattern === undefined ? ['full'] : ['full', 'loza']);
  const attention = names.map((name) => evalAttention(name, plan));
  checkLengths(wanted, plan);
  const exam = await makeExam(dir, wanted, plan);
  const perArm = exam.prompts.length + wanted.windows;
  const arms: EvalArm[] = [];
  for (const [i, arm] of names.entries()) {
    let done = i * perArm;
    const report = () => wanted.onProgress?.({ arm, done: done++, total: names.length * perArm });
    report();
    const maxTokens = load.maxTokens ?? largeBudget(wanted.lengths);
    const model = await LanguageModel.load(dir, {
      ...{ ...load, maxTokens, attention: attention[i], signal },
    });
    try {
      arms.push(await runArm(arm, model, plan, exam, wanted, report));
    } finally {
      await model.close();
    }
  }
  return { dir, seed: wanted.seed, samples: wanted.samples, arms };
}

/** Every prompt in flight listens to the signal: on one of our own that is no leak to warn of. */
function withOwnSignal(options: ResolvedEvalOptions): ResolvedEvalOptions {
  if (options.signal === undefined) return options;
  const signal = AbortSignal.any([options.signal]);
  setMaxListeners(0, signal);
  return { ...options, signal };
}

function checkLengths({ lengths }: ResolvedEvalOptions, { maxPosition }: LoadPlan): void {
  const longest = Math.max(...lengths);
  if (longest <= maxPosition) return;
  const problem = `Prompts of ${longest} tokens are longer than the ${maxPosition} positions of the model`;
  throw new LozaError('ERR_LOZA_CONTEXT_LENGTH', problem, {
    value: longest,
    hint: 'Shorten them, or extend the model: { load: { rope: { yarnFactor } } } (--yarn-factor)',
  });
}

function largeBudget(lengths: readonly number[]): number | undefined {
  const longest = Math.max(...lengths);
  return longest > defaultMaxTokens ? longest : undefined;
}

async function makeExam(dir: string, wanted: ResolvedEvalOptions, plan: LoadPlan): Promise<Exam> {
  const tokenizer = await Tokenizer.load(dir, plan.model.mla.vocabSize);
  if (tokenizer === undefined) throw await missingTokenizerError(dir);
  const { haystack, seed, samples, lengths, depths, signal } = wanted;
  const encode = (text: string) => tokenizer.encode(text, { addSpecialTokens: false, signal });
  const pieces = new PieceEncoder(encode);
  const maker = await PromptMaker.create(seed, haystack, (parts) => pieces.count(parts));
  const reader = new PromptReader(tokenizer, await ChatTemplate.load(dir), pieces);
  const prompts: ExamPrompt[] = [];
  for (const task of wanted.tasks) {
    for (const length of lengths) {
      for (const depth of tasks[task].byDepth ? depths : [undefined]) {
        for (let sample = 0; sample < samples; sample++) {
          throwIfAborted(signal);
          const { parts, ...prompt } = await maker.make(task, length, depth, sample);
          prompts.push({ ...prompt, ids: await reader.read(parts, signal) });
          await yieldToOthers();
        }
      }
    }
  }
  return { prompts, text: await encode(haystack), window: Math.max(...lengths) };
}

/** Token ids of messages, as the model reads them. */
class PromptReader {
  constructor(
    private readonly tokenizer: Tokenizer,
    private readonly template: ChatTemplate,
    private readonly pieces: PieceEncoder,
  ) {}

  read(parts: readonly string[], signal: AbortSignal | undefined): Promise<Int32Array> {
    const content = parts.join('');
    if (!this.template.available) {
      return this.tokenizer.encode(`${content}\nAnswer:`, { signal });
    }
    const text = this.template.render([{ role: 'user', content }]);
    const at = text.indexOf(content);
    // A template may change what is written.
    if (at < 0 || parts.length === 1) return this.pieces.encode([text]);
    const [before, after] = [text.slice(0, at), text.slice(at + content.length)];
    return this.pieces.encode([before, ...parts, after]);
  }
}

async function runArm(
  arm: string,
  model: LanguageModel,
  plan: LoadPlan,
  exam: Exam,
  { windows, seed, signal, load }: ResolvedEvalOptions,
  onDone: () => void,
): Promise<EvalArm> {
  const { layerType, device, dtype } = model.info;
  const window = windowOf(model, plan.pattern);
  const answer = async (prompt: ExamPrompt): Promise<EvalAnswer> => {
    const generation = model.generate(prompt.ids, {
      ...{ maxNewTokens: tasks[prompt.task].answerTokens, temperature: 0, signal },
    });
    const { text, usage } = await generation.result();
    onDone();
    const { task, length, depth, tokens, places, expected } = prompt;
    const sees = (place: number) => inWindow(place, usage.promptTokens - 1, window);
    const score = tasks[task].score(text, expected);
    return {
      ...{ arm, task, length, depth, tokens, places, expected, answer: text, ...score },
      inWindow: places.every(sees),
    };
  };
  const answers = await pooled(exam.prompts, load.maxSequences ?? 16, answer);
  const perplexity = await measurePerplexity(model, {
    ...{ tokens: exam.text, length: exam.window, windows, seed, signal, onWindow: onDone },
  });
  return { name: arm, layerType, device, dtype, cells: cellsOf(answers), perplexity, answers };
}

/** The window of this model, or the one that its checkpoint's pattern would have. */
function windowOf({ info }: LanguageModel, pattern: AttentionPattern | undefined) {
  const { sinkBlocks, localBlocks } = info;
  if (localBlocks > 0) return { sinkBlocks, localBlocks };
  return pattern ?? { sinkBlocks: 1, localBlocks: 1024 / attentionBlock - 1 };
}

/** Runs `work` on all items, at most `width` at a time; the first error ends it, after all that run. */
async function pooled<T, R>(
  items: readonly T[],
  width: number,
  work: (item: T) => Promise<R>,
): Promise<R[]> {
  const results: R[] = [];
  let next = 0;
  const failures: unknown[] = [];
  const worker = async () => {
    while (next < items.length && failures.length === 0) {
      const i = next++;
      try {
        results[i] = await work(items[i] as T);
      } catch (error) {
        failures.push(error);
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(width, items.length) }, worker));
  if (failures.length > 0) throw failures[0];
  return results;
}

/** Cells in the order of their first answer. */
function cellsOf(answers: readonly EvalAnswer[]): EvalCell[] {
  const groups = new Map<string, EvalAnswer[]>();
  for (const answer of answers) {
    const key = `${answer.task} ${answer.length} ${answer.depth}`;
    groups.set(key, [...(groups.get(key) ?? []), answer]);
  }
  return [...groups.values()].map(cellOf);
}

/** One cell of these answers; the depth is that of all, if they have one. */
export function cellOf(answers: readonly EvalAnswer[]): EvalCell {
  const [{ task, length, depth }] = answers as [EvalAnswer];
  const count = answers.length;
  const right = answers.filter((answer) => answer.right).length;
  const mean = (value: (answer: EvalAnswer) => number) =>
    answers.reduce((sum, answer) => sum + value(answer), 0) / count;
  return {
    ...{ task, length, count, right, share: right / count, ...wilson(right, count) },
    depth: answers.every((answer) => answer.depth === depth) ? depth : undefined,
    recall: mean((answer) => answer.recall),
    inWindow: mean((answer) => (answer.inWindow ? 1 : 0)),
  };
}

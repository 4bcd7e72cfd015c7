import { LozaError } from '../errors';
import { Haystack, type CountTokens, type Hidden, type MeasuredNeedle } from './haystack';
import { Random } from './random';
import { tasks, type Question, type TaskName } from './tasks';

/** One prompt of an evaluation, the same for every arm. */
export interface EvalPrompt {
  task: TaskName;
  /** Tokens that prompt and answer may take. */
  length: number;
  /** Of the asked needle, for tasks that choose it. */
  depth: number | undefined;
  /** The user's message, in parts of which many come again in other prompts. */
  parts: string[];
  /** Of the message, exactly. */
  tokens: number;
  /** Tokens before each needle that the answer needs, about. */
  places: number[];
  expected: string[];
}

/** Tokens that a chat template may put around a message. */
const templateRoom = 24;
/** Prompts are made again, shorter, until they fit: mostly the second one does. */
const maxTries = 8;

/** Makes prompts from a seed and a text. The same of both, and the same tokenizer: the same prompts. */
export class PromptMaker {
  private constructor(
    private readonly seed: number,
    private readonly haystack: Haystack,
    private readonly count: CountTokens,
    private readonly lineTokens: number,
  ) {}

  static async create(seed: number, text: string, count: CountTokens): Promise<PromptMaker> {
    const { needles } = tasks.lines.make(new Random(seed, 'line'), 0, 16);
    const lineTokens =
      (await count([needles.map((needle) => needle.text).join('')])) / needles.length;
    return new PromptMaker(seed, await Haystack.create(text, count), count, lineTokens);
  }

  /** The prompt number `sample` of a cell. Throws when not even the needles fit. */
  async make(
    task: TaskName,
    length: number,
    depth: number | undefined,
    sample: number,
  ): Promise<EvalPrompt> {
    const { answerTokens, onlyNeedles } = tasks[task];
    const room = length - answerTokens - templateRoom;
    let budget = room;
    for (let attempt = 0; attempt < maxTries; attempt++) {
      const random = new Random(this.seed, task, length, depth ?? 'any', sample);
      const lines = Math.max(Math.floor(budget / this.lineTokens), 1);
      const question = tasks[task].make(random, depth ?? 0, lines);
      const needles = await this.measure(question);
      const hidden = this.haystack.hide(needles, onlyNeedles ? 0 : budget, random);
      const parts = [question.intro, ...hidden.parts, `\n${question.question}`];
      // Needles of their own come nowhere else.
      const message = onlyNeedles ? [parts.join('')] : parts;
      const tokens = await this.count(message);
      if (tokens <= room) {
        const places = await this.place(question, hidden);
        const { expected } = question;
        return { task, length, depth, parts: message, tokens, places, expected };
      }
      // Everything but the text is known now, to a few tokens.
      const text = onlyNeedles ? lines * this.lineTokens : hidden.tokens;
      budget = room - (tokens - text) - 4 * attempt;
      if (budget <= 0) break;
    }
    throw new LozaError('ERR_LOZA_INVALID_ARG', `${task} does not fit into ${length} tokens`, {
      value: length,
      hint: 'Ask for longer prompts',
    });
  }

  private async measure({ needles }: Question): Promise<MeasuredNeedle[]> {
    const measured: MeasuredNeedle[] = [];
    for (const needle of needles) {
      measured.push({ ...needle, tokens: await this.count([needle.text]) });
    }
    return measured;
  }

  /** Tokens before each asked needle. */
  private async place({ intro, asked }: Question, { places }: Hidden): Promise<number[]> {
    const before = await this.count([intro]);
    return asked.map((index) => before + (places[index] as number));
  }
}

import type { StepOutput } from '../runner/model-runner';
import { seenWords, type SampledToken, type SamplingRow } from '../runner/sampling-row';
import type { SamplingParams } from '../runner/sampling';
import { StopStrings } from '../runner/stop-strings';
import { Detokenizer } from '../tokenizer/detokenizer';
import type { Tokenizer } from '../tokenizer/tokenizer';
import type { Job } from './job';
import { ReadingPace } from './reading-pace';
import type { Sequence } from './sequence';

export type FinishReason = 'stop' | 'length';

/** One generated token, and the text that is certain since the part before. */
export interface GeneratePart {
  /** May be empty: half a character, or the beginning of a stop string, is held back. */
  text: string;
  token: number;
  /** 0 for the first new token. */
  index: number;
  /** Which of several samples goes on; only with the option `n` above 1. */
  sample?: number;
  /** Only with the option `logprobs`. */
  logprob?: number;
  alternatives?: { token: number; logprob: number }[];
}

export interface GenerateResult {
  text: string;
  /** Every new token, an end token that finished the text included. */
  tokens: Int32Array;
  finishReason: FinishReason;
  usage: GenerateUsage;
  timings: GenerateTimings;
  /** KV bytes held when the last token came, and what full attention would have held. */
  kv: { residentBytes: number; fullBytes: number };
  /** The seed that was used: the same one gives the same tokens. */
  seed: number;
  /** One a token; only with the option `logprobs`. */
  logprobs?: Float32Array;
}

export interface GenerateUsage {
  promptTokens: number;
  /** Of these, tokens whose keys and values were there already and were not computed again. */
  cachedTokens: number;
  completionTokens: number;
  totalTokens: number;
}

/** Milliseconds and tokens a second. */
export interface GenerateTimings {
  /** From the call to the first new token. */
  firstTokenMs: number;
  /** From the first new token to the last. */
  decodeMs: number;
  /** Of the tokens that were not cached. */
  prefillTokensPerSecond: number;
  /** 0 when there was only one token. */
  decodeTokensPerSecond: number;
}

/** What a generation tells whoever waits for it. */
export interface GenerateListener {
  onPart(part: GeneratePart): void;
  onDone(result: GenerateResult): void;
  onError(error: unknown): void;
}

/** Continues a prompt token by token. */
export class GenerateJob implements Job {
  readonly maxTokens: number;
  /** What it goes on from, where that is there already. */
  sequence: Sequence | undefined;
  /** Takes over the sequence of a generation that has ended well. */
  keep?: (sequence: Sequence) => void;
  /** Other samples of the prompt, which this job reads for all; `begin` starts one that is not done yet. */
  siblings: readonly GenerateJob[] = [];
  begin: (sibling: GenerateJob) => void = () => {};
  private cachedTokens: number | undefined;
  private readonly tokens: number[] = [];
  private readonly logprobs: number[] = [];
  private readonly detokenizer: Detokenizer | undefined;
  private readonly stopStrings: StopStrings;
  private readonly stopIds: ReadonlySet<number>;
  private readonly seen: Int32Array | undefined;
  private readonly started = performance.now();
  private firstTokenAt = 0;
  private text = '';
  private readonly pace = new ReadingPace();
  private readTo = 0;
  private readAt = 0;

  constructor(
    readonly prompt: Int32Array,
    private readonly params: SamplingParams,
    /** `params.maxNewTokens`, or fewer where the model's positions end. */
    private readonly maxNewTokens: number,
    private readonly listener: GenerateListener,
    vocabSize: number,
    tokenizer: Tokenizer | undefined,
  ) {
    // The last new token is never read back, so it needs no place in the cache.
    this.maxTokens = prompt.length + maxNewTokens - 1;
    this.detokenizer = tokenizer && new Detokenizer(tokenizer);
    this.stopStrings = new StopStrings(params.stop);
    this.stopIds = new Set([...params.stopTokenIds, ...params.eosIds]);
    if (params.repetitionPenalty !== 1) {
      this.seen = new Int32Array(seenWords(vocabSize));
      prompt.forEach((token) => this.mark(token));
    }
  }

  plan(
    sequence: Sequence,
    count: number,
  ): { sample?: SamplingRow; siblings?: readonly SamplingRow[] } {
    this.cachedTokens ??= Math.min(sequence.computed, this.prompt.length);
    if (sequence.computed + count < sequence.tokens.length) return {};
    // Not the tokens that were received: the step before this one may still be on its way.
    const counter = sequence.computed + count - this.prompt.length;
    const sample = this.samplingRow(counter);
    if (counter > 0 || this.siblings.length === 0) return { sample };
    return { sample, siblings: this.siblings.map((sibling) => sibling.samplingRow(counter)) };
  }

  private samplingRow(counter: number): SamplingRow {
    const { temperature, topK, topP, minP, repetitionPenalty, seed, logprobs } = this.params;
    const alternatives = logprobs === false ? 0 : logprobs;
    const row = { temperature, topK, topP, minP, repetitionPenalty, seed, counter, alternatives };
    return this.seen ? { ...row, seen: this.seen } : row;
  }

  stopsAt(token: number): boolean {
    return this.stopIds.has(token);
  }

  receive(sequence: Sequence, output: StepOutput): boolean {
    if (output.sampled === undefined) {
      this.read(sequence.computed);
      return false;
    }
    const { sampled, siblings = [] } = output;
    siblings.forEach((own, i) => this.siblings[i]?.partFrom(sequence, own, this.begin));
    if (this.tokens.length === 0) {
      this.firstTokenAt = performance.now();
      this.report('prefill', this.prompt.length, this.prompt.length);
    }
    this.tokens.push(sampled.token);
    this.mark(sampled.token);
    const { text, reason } = this.textOf(sampled.token);
    this.text += text;
    this.logprobs.push(sampled.logprob);
    this.listener.onPart(this.part(sampled, text));
    this.report('decode', this.tokens.length, this.maxNewTokens);
    if (reason === undefined) {
      sequence.tokens.push(sampled.token);
      return false;
    }
    this.listener.onDone(this.result(sequence, reason));
    return true;
  }

  fail(error: unknown): void {
    this.listener.onError(error);
  }

  /** Goes its own way from a sequence whose tokens are those of the prompt. */
  private partFrom(
    sequence: Sequence,
    sampled: SampledToken,
    begin: (sibling: GenerateJob) => void,
  ): void {
    const own = sequence.fork();
    try {
      this.cachedTokens = this.prompt.length;
      if (this.receive(own, { sampled })) return own.release();
      this.sequence = own;
      begin(this);
    } catch (error) {
      own.release();
      this.fail(error);
    }
  }

  /** The text a token adds, and why it is the last one if it is. */
  private textOf(token: number): { text: string; reason: FinishReason | undefined } {
    const ended = this.stopsAt(token);
    const last = ended || this.tokens.length >= this.maxNewTokens;
    let raw = ended ? '' : (this.detokenizer?.push(token) ?? '');
    if (last) raw += this.detokenizer?.flush() ?? '';
    const { text, stopped } = this.stopStrings.push(raw);
    if (stopped || ended)
      return { text: stopped ? text : text + this.stopStrings.flush(), reason: 'stop' };
    return last
      ? { text: text + this.stopStrings.flush(), reason: 'length' }
      : { text, reason: undefined };
  }

  private part({ token, logprob, alternatives }: SampledToken, text: string): GeneratePart {
    const part: GeneratePart = { text, token, index: this.tokens.length - 1 };
    if (this.params.logprobs === false) return part;
    return { ...part, logprob, alternatives };
  }

  private result(sequence: Sequence, finishReason: FinishReason): GenerateResult {
    const promptTokens = this.prompt.length;
    const completionTokens = this.tokens.length;
    const firstTokenMs = this.firstTokenAt - this.started;
    const decodeMs = performance.now() - this.firstTokenAt;
    const { resident, full } = sequence.kvBytes(promptTokens + completionTokens - 1);
    const cachedTokens = this.cachedTokens ?? 0;
    const result: GenerateResult = {
      text: this.text,
      tokens: Int32Array.from(this.tokens),
      finishReason,
      usage: {
        promptTokens,
        cachedTokens,
        completionTokens,
        totalTokens: promptTokens + completionTokens,
      },
      timings: {
        firstTokenMs,
        decodeMs,
        prefillTokensPerSecond: ((promptTokens - cachedTokens) / firstTokenMs) * 1000,
        decodeTokensPerSecond:
          completionTokens > 1 ? ((completionTokens - 1) / decodeMs) * 1000 : 0,
      },
      kv: { residentBytes: resident, fullBytes: full },
      seed: this.params.seed,
    };
    if (this.params.logprobs !== false) result.logprobs = Float32Array.from(this.logprobs);
    return result;
  }

  private mark(token: number): void {
    if (this.seen !== undefined)
      this.seen[token >> 5] = (this.seen[token >> 5] ?? 0) | (1 << (token & 31));
  }

  /** A chunk was read. Tokens that are read again, as it made room for others, are no progress. */
  private read(to: number): void {
    if (this.tokens.length > 0) return;
    const now = performance.now();
    // The first chunk waited for its turn, and loads kernels.
    if (this.readTo > 0 && to > this.readTo) this.pace.add(this.readTo, to, now - this.readAt);
    this.readTo = to;
    this.readAt = now;
    const total = this.prompt.length;
    this.report('prefill', to, total, this.pace.estimate(to, total));
  }

  private report(phase: 'prefill' | 'decode', done: number, total: number, leftMs?: number): void {
    const left = leftMs === undefined ? {} : { leftMs };
    this.params.onProgress?.({ phase, done, total, ...left });
  }
}

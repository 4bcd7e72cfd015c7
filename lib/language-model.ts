import { GenerateJob, type GenerateListener, type GenerateResult } from './engine/generate-job';
import { Generation, type GenerationListener } from './engine/generation';
import type { Sequence } from './engine/sequence';
import { ScoreJob } from './engine/score-job';
import { closedError, type EngineLoad } from './engine/engine';
import { abortedError, LozaError, show, throwIfAborted } from './errors';
import { checkObject, resolveLoadOptions, type LoadOptions } from './load-options';
import { loadModel, type LoadedModel } from './load-model';
import { describeModel, memoryReport, type LoadedModelInfo, type MemoryReport } from './model-info';
import { invalidPrompt, signalOf, type Prompt } from './prompt';
import {
  normalizeGenerateOptions,
  readGenerationDefaults,
  type GenerateOptions,
  type GenerationDefaults,
  type SamplingParams,
} from './runner/sampling';
import { Session, type SessionHost, type SessionOptions } from './session';
import { ChatTemplate, type ChatMessage } from './tokenizer/chat-template';
import { missingTokenizerError, Tokenizer } from './tokenizer/tokenizer';

export interface ScoreOptions {
  /** Positions whose logits are wanted (default: all), in any order. */
  positions?: ArrayLike<number> | undefined;
  signal?: AbortSignal | undefined;
  onProgress?: ((progress: { done: number; total: number }) => void) | undefined;
}

export interface ScoreResult {
  /** [rows, vocabSize], row by row: the logits of the token that follows each position. */
  logits: Float32Array;
  rows: number;
  vocabSize: number;
}

/** Logits of more bytes than this are refused: name the positions instead. */
const maxScoreBytes = 2 ** 31;

/**
 * A language model on a device. Calls may overlap: they are served together.
 *
 *     await using model = await LanguageModel.load('models/loza-tiny');
 *     for await (const part of model.generate('Once')) process.stdout.write(part.text);
 */
export class LanguageModel {
  /** What was loaded: architecture, sizes, layer pattern, rope, device. */
  readonly info: LoadedModelInfo;
  /** Undefined when the checkpoint has none; token ids still work. */
  readonly tokenizer: Tokenizer | undefined;
  private closing: Promise<void> | undefined;

  private constructor(
    private readonly dir: string,
    private readonly loaded: LoadedModel,
    tokenizer: Tokenizer | undefined,
    private readonly chatTemplate: ChatTemplate,
    private readonly defaults: GenerationDefaults & { vocabSize: number },
  ) {
    this.tokenizer = tokenizer;
    this.info = describeModel(loaded);
  }

  /**
   * Loads a checkpoint folder as published: config.json, safetensors and, for text, tokenizer.json.
   * Rejects with a LozaError; nothing stays behind then.
   */
  static async load(dir: string, options: LoadOptions = {}): Promise<LanguageModel> {
    const resolved = resolveLoadOptions(options);
    throwIfAborted(resolved.signal);
    const loaded = await loadModel(dir, resolved);
    try {
      const { config, generationConfig } = loaded.plan.checkpoint;
      const { vocabSize } = loaded.plan.model.mla;
      const tokenizer = await Tokenizer.load(dir, vocabSize);
      const ids = { min: 0, max: vocabSize - 1 };
      const fallback = config.ints('eos_token_id', ids) ?? tokenizer?.eosIds ?? [];
      const defaults = { ...readGenerationDefaults(generationConfig, fallback), vocabSize };
      throwIfAborted(resolved.signal);
      return new LanguageModel(dir, loaded, tokenizer, await ChatTemplate.load(dir), defaults);
    } catch (error) {
      loaded.device.close();
      throw error;
    }
  }

  /** Bytes by purpose, now. */
  get memory(): MemoryReport {
    this.checkOpen();
    return memoryReport(this.loaded);
  }

  /** Generations and scores that run, that wait, and how often one had to make room for others. */
  get status(): EngineLoad {
    this.checkOpen();
    return this.loaded.engine.load;
  }

  /**
   * Continues a prompt. The result is an async iterable of parts and has `result()`; it starts when
   * one of them is used. Errors, those of the arguments too, come from there, as LozaErrors.
   */
  generate(prompt: Prompt, options?: GenerateOptions): Generation {
    return new Generation(async (listener) => {
      this.checkOpen();
      const params = normalizeGenerateOptions(options, this.defaults);
      const tokens = await this.tokenize(prompt, params.signal);
      this.checkOpen();
      return this.start(tokens, params, listener);
    }, signalOf(options));
  }

  /** A conversation that keeps its KV cache between turns. */
  createSession(options?: SessionOptions): Session {
    this.checkOpen();
    return new Session(this.host, options);
  }

  /** The logits that follow each position of `tokens`: what evaluation needs. */
  async score(
    tokens: readonly number[] | Int32Array | Uint32Array,
    options: ScoreOptions = {},
  ): Promise<ScoreResult> {
    this.checkOpen();
    checkObject('The score options', options, ['positions', 'signal', 'onProgress']);
    const { signal, onProgress } = options;
    throwIfAborted(signal);
    const prompt = this.checkTokens(tokens);
    const { vocabSize } = this.defaults;
    const positions = checkPositions(options.positions, prompt.length, vocabSize);
    const ascending = [...new Set(positions)].sort((a, b) => a - b);
    const job = new ScoreJob(prompt, ascending, vocabSize, (done) =>
      onProgress?.({ done, total: prompt.length }),
    );
    const abort = () => {
      this.loaded.engine.cancel(job);
      job.fail(abortedError(signal as AbortSignal));
    };
    signal?.addEventListener('abort', abort, { once: true });
    try {
      this.loaded.engine.submit(job);
      await job.done;
    } finally {
      signal?.removeEventListener('abort', abort);
    }
    const logits = inOrder(job.logits, ascending, positions, vocabSize);
    return { logits, rows: positions.length, vocabSize };
  }

  /** Stops all work and frees everything. Idempotent; later calls fail with ERR_LOZA_CLOSED. */
  async close(): Promise<void> {
    this.closing ??= this.loaded.engine.close().finally(() => this.loaded.device.close());
    await this.closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  private readonly host: SessionHost = {
    checkOpen: () => this.checkOpen(),
    params: (options) => normalizeGenerateOptions(options, this.defaults),
    tokenize: (prompt, signal) => this.tokenize(prompt, signal),
    start: (tokens, params, listener, from) => this.start(tokens, params, listener, from),
    hold: (sequence) => this.loaded.engine.keep(sequence),
    drop: (sequence) => this.loaded.engine.drop(sequence),
  };

  /** Starts the samples of a prompt; the first one reads it for all. */
  private start(
    tokens: Int32Array,
    params: SamplingParams,
    listener: GenerationListener,
    from?: { sequence: Sequence | undefined; keep: (sequence: Sequence) => void },
  ): () => void {
    const { engine } = this.loaded;
    const results: GenerateResult[] = [];
    const jobs = Array.from({ length: params.n }, (_, sample) =>
      this.makeJob(tokens, params, sample, {
        onPart: (part) => listener.onPart(params.n === 1 ? part : { ...part, sample }),
        onDone: (result) => {
          results[sample] = result;
          if (Object.keys(results).length === params.n) listener.onDone(results);
        },
        onError: (error) => {
          cancel();
          listener.onError(error);
        },
      }),
    );
    let cancelled = false;
    const cancel = () => {
      cancelled = true;
      for (const job of jobs) engine.cancel(job);
    };
    const [first, ...siblings] = jobs as [GenerateJob, ...GenerateJob[]];
    first.siblings = siblings;
    first.begin = (sibling) => {
      if (cancelled) throw closedError();
      engine.submit(sibling);
    };
    first.sequence = from?.sequence;
    if (from !== undefined) first.keep = from.keep;
    try {
      engine.submit(first);
    } catch (error) {
      if (from?.sequence !== undefined) engine.drop(from.sequence);
      throw error;
    }
    return cancel;
  }

  private makeJob(
    tokens: Int32Array,
    params: SamplingParams,
    sample: number,
    listener: GenerateListener,
  ): GenerateJob {
    const { maxTokens, plan } = this.loaded;
    // The last token is generated without being read, so it may stand one past the end.
    const room = Math.min(plan.maxPosition, maxTokens) - tokens.length + 1;
    const most = Math.min(params.maxNewTokens, room);
    const seed = (params.seed + sample) % Number.MAX_SAFE_INTEGER;
    const { vocabSize } = this.defaults;
    return new GenerateJob(tokens, { ...params, seed }, most, listener, vocabSize, this.tokenizer);
  }

  private async tokenize(prompt: Prompt, signal: AbortSignal | undefined): Promise<Int32Array> {
    if (typeof prompt === 'string') {
      const tokenizer = await this.requireTokenizer();
      return this.checkTokens(await tokenizer.encode(prompt, { signal }));
    }
    if (Array.isArray(prompt) && typeof prompt[0] === 'object') {
      const tokenizer = await this.requireTokenizer();
      const text = this.chatTemplate.render(prompt as ChatMessage[]);
      return this.checkTokens(await tokenizer.encode(text, { addSpecialTokens: false, signal }));
    }
    return this.checkTokens(prompt as readonly number[]);
  }

  private async requireTokenizer(): Promise<Tokenizer> {
    if (this.tokenizer === undefined) throw await missingTokenizerError(this.dir);
    return this.tokenizer;
  }

  /** Token ids as the engine takes them. Throws for none, for unknown ones and for too many. */
  private checkTokens(tokens: unknown): Int32Array {
    if (!Array.isArray(tokens) && !ArrayBuffer.isView(tokens)) {
      throw invalidPrompt('text, chat messages or token ids', tokens);
    }
    const ids = tokens as ArrayLike<unknown>;
    if (ids.length === 0) throw invalidPrompt('at least one token', tokens);
    this.checkLength(ids.length);
    const { vocabSize } = this.defaults;
    for (let i = 0; i < ids.length; i++) {
      const id = ids[i];
      if (Number.isInteger(id) && (id as number) >= 0 && (id as number) < vocabSize) continue;
      const problem = `Token ${i} of the prompt must be an integer of 0..${vocabSize - 1}, got ${show(id)}`;
      throw new LozaError('ERR_LOZA_INVALID_ARG', problem, { value: id });
    }
    return Int32Array.from(ids as ArrayLike<number>);
  }

  private checkLength(length: number): void {
    const { plan, maxTokens } = this.loaded;
    if (length > plan.maxPosition) {
      throw new LozaError(
        'ERR_LOZA_CONTEXT_LENGTH',
        `The prompt has ${length} tokens, but the model reads ${plan.maxPosition} positions`,
        {
          value: length,
          hint: 'Shorten it, or extend the model at load: { rope: { yarnFactor } } (--yarn-factor)',
        },
      );
    }
    if (length <= maxTokens) return;
    const problem = `The prompt has ${length} tokens, but the KV cache was loaded for ${maxTokens}`;
    const hint = `Load the model with maxTokens of at least ${length}`;
    throw new LozaError('ERR_LOZA_CONTEXT_LENGTH', problem, { value: length, hint });
  }

  private checkOpen(): void {
    if (this.closing !== undefined) throw closedError();
  }
}

function checkPositions(
  positions: ArrayLike<number> | undefined,
  length: number,
  vocabSize: number,
): number[] {
  const wanted = positions === undefined ? Array.from({ length }, (_, i) => i) : toArray(positions);
  const bad = wanted.find((p) => !(Number.isInteger(p) && p >= 0 && p < length));
  if (bad !== undefined || wanted.length === 0) {
    const got = wanted.length === 0 ? 'none' : show(bad);
    const problem = `positions must be integers of 0..${length - 1}, got ${got}`;
    throw new LozaError('ERR_LOZA_INVALID_ARG', problem, { value: bad });
  }
  const bytes = wanted.length * vocabSize * 4;
  if (bytes <= maxScoreBytes) return wanted;
  const problem = `The logits of ${wanted.length} positions take ${bytes} bytes, more than ${maxScoreBytes}`;
  throw new LozaError('ERR_LOZA_INVALID_ARG', problem, {
    value: wanted.length,
    hint: 'Name the positions that you need: score(tokens, { positions })',
  });
}

function toArray(positions: ArrayLike<number>): number[] {
  if (Array.isArray(positions) || ArrayBuffer.isView(positions)) {
    return Array.from<number>(positions);
  }
  const problem = `positions must be an array of positions, got ${show(positions)}`;
  throw new LozaError('ERR_LOZA_INVALID_ARG', problem, { value: positions });
}

/** Rows that were computed in ascending order, in the order they were asked for. */
function inOrder(
  logits: Float32Array,
  ascending: readonly number[],
  positions: readonly number[],
  vocabSize: number,
): Float32Array {
  if (positions.every((position, i) => position === ascending[i])) return logits;
  const rowOf = new Map(ascending.map((position, row) => [position, row]));
  const ordered = new Float32Array(positions.length * vocabSize);
  positions.forEach((position, i) => {
    const row = rowOf.get(position) ?? 0;
    ordered.set(logits.subarray(row * vocabSize, (row + 1) * vocabSize), i * vocabSize);
  });
  return ordered;
}

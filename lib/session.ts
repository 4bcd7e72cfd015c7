import type { GenerateUsage } from './engine/generate-job';
import { Generation, type GenerationListener } from './engine/generation';
import type { Sequence } from './engine/sequence';
import { LozaError, show } from './errors';
import { checkObject } from './load-options';
import { invalidPrompt, isTokenList, signalOf, type Prompt } from './prompt';
import type { GenerateOptions, SamplingParams } from './runner/sampling';
import type { ChatMessage } from './tokenizer/chat-template';

/** How to begin a session. Every option may be left out. */
export interface SessionOptions {
  /** Instructions before the conversation. */
  system?: string | undefined;
}

/** What a session asks of its model. */
export interface SessionHost {
  checkOpen(): void;
  params(options: GenerateOptions | undefined): SamplingParams;
  tokenize(prompt: Prompt, signal: AbortSignal | undefined): Promise<Int32Array>;
  /** Starts a generation, from a sequence that it takes over; returns what takes it back. */
  start(
    tokens: Int32Array,
    params: SamplingParams,
    listener: GenerationListener,
    from: { sequence: Sequence | undefined; keep: (sequence: Sequence) => void },
  ): () => void;
  /** Takes care of a sequence until it is started or dropped; others may take its blocks. */
  hold(sequence: Sequence): void;
  drop(sequence: Sequence): void;
}

/** What was said so far: messages, or token ids where the user writes the prompts. */
type History = { messages: ChatMessage[] } | { tokens: number[] };

/** One turn that is being answered. */
class Turn {
  text = '';
  readonly tokens: number[] = [];
  cancel: () => void = () => {};

  constructor(
    /** With what the user said now. */
    private readonly history: History,
    readonly listener: GenerationListener,
  ) {}

  get prompt(): Prompt {
    return 'messages' in this.history ? this.history.messages : this.history.tokens;
  }

  /** The history once this much was answered; undefined if nothing was. */
  get outcome(): History | undefined {
    const { history, text, tokens } = this;
    if ('tokens' in history) return { tokens: history.tokens.concat(tokens) };
    if (text === '') return undefined;
    return { messages: [...history.messages, { role: 'assistant', content: text }] };
  }

  fail(error: LozaError): void {
    this.cancel();
    this.listener.onError(error);
  }
}

/**
 * A conversation that keeps its KV cache between turns: a turn reads only what is new.
 *
 *     await using session = model.createSession({ system: 'Answer briefly.' });
 *     const { text } = await session.generate('What is LoZA?').result();
 */
export class Session {
  private history: History | undefined;
  private kept: Sequence | undefined;
  private turn: Turn | undefined;
  private over = false;
  private readonly totals: GenerateUsage = {
    ...{ promptTokens: 0, cachedTokens: 0, completionTokens: 0, totalTokens: 0 },
  };

  constructor(
    private readonly host: SessionHost,
    options: SessionOptions = {},
  ) {
    checkObject('The session options', options, ['system']);
    const { system } = options;
    if (system !== undefined && typeof system !== 'string') {
      throw new LozaError('ERR_LOZA_INVALID_ARG', `system must be text, got ${show(system)}`);
    }
    if (system !== undefined) this.history = { messages: [{ role: 'system', content: system }] };
  }

  /** What was said so far, answers included; empty where the prompts are token ids. */
  get messages(): readonly ChatMessage[] {
    return this.history !== undefined && 'messages' in this.history
      ? [...this.history.messages]
      : [];
  }

  /** Messages or token ids so far, answers included: the unit of `truncate`. */
  get length(): number {
    if (this.history === undefined) return 0;
    return 'messages' in this.history ? this.history.messages.length : this.history.tokens.length;
  }

  /** Tokens whose keys and values it holds. */
  get tokens(): number {
    return this.kept?.computed ?? 0;
  }

  /** Bytes that these take, and what they would take if every attention were full. */
  get kv(): { residentBytes: number; fullBytes: number } {
    const { resident, full } = this.kept?.kvBytes(this.tokens) ?? { resident: 0, full: 0 };
    return { residentBytes: resident, fullBytes: full };
  }

  /** Sums over all turns that were answered. */
  get usage(): GenerateUsage {
    return { ...this.totals };
  }

  /**
   * Answers the next turn: a text is a message of the user, messages follow those so far, and token
   * ids continue the tokens so far. What was written of an answer that is stopped stays; a turn that
   * fails leaves the session as it was. One turn at a time.
   */
  generate(input: Prompt, options?: GenerateOptions): Generation {
    return new Generation((listener) => this.answer(input, options, listener), signalOf(options));
  }

  /** Another session that has heard the same; both share the KV blocks so far. */
  fork(): Session {
    this.checkIdle();
    const fork = new Session(this.host);
    fork.history = copyOf(this.history);
    if (this.kept?.rewind(Infinity) === true) {
      fork.kept = this.kept.fork();
      this.host.hold(fork.kept);
    }
    return fork;
  }

  /**
   * Goes back to the first `length` messages, or token ids where the prompts are that; what stays is
   * not read again. To say the last turn in other words: `session.truncate(session.length - 2)`.
   */
  truncate(length: number): void {
    this.checkIdle();
    const { history, kept, length: had } = this;
    if (!Number.isInteger(length) || length < 0 || length > had) {
      const problem = `length must be an integer of 0..${had}, got ${show(length)}`;
      const hint = 'session.length says how many messages, or token ids, there are';
      throw new LozaError('ERR_LOZA_INVALID_ARG', problem, { value: length, hint });
    }
    if (history === undefined || length === had) return;
    if ('messages' in history) {
      // Which of its tokens stay, the next turn will tell.
      this.history = length === 0 ? undefined : { messages: history.messages.slice(0, length) };
      return;
    }
    this.history = length === 0 ? undefined : { tokens: history.tokens.slice(0, length) };
    if (kept?.rewind(length) === false) kept.release();
  }

  /** Ends a turn that is being answered and gives back all memory. Idempotent. */
  close(): void {
    this.over = true;
    this.turn?.fail(sessionClosed());
    this.turn = undefined;
    if (this.kept !== undefined) this.host.drop(this.kept);
    this.kept = undefined;
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.close();
    return Promise.resolve();
  }

  private async answer(
    input: Prompt,
    options: GenerateOptions | undefined,
    listener: GenerationListener,
  ): Promise<() => void> {
    this.checkIdle();
    const params = this.host.params(options);
    if (params.n > 1) {
      throw new LozaError(
        'ERR_LOZA_INVALID_ARG',
        `A session goes on from one answer, not ${params.n}`,
        {
          value: params.n,
          hint: 'fork() the session, once for each',
        },
      );
    }
    const turn = new Turn(extended(this.history, input), listener);
    this.turn = turn;
    try {
      const tokens = await this.host.tokenize(turn.prompt, params.signal);
      this.checkOpen();
      turn.cancel = this.begin(tokens, params, turn);
      return () => {
        turn.cancel();
        this.end(turn);
      };
    } catch (error) {
      this.turn = undefined;
      throw error;
    }
  }

  private begin(tokens: Int32Array, params: SamplingParams, turn: Turn): () => void {
    const { listener } = turn;
    const listening: GenerationListener = {
      onPart: (part) => {
        turn.text += part.text;
        turn.tokens.push(part.token);
        listener.onPart(part);
      },
      onDone: (results) => {
        for (const { usage } of results) this.count(usage);
        this.end(turn);
        listener.onDone(results);
      },
      onError: (error) => {
        if (this.turn === turn) this.turn = undefined;
        listener.onError(error);
      },
    };
    const sequence = this.take(tokens);
    const keep = (kept: Sequence) => this.keep(kept);
    return this.host.start(tokens, params, listening, { sequence, keep });
  }

  /** What was answered, whole or not, is history. */
  private end(turn: Turn): void {
    if (this.turn !== turn) return;
    this.turn = undefined;
    this.history = turn.outcome ?? this.history;
  }

  /** Its sequence, with what these tokens have in common with those before. */
  private take(tokens: Int32Array): Sequence | undefined {
    const { kept } = this;
    this.kept = undefined;
    if (kept === undefined || kept.turnTo(tokens)) return kept;
    kept.release();
    kept.turnTo(tokens);
    return kept;
  }

  private keep(sequence: Sequence): void {
    if (this.over) this.host.drop(sequence);
    else this.kept = sequence;
  }

  private count(usage: GenerateUsage): void {
    for (const key of Object.keys(usage) as (keyof GenerateUsage)[]) this.totals[key] += usage[key];
  }

  private checkIdle(): void {
    this.checkOpen();
    if (this.turn === undefined) return;
    throw new LozaError('ERR_LOZA_INVALID_ARG', 'The session is still answering', {
      hint: 'Wait for its result, stop it, or fork() the session before',
    });
  }
  private checkOpen(): void {
    this.host.checkOpen();
    if (this.over) throw sessionClosed();
  }
}

/** The history with what the user says next. */
function extended(history: History | undefined, input: Prompt): History {
  const isText = typeof input === 'string';
  const isIds = isTokenList(input);
  if (!isText && !Array.isArray(input) && !isIds) {
    throw invalidPrompt('text, chat messages or token ids', input);
  }
  if (input.length === 0) throw invalidPrompt('at least one token', input);
  if (history !== undefined && 'messages' in history === isIds) {
    const [held, given] = isIds ? ['messages', 'token ids'] : ['token ids', 'messages'];
    throw new LozaError('ERR_LOZA_INVALID_ARG', `The session holds ${held}, and takes no ${given}`);
  }
  if (isIds) {
    const before = history !== undefined && 'tokens' in history ? history.tokens : [];
    return { tokens: before.concat(Array.from(input)) };
  }
  const before = history !== undefined && 'messages' in history ? history.messages : [];
  const said = isText ? [{ role: 'user', content: input } as const] : (input as ChatMessage[]);
  return { messages: [...before, ...said] };
}

function copyOf(history: History | undefined): History | undefined {
  if (history === undefined) return undefined;
  return 'messages' in history
    ? { messages: [...history.messages] }
    : { tokens: [...history.tokens] };
}

function sessionClosed(): LozaError {
  return new LozaError('ERR_LOZA_CLOSED', 'The session is closed', {
    hint: 'Create another: model.createSession()',
  });
}

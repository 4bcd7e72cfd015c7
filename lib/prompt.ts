import { LozaError, show } from './errors';
import type { GenerateOptions } from './runner/sampling';
import type { ChatMessage } from './tokenizer/chat-template';

/** What can be continued: text, a chat, or token ids. */
export type Prompt = string | readonly ChatMessage[] | readonly number[] | Int32Array | Uint32Array;

export const isTokenList = (prompt: unknown): prompt is ArrayLike<number> =>
  (Array.isArray(prompt) && typeof prompt[0] !== 'object') || ArrayBuffer.isView(prompt);

export function invalidPrompt(expected: string, value: unknown): LozaError {
  const problem = `The prompt must be ${expected}, got ${show(value)}`;
  return new LozaError('ERR_LOZA_INVALID_ARG', problem, { value });
}

/** The signal among options that were not checked yet. */
export function signalOf(options: GenerateOptions | undefined): AbortSignal | undefined {
  const signal: unknown = (options as { signal?: unknown } | null | undefined)?.signal;
  const isSignal = typeof (signal as AbortSignal | undefined)?.addEventListener === 'function';
  return isSignal ? (signal as AbortSignal) : undefined;
}

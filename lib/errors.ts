/** Every code a `LozaError` can carry. Codes are stable: programs may branch on them. */
export type LozaErrorCode =
  | 'ERR_LOZA_INVALID_ARG' // an argument or option has the wrong type, range or combination
  | 'ERR_LOZA_CONTEXT_LENGTH' // prompt plus new tokens exceed the model's positions or KV capacity
  | 'ERR_LOZA_NOT_FOUND' // a file or folder that must exist does not
  | 'ERR_LOZA_CHECKPOINT' // safetensors files or their index are malformed or do not fit the model
  | 'ERR_LOZA_CONFIG' // config.json has a missing, malformed or inconsistent value
  | 'ERR_LOZA_TOKENIZER' // tokenizer files are malformed, or text cannot be encoded
  | 'ERR_LOZA_CHAT_TEMPLATE' // the chat template is missing or fails
  | 'ERR_LOZA_DATA' // a file of training data is malformed, or holds nothing to learn from
  | 'ERR_LOZA_UNSUPPORTED' // valid, but outside what this build can do
  | 'ERR_LOZA_ADDON_NOT_FOUND' // the compiled addon is missing or cannot be loaded
  | 'ERR_LOZA_DEVICE_UNAVAILABLE' // the asked device cannot be used
  | 'ERR_LOZA_OUT_OF_MEMORY' // an allocation failed
  | 'ERR_LOZA_CUDA' // CUDA failed; after most such errors this process cannot use the GPU any more
  | 'ERR_LOZA_IO' // the operating system refused to read or write a file
  | 'ERR_LOZA_CLOSED' // the model, stream or device was closed
  | 'ERR_LOZA_ABORTED' // the caller's AbortSignal fired
  | 'ERR_LOZA_INTERNAL'; // a bug in loza; please report it

export interface LozaErrorDetails {
  /** What was wrong, as given by the caller or read from the file. */
  value?: unknown;
  /** What the user can do about it: one sentence. */
  hint?: string;
  cause?: unknown;
}

const marker = Symbol.for('loza.error');

/** The one error class of this package. `message` says what was expected, what was found and what to do. */
export class LozaError extends Error {
  readonly code: LozaErrorCode;
  readonly value: unknown;
  readonly hint: string | undefined;

  constructor(code: LozaErrorCode, problem: string, details: LozaErrorDetails = {}) {
    const { value, hint, cause } = details;
    super(
      hint === undefined ? problem : `${problem}. ${hint}`,
      cause === undefined ? {} : { cause },
    );
    this.name = 'LozaError';
    this.code = code;
    this.value = value;
    this.hint = hint;
    Object.defineProperty(this, marker, { value: true });
  }

  /** Like `instanceof`, but also true for errors made by another copy of this package. */
  static isInstance(error: unknown): error is LozaError {
    return typeof error === 'object' && error !== null && marker in error;
  }
}

/** Text that shows a value in an error message: short, on one line, whatever the value is. */
export function show(value: unknown): string {
  let text: string;
  if (typeof value === 'string') text = JSON.stringify(value);
  else if (typeof value === 'bigint') text = `${value}n`;
  else if (value !== null && typeof value === 'object') text = describeObject(value);
  else text = String(value);
  return text.length <= 120 ? text : `${text.slice(0, 117)}...`;
}

function describeObject(value: object): string {
  if (Array.isArray(value)) return `an array of ${value.length}`;
  if (ArrayBuffer.isView(value)) return `${value.constructor.name} of ${value.byteLength} bytes`;
  try {
    return JSON.stringify(value) ?? 'an object';
  } catch {
    return 'an object';
  }
}

/** The error for an aborted call; the signal's reason is its cause. */
export function abortedError(signal: AbortSignal): LozaError {
  return new LozaError('ERR_LOZA_ABORTED', 'The call was aborted by its signal', {
    cause: signal.reason,
  });
}

export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw abortedError(signal);
}

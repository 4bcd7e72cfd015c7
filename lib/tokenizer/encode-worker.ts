import { Worker } from 'node:worker_threads';
import { abortedError, LozaError, throwIfAborted } from '../errors';

/** What a worker needs to build the same tokenizer again and to encode one text with it. */
export interface EncodeJob {
  text: string;
  addSpecialTokens: boolean;
  /** The bytes of tokenizer.json, shared and not copied. */
  file: SharedArrayBuffer;
  /** The checked and completed content of that file, all but its model. */
  overrides: Record<string, unknown>;
}

// Text, not a module of its own, so that it runs alike from dist/, under jest and under a bundler.
// An id that does not exist becomes -1; the caller checks.
const source = `
const { parentPort, workerData } = require('node:worker_threads');
const { library, job } = workerData;
const { Tokenizer } = require(library);
const { model } = JSON.parse(Buffer.from(job.file).toString());
const json = { ...job.overrides, model: { ...model, type: 'BPE' } };
const { ids } = new Tokenizer(json, {}).encode(job.text, { add_special_tokens: job.addSpecialTokens });
const out = Int32Array.from(ids, (id) => id ?? -1);
parentPort.postMessage(out, [out.buffer]);
`;

/**
 * Token ids of a long text, computed in a thread of their own so that the event loop stays free.
 * Errors: ERR_LOZA_ABORTED, ERR_LOZA_OUT_OF_MEMORY, ERR_LOZA_TOKENIZER.
 */
export function encodeInWorker(job: EncodeJob, signal?: AbortSignal): Promise<Int32Array> {
  throwIfAborted(signal);
  const library = require.resolve('@huggingface/tokenizers');
  return new Promise((resolve, reject) => {
    // execArgv is emptied because flags such as --input-type=module would break the source above.
    const worker = new Worker(source, { eval: true, execArgv: [], workerData: { library, job } });
    const onAbort = () => settle(() => reject(abortedError(signal as AbortSignal)));
    const settle = (report: () => void) => {
      signal?.removeEventListener('abort', onAbort);
      worker.removeAllListeners('exit'); // from here on an exit is expected
      void worker.terminate().then(report);
    };
    signal?.addEventListener('abort', onAbort, { once: true });
    worker.once('message', (ids: Int32Array) => settle(() => resolve(Int32Array.from(ids))));
    worker.once('error', (error) => settle(() => reject(workerError(error))));
    worker.once('exit', (code) => reject(workerError(new Error(`exit code ${code}`))));
  });
}

function workerError(cause: Error): LozaError {
  if ((cause as NodeJS.ErrnoException).code === 'ERR_WORKER_OUT_OF_MEMORY') {
    return new LozaError('ERR_LOZA_OUT_OF_MEMORY', 'The tokenizer thread ran out of memory', {
      hint: 'Pass a shorter text, or token ids',
      cause,
    });
  }
  const problem = `The text could not be encoded: ${cause.message}`;
  return new LozaError('ERR_LOZA_TOKENIZER', problem, { cause });
}

import type { LoadPlan } from '../../load-model';
import { ChatTemplate } from '../../tokenizer/chat-template';
import { missingTokenizerError, Tokenizer } from '../../tokenizer/tokenizer';
import { readDocuments } from './documents';
import { ExampleEncoder, type LossOn } from './examples';
import { packSequences, type PackedData } from './sequences';

export interface DataOptions {
  data: readonly string[];
  /** 'auto': answers if there are chats, else all tokens. */
  lossOn: LossOn | 'auto';
  sequenceLength: number;
  seed: number;
  /** Sequences from which on no more documents are tokenised. */
  enough?: number | undefined;
  signal: AbortSignal | undefined;
}

/** Documents that were tokenised, of how many at the most. */
export interface ReadingProgress {
  phase: 'reading';
  done: number;
  total: number;
}

/** Reads, tokenises and packs data files with the tokenizer of a checkpoint. */
export async function loadData(
  { checkpoint, model }: LoadPlan,
  { data, lossOn, sequenceLength, seed, enough, signal }: DataOptions,
  onProgress: (progress: ReadingProgress) => void,
): Promise<PackedData & { lossOn: LossOn }> {
  const documents = await readDocuments(data, signal);
  const hasChats = documents.some(({ messages }) => messages !== undefined);
  const on = lossOn !== 'auto' ? lossOn : hasChats ? 'answers' : 'all';
  const tokenizer = await Tokenizer.load(checkpoint.dir, model.mla.vocabSize);
  if (tokenizer === undefined) throw await missingTokenizerError(checkpoint.dir);
  const template = await ChatTemplate.load(checkpoint.dir);
  const encoder = new ExampleEncoder(tokenizer, template, on, signal);
  const total = documents.length;
  let done = 0;
  const counting: Pick<ExampleEncoder, 'encode'> = {
    encode(document) {
      onProgress({ phase: 'reading', done: done++, total });
      return encoder.encode(document);
    },
  };
  const packed = await packSequences(documents, counting, { length: sequenceLength, seed, enough });
  return { ...packed, lossOn: on };
}

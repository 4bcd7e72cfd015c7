import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { LozaError } from '../../lib/errors';

/** A byte-level BPE tokenizer small enough to reason about, and folders that hold such files. */

export const special = { unk: 0, bos: 1, eos: 2, user: 3 };
/** Added, but not special: visible text. */
export const thinkId = 4;
export const firstByteId = 5;
/** Ids at and above this one have no token, like the padding of an embedding table. */
export const firstUnusedId = firstByteId + 256 + 6;
export const vocabSize = firstUnusedId + 3;

const byteChars = makeByteChars();

/** The GPT-2 alphabet: printable bytes stand for themselves, the others are moved above U+0100. */
function makeByteChars(): string[] {
  let moved = 256;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable =
      (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    return String.fromCodePoint(printable ? byte : moved++);
  });
}

function chars(...bytes: number[]): string {
  return bytes.map((byte) => byteChars[byte]).join('');
}

export type Json = Record<string, unknown>;

export interface TokenizerFixture extends Json {
  added_tokens: Json[];
  model: Json & { vocab: Record<string, unknown>; merges: unknown[] };
}

/** A fresh copy: tests break it at will. */
export function makeTokenizerJson(): TokenizerFixture {
  const names = ['<unk>', '<s>', '</s>', '<user>', '<think>'];
  const added = names.map((content, id) => ({ id, content, special: id !== thinkId }));
  const vocab: Record<string, number> = {};
  byteChars.forEach((char, byte) => (vocab[char] = firstByteId + byte));
  // Tokens that hold whole characters, halves of characters, and the end of one with the next.
  const merges = [
    [chars(0x68), chars(0x69)],
    [chars(0x20), chars(0x61)],
    [chars(0xf0), chars(0x9f)],
    [chars(0x98), chars(0x80)],
    [chars(0xc3), chars(0xa9)],
    [chars(0xa9), chars(0xe4)],
  ];
  merges.forEach((pair, rank) => (vocab[pair.join('')] = firstByteId + 256 + rank));
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, use_regex: true };
  return {
    version: '1.0',
    added_tokens: added,
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: { type: 'BPE', unk_token: null, vocab, merges },
  };
}

/** A post-processor that puts `token` before every text. */
export function prepend(token: string): Json {
  const single = [
    { SpecialToken: { id: token, type_id: 0 } },
    { Sequence: { id: 'A', type_id: 0 } },
  ];
  return { type: 'TemplateProcessing', single, pair: [], special_tokens: {} };
}

const dirs: string[] = [];
afterAll(() => dirs.forEach((dir) => rmSync(dir, { recursive: true })));

/** A new folder with these files; values that are not text or bytes are written as JSON. */
export function makeDir(files: Record<string, unknown>): string {
  const dir = mkdtempSync(path.join(tmpdir(), 'loza-tokenizer-'));
  dirs.push(dir);
  for (const [name, content] of Object.entries(files)) {
    const raw = typeof content === 'string' || Buffer.isBuffer(content);
    writeFileSync(path.join(dir, name), raw ? content : JSON.stringify(content));
  }
  return dir;
}

/** The LozaError that `work` ends with. */
export async function errorOf(work: () => unknown): Promise<LozaError> {
  try {
    await work();
  } catch (error) {
    if (LozaError.isInstance(error)) return error;
    throw error;
  }
  throw new Error('expected an error');
}

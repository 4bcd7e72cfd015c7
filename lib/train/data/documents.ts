import { readFile } from 'node:fs/promises';
import { extname } from 'node:path';

import { fileError } from '../../checkpoint/files';
import { parseJson, toPlain } from '../../checkpoint/json';
import { LozaError, show, throwIfAborted } from '../../errors';
import type { ChatMessage } from '../../tokenizer/chat-template';
import { decodeUtf8, isPlainObject, type PlainObject } from '../../tokenizer/files';

/** One document of a data file: a text, or a chat. */
export type TrainingDocument =
  | { readonly text: string; readonly messages?: undefined }
  | { readonly messages: readonly ChatMessage[]; readonly text?: undefined };

const code = 'ERR_LOZA_DATA';
const maxFileBytes = 2 ** 30;
const expected = 'an object with "text" or with "messages"';

/**
 * Reads data files in their order. `.jsonl` has one object a line, {"text": "..."} or {"messages":
 * [{"role", "content"}, ...]}, as the libraries around Hugging Face write it; `.txt` is text, whose
 * documents a NUL separates.
 *
 * @throws LozaError ERR_LOZA_DATA with the file and the line, ERR_LOZA_NOT_FOUND, ERR_LOZA_IO.
 */
export async function readDocuments(
  files: readonly string[],
  signal?: AbortSignal,
): Promise<TrainingDocument[]> {
  if (files.length === 0) {
    throw new LozaError('ERR_LOZA_INVALID_ARG', 'There are no data files', {
      hint: 'Name at least one .jsonl or .txt file',
    });
  }
  const documents: TrainingDocument[] = [];
  for (const file of files) {
    throwIfAborted(signal);
    const read = reader(file);
    for (const document of read(decodeUtf8(await readBytes(file), file, code), file)) {
      documents.push(document);
    }
  }
  if (documents.length > 0) return documents;
  throw new LozaError(code, `${files.join(', ')}: there is no document`, { value: files });
}

type Reader = (content: string, file: string) => TrainingDocument[];

function reader(file: string): Reader {
  const extension = extname(file).toLowerCase();
  if (extension === '.jsonl') return readLines;
  if (extension === '.txt') return readText;
  const problem = `${file}: data files are .jsonl or .txt, got ${show(extension)}`;
  throw new LozaError('ERR_LOZA_INVALID_ARG', problem, { value: file });
}

async function readBytes(file: string): Promise<Uint8Array> {
  let bytes: Uint8Array;
  try {
    bytes = await readFile(file);
  } catch (error) {
    throw fileError(error, file);
  }
  if (bytes.length <= maxFileBytes) return bytes;
  const problem = `${file} has ${bytes.length} bytes, more than ${maxFileBytes}`;
  throw new LozaError(code, problem, { value: bytes.length, hint: 'Split it into several files' });
}

const readText: Reader = (content) =>
  content
    .split(/\r?\n?\0\r?\n?/)
    .filter((text) => text.trim() !== '')
    .map((text) => ({ text }));

const readLines: Reader = (content, file) =>
  content.split(/\r?\n/).flatMap((line, i) => {
    if (line.trim() === '') return [];
    const place = `${file}, line ${i + 1}`;
    const value = toPlain(parseJson(Buffer.from(line), { file: place, maxDepth: 32, code }));
    return [readObject(value, place)];
  });

function readObject(value: unknown, place: string): TrainingDocument {
  if (!isPlainObject(value)) throw malformed(place, expected, value);
  const { text, messages } = value;
  if ((text === undefined) === (messages === undefined)) throw malformed(place, expected, value);
  if (messages !== undefined) return { messages: readMessages(messages, place) };
  if (typeof text === 'string' && text !== '') return { text };
  throw malformed(place, 'a "text" that is a string and not empty', text);
}

function readMessages(messages: unknown, place: string): ChatMessage[] {
  const wanted = '"messages" as an array of {"role", "content"} that is not empty';
  if (!Array.isArray(messages) || messages.length === 0) throw malformed(place, wanted, messages);
  for (const message of messages as unknown[]) {
    if (isPlainObject(message) && isMessage(message)) continue;
    throw malformed(place, wanted, message);
  }
  return messages as ChatMessage[];
}

function isMessage({ role, content }: PlainObject): boolean {
  return typeof role === 'string' && typeof content === 'string';
}

function malformed(place: string, wanted: string, value: unknown): LozaError {
  return new LozaError(code, `${place}: expected ${wanted}, got ${show(value)}`, { value });
}

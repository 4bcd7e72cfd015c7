import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';

const root = path.join(__dirname, '..', '..');

/** Small checkpoints with outputs of Hugging Face transformers in fp32. */
export const goldenDir = path.join(root, 'test', 'golden');
export const tinyDir = path.join(root, 'models', 'loza-tiny');

/** One prompt of a checkpoint's expected.safetensors. */
export interface ExpectedPrompt {
  name: string;
  length: number;
  tokens: Int32Array;
  positions: Int32Array;
  /** [positions, vocabulary] */
  logits: Float32Array;
  greedy: Int32Array;
  /** Difference of the two largest logits at each greedy token. */
  margins: number[];
}

/** Every checkpoint with expected outputs, by name. loza-tiny-base is too large to bundle twice. */
export function goldenCheckpoints(): { name: string; dir: string; missing: boolean }[] {
  const shared =
    process.env['LOZA_TINY_BASE'] ?? path.join(root, '..', 'shared', 'models', 'loza-tiny-base');
  const bundled = readdirSync(goldenDir).map((name) => ({ name, dir: path.join(goldenDir, name) }));
  return [
    ...bundled,
    { name: 'loza-tiny', dir: tinyDir },
    { name: 'loza-tiny-base', dir: shared },
  ].map((one) => ({ ...one, missing: !existsSync(path.join(one.dir, 'expected.safetensors')) }));
}

export function readExpected(dir: string): ExpectedPrompt[] {
  const tensors = readTensors(path.join(dir, 'expected.safetensors'));
  const margins = readMargins(path.join(dir, 'expected.json'));
  return [...tensors.keys()]
    .filter((key) => key.endsWith('.input_ids'))
    .map((key) => key.slice(0, -'.input_ids'.length))
    .sort()
    .map((name, i) => ({
      name,
      length: tensors.get(`${name}.input_ids`)?.length ?? 0,
      tokens: tensors.get(`${name}.input_ids`) as Int32Array,
      positions: tensors.get(`${name}.positions`) as Int32Array,
      logits: tensors.get(`${name}.logits`) as Float32Array,
      greedy: tensors.get(`${name}.greedy`) as Int32Array,
      margins: margins.get(name) ?? margins.get(String(i)) ?? [],
    }));
}

export function standardDeviation(values: Float32Array): number {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length);
}

function readMargins(file: string): Map<string, number[]> {
  interface Entry {
    greedy_margin?: number[];
  }
  const json = JSON.parse(readFileSync(file, 'utf8')) as Record<string, Entry | Entry[]>;
  const { prompts } = json;
  const entries = (Array.isArray(prompts) ? Object.entries(prompts) : Object.entries(json)) as [
    string,
    Entry,
  ][];
  return new Map(entries.map(([name, entry]) => [name, entry.greedy_margin ?? []]));
}

/** A reader of its own, so that the code under test is not checked by itself. */
function readTensors(file: string): Map<string, Float32Array | Int32Array> {
  const bytes = readFileSync(file);
  const headerBytes = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.subarray(8, 8 + headerBytes).toString()) as Record<
    string,
    { dtype: string; data_offsets: [number, number] }
  >;
  const tensors = new Map<string, Float32Array | Int32Array>();
  for (const [name, entry] of Object.entries(header)) {
    if (name === '__metadata__') continue;
    const [begin, end] = entry.data_offsets.map((offset) => 8 + headerBytes + offset);
    const data = new Uint8Array(bytes.subarray(begin, end)).buffer;
    tensors.set(name, entry.dtype === 'F32' ? new Float32Array(data) : new Int32Array(data));
  }
  return tensors;
}

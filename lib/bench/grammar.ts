import { LozaError, show } from '../errors';

/** One test, in llama-bench's terms: pp reads a prompt, tg generates; both start at a depth. */
export interface BenchTest {
  prompt: number;
  generate: number;
  /** Tokens of each sequence that are in the cache before anything is timed. */
  depth: number;
  /** Sequences. */
  batch: number;
  /** Prompt tokens read in one step, over all sequences. */
  chunk: number;
}

export interface TestGrid {
  prompts: readonly number[];
  generates: readonly number[];
  /** Prompt and generation one after the other, timed as one. */
  pairs: readonly (readonly [prompt: number, generate: number])[];
  depths: readonly number[];
  batches: readonly number[];
  chunks: readonly number[];
}

/** As vLLM has it: capitals count in 1,024, small letters in 1,000. */
const suffixes: Readonly<Record<string, number>> = {
  '': 1,
  k: 1e3,
  K: 2 ** 10,
  m: 1e6,
  M: 2 ** 20,
};
const largest = 2 ** 24;
const mostValues = 1000;

/** '8192', '8K', '1M', '1.5k': a whole number of tokens. */
export function parseCount(text: string): number {
  const [, digits, suffix = ''] = /^(\d+(?:\.\d+)?)([kKmM]?)$/.exec(text.trim()) ?? [];
  const value = Math.round(Number(digits) * (suffixes[suffix] ?? NaN) * 1e6) / 1e6;
  if (Number.isInteger(value) && value <= largest) return value;
  throw wrong(text, `a whole number up to ${largest}, as 8192, 8K or 1M`);
}

/** 'a', 'a-b', 'a-b+step' or 'a-b*mult', separated by commas. */
export function parseCounts(text: string): number[] {
  return text.split(',').flatMap((item) => parseRange(item.trim()));
}

function parseRange(text: string): number[] {
  const [, from = text, to, operator = '+', by = '1'] =
    /^([^-]+)-([^-+*]+)(?:([+*])(.+))?$/.exec(text) ?? [];
  if (to === undefined) return [parseCount(from)];
  const [first, last, step] = [from, to, by].map(parseCount) as [number, number, number];
  const grows = operator === '+' ? step > 0 : step > 1 && first > 0;
  if (!grows || last < first) throw wrong(text, 'a range that grows, as 512-4K*2 or 128-1024+128');
  const values: number[] = [];
  for (let n = first; n <= last; n = operator === '+' ? n + step : n * step) {
    if (values.push(n) > mostValues) throw wrong(text, `a range of at most ${mostValues} values`);
  }
  return values;
}

/** 'pp,tg': a prompt and what is generated after it. */
export function parsePair(text: string): [number, number] {
  const [prompt, generate, ...more] = text.split(',').map(parseCount);
  if (prompt && generate && more.length === 0) return [prompt, generate];
  throw wrong(text, 'a prompt and a generation, as 512,128');
}

/** Every combination, without those that do nothing: 0 leaves a kind of test out. */
export function expandTests(grid: TestGrid): BenchTest[] {
  const kinds: (readonly [number, number])[] = [
    ...grid.prompts.map((prompt) => [prompt, 0] as const),
    ...grid.generates.map((generate) => [0, generate] as const),
    ...grid.pairs,
  ];
  return grid.batches.flatMap((batch) =>
    grid.chunks.flatMap((chunk) =>
      grid.depths.flatMap((depth) =>
        kinds
          .filter(([prompt, generate]) => prompt + generate > 0)
          .map(([prompt, generate]) => ({ prompt, generate, depth, batch, chunk })),
      ),
    ),
  );
}

/** 'pp8192 @ d131072', 'tg128', 'pp512+tg128'. */
export function testLabel({ prompt, generate, depth }: BenchTest): string {
  const parts = [
    ...(prompt > 0 ? [`pp${prompt}`] : []),
    ...(generate > 0 ? [`tg${generate}`] : []),
  ];
  return parts.join('+') + (depth > 0 ? ` @ d${depth}` : '');
}

interface WithSteps {
  n_ubatch?: number | undefined;
}

/** What follows a test's label where tests differ in the tokens of a step: ', steps of 512'. */
export function stepSuffix(rows: readonly WithSteps[]): (row: WithSteps) => string {
  const several = new Set(rows.map(({ n_ubatch }) => n_ubatch)).size > 1;
  return ({ n_ubatch }) => (several && n_ubatch !== undefined ? `, steps of ${n_ubatch}` : '');
}

/** Positions that a sequence of the test has at its end. */
export const testLength = ({ depth, prompt, generate }: BenchTest): number =>
  depth + prompt + generate;

/** Flags of llama-bench with two letters, which the parser of the command line does not know. */
const twoLetters: Readonly<Record<string, string>> = { '-pg': '--pg', '-ub': '--ubatch-size' };

/** The arguments of `loza bench`, which are llama-bench's, as the parser takes them; others stay. */
export function normalizeArguments(args: readonly string[]): string[] {
  const command = args.find((argument) => !argument.startsWith('-'));
  if (command !== 'bench') return [...args];
  return args.map((argument) => twoLetters[argument] ?? argument);
}

function wrong(text: string, expected: string): LozaError {
  return new LozaError('ERR_LOZA_INVALID_ARG', `${show(text)} must be ${expected}`, {
    value: text,
  });
}

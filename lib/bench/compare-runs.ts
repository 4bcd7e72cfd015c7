import { LozaError } from '../errors';
import { stepSuffix } from './grammar';
import { ratio, type Statistics } from './statistics';
import { markdownTable } from './tables';

/** What is compared of a row of `loza bench`, or of llama-bench. */
interface ComparedRow {
  n_prompt: number;
  n_gen: number;
  n_depth: number;
  avg_ts: number;
  stddev_ts: number;
  test?: string;
  attention?: string;
  batch_size?: number;
  n_ubatch?: number;
  build_commit?: string | null;
  gpu_info?: string;
}

export interface RunRatio {
  test: string;
  attention: string;
  batch: number;
  before: Statistics;
  after: Statistics;
  /** After over before, in tokens/s: above 1 is faster. */
  ratio: Statistics;
}

export interface RunComparison {
  rows: RunRatio[];
  /** Tests that only one of the runs has. */
  unmatched: string[];
  /** Whether both name one device. */
  sameDevice: boolean;
  commits: [string, string];
}

/** The rows of a file of -o json or -o jsonl. Throws ERR_LOZA_INVALID_ARG. */
export function parseRun(text: string, name: string): ComparedRow[] {
  try {
    const rows = parseRows(text.trim());
    if (rows.length > 0 && rows.every(isRow)) return rows;
  } catch {
    // said below
  }
  const hint = 'Write one with loza bench -o json';
  throw new LozaError('ERR_LOZA_INVALID_ARG', `${name} holds no rows of loza bench`, { hint });
}

function parseRows(text: string): unknown[] {
  if (!text.startsWith('[')) return text.split('\n').map((line) => JSON.parse(line) as unknown);
  return JSON.parse(text) as unknown[];
}

function isRow(row: unknown): row is ComparedRow {
  if (typeof row !== 'object' || row === null) return false;
  const numbers = ['n_prompt', 'n_gen', 'avg_ts', 'stddev_ts'];
  return numbers.every((name) => Number.isFinite((row as Record<string, unknown>)[name]));
}

const labelOf = ({ test, n_prompt, n_gen, n_depth }: ComparedRow): string =>
  test ?? `pp${n_prompt}+tg${n_gen} @ d${n_depth}`;

const keyOf = (row: ComparedRow): string =>
  [row.n_prompt, row.n_gen, row.n_depth, row.batch_size, row.n_ubatch, row.attention].join();

export function compareRuns(
  before: readonly ComparedRow[],
  after: readonly ComparedRow[],
): RunComparison {
  const suffix = stepSuffix([...before, ...after]);
  const nameOf = (row: ComparedRow) => labelOf(row) + suffix(row);
  const old = new Map(before.map((row) => [keyOf(row), row]));
  const fresh = new Set(after.map(keyOf));
  const rows = after.flatMap((row) => {
    const match = old.get(keyOf(row));
    return match === undefined ? [] : [compareRow(nameOf(row), match, row)];
  });
  const alone = [
    ...after.filter((row) => !old.has(keyOf(row))),
    ...before.filter((row) => !fresh.has(keyOf(row))),
  ];
  const commit = ([row]: readonly ComparedRow[]): string => row?.build_commit ?? 'unknown';
  return {
    rows,
    unmatched: alone.map((row) => `${nameOf(row)} ${row.attention ?? ''}`.trim()),
    sameDevice: before[0]?.gpu_info === after[0]?.gpu_info,
    commits: [commit(before), commit(after)],
  };
}

function compareRow(test: string, before: ComparedRow, after: ComparedRow): RunRatio {
  const rate = ({ avg_ts, stddev_ts }: ComparedRow) => ({ mean: avg_ts, sd: stddev_ts });
  return {
    test,
    attention: after.attention ?? '-',
    batch: after.batch_size ?? 1,
    before: rate(before),
    after: rate(after),
    ratio: ratio(rate(after), rate(before)),
  };
}

export function describeComparison({
  rows,
  unmatched,
  sameDevice,
  commits,
}: RunComparison): string {
  const [from, to] = commits;
  const titles = ['test', 'attention', 'batch', `t/s at ${from}`, `t/s at ${to}`, 'ratio'];
  const show = ({ mean, sd }: Statistics, digits: number) =>
    `${mean.toFixed(digits)} ± ${sd.toFixed(digits)}`;
  const cells = rows.map((row) => [
    ...[row.test, row.attention, String(row.batch)],
    ...[show(row.before, 1), show(row.after, 1), show(row.ratio, 3)],
  ]);
  const parts = [
    markdownTable([titles, ['---', '---', '---:', '---:', '---:', '---:'], ...cells]),
    'Ratio: the second file over the first, above 1 is faster; ± as of independent runs.',
  ];
  if (!sameDevice) parts.push('The runs are from different devices.');
  if (unmatched.length > 0) parts.push(`In one file only: ${unmatched.join(', ')}.`);
  return parts.join('\n\n');
}

import { formatLength, formatTable, type Column } from '../cli/format';
import { cellOf, type EvalArm, type EvalCell, type EvalResult } from './evaluate';
import type { TaskName } from './tasks';

/** A task at a length, with all depths together: one cell for each arm. */
interface Row {
  task: TaskName;
  length: number;
  cells: EvalCell[];
}

const right = { align: 'right' } as const;

/** The tables that `loza eval` prints. */
export function describeEval(result: EvalResult): string {
  const { arms, seed, dir } = result;
  const [first] = arms as [EvalArm, ...EvalArm[]];
  const rows = rowsOf(arms);
  const counts = [...new Set(rows.map(({ cells }) => cells[0]?.count ?? 0))];
  const patterns = arms.map(({ name, layerType }) => `${name} ${layerType}`).join(', ');
  return [
    `${dir}, ${first.device}, ${first.dtype}, seed ${seed}; 1 = streams: ${patterns}`,
    ...(rows.length === 0 ? [] : [describeRows(arms, rows), explain(counts)]),
    ...arms.flatMap((arm) => describeDepths(arm)),
    ...(first.perplexity.length === 0 ? [] : [describePerplexity(arms)]),
  ].join('\n\n');
}

/** All cells, one a line, with all depths apart. */
export function formatCellsCsv(result: EvalResult): string {
  const head = 'arm,layer_type,task,length,depth,count,right,share,low,high,recall,in_window';
  const lines = result.arms.flatMap(({ name, layerType, cells }) =>
    cells.map((cell) => {
      const {
        task,
        length,
        depth,
        count,
        right: correct,
        share,
        low,
        high,
        recall,
        inWindow,
      } = cell;
      const numbers = [share, low, high, recall, inWindow].map((value) => value.toFixed(4));
      return [name, `"${layerType}"`, task, length, depth ?? '', count, correct, ...numbers].join();
    }),
  );
  return [head, ...lines].join('\n');
}

function rowsOf(arms: readonly EvalArm[]): Row[] {
  const [first] = arms as [EvalArm];
  const keys = new Map(
    first.cells.map(({ task, length }) => [`${task} ${length}`, { task, length }]),
  );
  return [...keys.values()].map(({ task, length }) => ({
    ...{ task, length },
    cells: arms.map(({ answers }) =>
      cellOf(answers.filter((answer) => answer.task === task && answer.length === length)),
    ),
  }));
}

function describeRows(arms: readonly EvalArm[], rows: readonly Row[]): string {
  const columns: Column[] = [
    { title: 'task' },
    { title: 'tokens', ...right },
    { title: 'in window', ...right },
    ...arms.flatMap(({ name }, i) => [
      { title: name, ...right },
      ...(i === 0 ? [] : [{ title: 'kept', ...right }]),
    ]),
  ];
  const lines = rows.map(({ task, length, cells }) => {
    const full = cells[0] as EvalCell;
    return [
      ...[task, formatLength(length), percent(full.inWindow)],
      ...cells.flatMap((cell, i) => [
        `${percent(cell.share)} [${percent(cell.low)}, ${percent(cell.high)}]`,
        ...(i === 0 ? [] : [full.share > 0 ? percent(cell.share / full.share) : '-']),
      ]),
    ];
  });
  return formatTable(columns, lines);
}

function explain(counts: readonly number[]): string {
  const most = Math.max(...counts);
  const number = counts.length === 1 ? `${most}` : `${Math.min(...counts)} to ${most}`;
  const prompts = `${number} ${most === 1 ? 'prompt' : 'prompts'}`;
  return [
    `Percent of answers that have all that was asked, and the 95 % interval (Wilson); ${prompts}`,
    'a cell. "in window": prompts that test nothing, since streaming attentions see the answer.',
    '"kept": of the first arm.',
  ].join('\n');
}

/** Depth from top to bottom, length from left to right. */
function describeDepths({ name, cells }: EvalArm): string[] {
  const own = cells.filter(({ depth }) => depth !== undefined);
  const lengths = [...new Set(own.map(({ length }) => length))];
  const depths = [...new Set(own.map(({ depth }) => depth as number))];
  if (depths.length < 2) return [];
  const columns = [
    { title: `${name}, depth`, ...right },
    ...lengths.map((length) => ({ title: formatLength(length), ...right })),
  ];
  const rows = depths.map((depth) => [
    percent(depth),
    ...lengths.map((length) => {
      const cell = own.find((one) => one.depth === depth && one.length === length);
      return cell === undefined ? '' : percent(cell.share);
    }),
  ]);
  return [formatTable(columns, rows)];
}

function describePerplexity(arms: readonly EvalArm[]): string {
  const [first] = arms as [EvalArm];
  const columns = [
    { title: 'positions', ...right },
    { title: 'tokens', ...right },
    ...arms.map(({ name }) => ({ title: `${name}, nats (perplexity)`, ...right })),
  ];
  const rows = first.perplexity.map(({ from, to, count }, i) => [
    `${from}..${to - 1}`,
    String(count),
    ...arms.map(({ perplexity }) => {
      const bucket = perplexity[i];
      if (bucket === undefined) return '';
      const { loss, error, perplexity: value } = bucket;
      return `${loss.toFixed(3)} ±${error.toFixed(3)} (${value.toFixed(1)})`;
    }),
  ]);
  return formatTable(columns, rows);
}

const percent = (share: number): string => (share * 100).toFixed(1).replace(/\.0$/, '');

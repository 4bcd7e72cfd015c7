import Table from 'cli-table3';

const byteUnits = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];

/** 87293952 gives '83.3 MiB': three digits at least, never a lost one before the point. */
export function formatBytes(bytes: number): string {
  let unit = 0;
  let value = bytes;
  while (value >= 1023.5 && unit < byteUnits.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 ? value : threeDigits(value)} ${byteUnits[unit]}`;
}

/** 4715 gives '4,715'. */
export function formatCount(value: number): string {
  return value.toLocaleString('en-US', { maximumFractionDigits: 0 });
}

/** Tokens a second and the like: '1,092' or '74.8'. */
export function formatRate(value: number): string {
  return value >= 99.95 ? formatCount(value) : value.toFixed(1);
}

/** Milliseconds: '85 ms', '4.3 s', '2 min 5 s'. */
export function formatDuration(ms: number): string {
  if (ms < 999.5) return `${ms.toFixed(0)} ms`;
  if (ms < 59_950) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}

/** 0.608 gives '61%', 0.0123 '1.2%'. */
export function formatPercent(fraction: number): string {
  const percent = fraction * 100;
  return `${percent > 0 && percent < 9.95 ? percent.toFixed(1) : percent.toFixed(0)}%`;
}

/** Context lengths as people say them: 8192 gives '8K', 1048576 '1M', 5000 '5,000'. */
export function formatLength(tokens: number): string {
  if (tokens >= 2 ** 20 && tokens % 2 ** 20 === 0) return `${tokens / 2 ** 20}M`;
  if (tokens >= 1024 && tokens % 1024 === 0) return `${tokens / 1024}K`;
  return formatCount(tokens);
}

/** Very small and very large numbers, as in errors and frequencies: '1.2e-6'. */
export function formatTiny(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  return value === 0 ? '0' : value.toExponential(1);
}

export interface Column {
  title: string;
  align?: 'left' | 'right';
}

/** A table without borders: a line below the titles, two spaces between the columns. */
export function formatTable(columns: readonly Column[], rows: readonly string[][]): string {
  const none = { top: '', 'top-mid': '', 'top-left': '', 'top-right': '' };
  const sides = { left: '', 'left-mid': '', right: '', 'right-mid': '' };
  const bottom = { bottom: '', 'bottom-mid': '', 'bottom-left': '', 'bottom-right': '' };
  const table = new Table({
    head: columns.map(({ title }) => title),
    colAligns: columns.map(({ align = 'left' }) => align),
    chars: { ...none, ...sides, ...bottom, mid: '─', 'mid-mid': '──', middle: '  ' },
    style: { 'padding-left': 0, 'padding-right': 0, head: [], border: [], compact: true },
  });
  table.push(...rows);
  return trimLines(table.toString());
}

/** Names and values, one a line, the values aligned. Values of several lines are indented. */
export function formatFields(fields: readonly (readonly [name: string, value: string])[]): string {
  const width = Math.max(...fields.map(([name]) => name.length)) + 2;
  const lines = fields.map(([name, value]) => {
    return name.padEnd(width) + value.replaceAll('\n', `\n${' '.repeat(width)}`);
  });
  return trimLines(lines.join('\n'));
}

/** 'one layer', '2 layers'. */
export function plural(count: number, noun: string): string {
  return `${formatCount(count)} ${noun}${count === 1 ? '' : 's'}`;
}

/** On one line, and without characters that a terminal would obey. */
export function oneLine(text: string): string {
  return text.replace(/\p{Control}+/gu, ' ').trim();
}

function trimLines(text: string): string {
  return text.replace(/[ ]+$/gm, '');
}

function threeDigits(value: number): string {
  if (value >= 99.95) return value.toFixed(0);
  return value >= 9.995 ? value.toFixed(1) : value.toFixed(2);
}

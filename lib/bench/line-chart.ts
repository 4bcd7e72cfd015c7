/** One line of a chart; undefined where it has no point. */
export interface Series {
  name: string;
  values: readonly (number | undefined)[];
  /** Drawn solid with filled circles and values beside them, or dashed with hollow squares. */
  style: 'solid' | 'dashed';
}

export interface Chart {
  title: string;
  /** Labels of the points from left to right, evenly spaced. */
  labels: readonly string[];
  series: readonly Series[];
  scale: 'linear' | 'log';
}

export interface ChartSheet {
  title: string;
  subtitle: string;
  xTitle: string;
  yTitle: string;
  charts: readonly Chart[];
  footer: readonly string[];
}

const colours = { solid: '#0b5fa5', dashed: '#b3541e' } as const;
const ink = { text: '#1f2328', faint: '#656d76', grid: '#e3e6ea', base: '#8c959f' };
const panel = { width: 400, height: 300, left: 52, right: 16, top: 36, bottom: 48 };
const margin = { side: 20, top: 96, line: 17 };

/** Charts side by side on white, as an SVG document that needs nothing else. */
export function drawSheet(sheet: ChartSheet): string {
  const { charts, footer } = sheet;
  const width = 2 * margin.side + charts.length * panel.width;
  const height = margin.top + panel.height + 22 + footer.length * margin.line;
  const panels = charts.map((chart, i) => {
    const [x, y] = [margin.side + i * panel.width, margin.top];
    return `<g transform="translate(${x} ${y})">\n${drawChart(chart, sheet)}\n</g>`;
  });
  const notes = footer.map((line, i) => {
    const y = margin.top + panel.height + 22 + i * margin.line;
    return text(line, margin.side, y, { size: 12, fill: ink.faint });
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="Helvetica, Arial, sans-serif" role="img">`,
    `<title>${escape(sheet.title)}</title>`,
    `<rect width="${width}" height="${height}" fill="#ffffff"/>`,
    text(sheet.title, margin.side, 30, { size: 19, bold: true }),
    text(sheet.subtitle, margin.side, 52, { size: 13, fill: ink.faint }),
    drawLegend(charts[0]?.series ?? [], margin.side, 76),
    ...panels,
    ...notes,
    '</svg>',
    '',
  ].join('\n');
}

function drawLegend(series: readonly Series[], left: number, y: number): string {
  let x = left;
  const parts = series.map(({ name, style }) => {
    const line = `<line x1="${x}" y1="${y - 4}" x2="${x + 30}" y2="${y - 4}" ${stroke(style)}/>`;
    const label = text(name, x + 38, y, { size: 13 });
    const part = line + mark(style, x + 15, y - 4) + label;
    x += 38 + name.length * 7 + 28;
    return part;
  });
  return parts.join('\n');
}

function drawChart({ title, labels, series, scale }: Chart, sheet: ChartSheet): string {
  const values = series.flatMap((one) => one.values).filter((value) => value !== undefined);
  const ticks = scale === 'log' ? logTicks(values) : linearTicks(values);
  const [low, high] = [ticks[0] ?? 0, ticks.at(-1) ?? 1];
  const along = scale === 'log' ? Math.log2 : (value: number) => value;
  const right = panel.width - panel.right;
  const bottom = panel.height - panel.bottom;
  const step = (right - panel.left - 36) / Math.max(labels.length - 1, 1);
  const x = (i: number) => panel.left + 18 + i * step;
  const y = (value: number) =>
    bottom - ((along(value) - along(low)) / (along(high) - along(low))) * (bottom - panel.top);
  const grid = ticks.map((tick) => {
    const [at, isBase] = [y(tick).toFixed(1), tick === 1];
    const colour = isBase ? ink.base : ink.grid;
    const line = `<line x1="${panel.left}" y1="${at}" x2="${right}" y2="${at}" stroke="${colour}"/>`;
    return line + text(`${tick}×`, panel.left - 8, y(tick) + 4, { size: 12, anchor: 'end' });
  });
  const names = labels.map((label, i) =>
    text(label, x(i), bottom + 18, { size: 12, anchor: 'middle' }),
  );
  const middle = (panel.left + right) / 2;
  return [
    text(title, panel.left, 18, { size: 14, bold: true }),
    ...grid,
    ...names,
    text(sheet.xTitle, middle, bottom + 36, { size: 12, fill: ink.faint, anchor: 'middle' }),
    text(sheet.yTitle, panel.left, panel.top - 5, { size: 11, fill: ink.faint }),
    // What is drawn last lies on top.
    ...[...series].reverse().map((one) => drawSeries(one, x, y, isHighest(one, series))),
  ].join('\n');
}

function drawSeries(
  { values, style }: Series,
  x: (index: number) => number,
  y: (value: number) => number,
  isAbove: (index: number) => boolean,
): string {
  const points = values.flatMap((value, i) => (value === undefined ? [] : [[i, value] as const]));
  const path = points.map(([i, value]) => `${x(i).toFixed(1)},${y(value).toFixed(1)}`).join(' ');
  const marks = points.map(([i, value]) => mark(style, x(i), y(value)));
  const labels =
    style === 'dashed'
      ? []
      : points.map(([i, value]) =>
          text(showRatio(value), x(i), y(value) + (isAbove(i) ? -9 : 18), {
            ...{ size: 11, fill: colours[style], anchor: 'middle', halo: true },
          }),
        );
  return [`<polyline points="${path}" fill="none" ${stroke(style)}/>`, ...marks, ...labels].join(
    '',
  );
}

/** Whether no other series is higher at a point: then there is room above it. */
const isHighest =
  ({ values }: Series, all: readonly Series[]) =>
  (index: number): boolean =>
    all.every((other) => (other.values[index] ?? -Infinity) <= (values[index] ?? Infinity));

const showRatio = (value: number): string => (value >= 9.95 ? value.toFixed(1) : value.toFixed(2));

const stroke = (style: Series['style']): string =>
  `stroke="${colours[style]}" stroke-width="2"${style === 'dashed' ? ' stroke-dasharray="5 4"' : ''}`;

function mark(style: Series['style'], x: number, y: number): string {
  const [at, up] = [x.toFixed(1), y.toFixed(1)];
  if (style === 'solid') return `<circle cx="${at}" cy="${up}" r="4" fill="${colours.solid}"/>`;
  const corner = `x="${(x - 3.5).toFixed(1)}" y="${(y - 3.5).toFixed(1)}"`;
  return `<rect ${corner} width="7" height="7" fill="#ffffff" stroke="${colours.dashed}" stroke-width="1.5"/>`;
}

interface TextStyle {
  size: number;
  fill?: string;
  anchor?: 'start' | 'middle' | 'end';
  bold?: boolean;
  /** A white rim, for numbers on lines. */
  halo?: boolean;
}

function text(content: string, x: number, y: number, style: TextStyle): string {
  const { size, fill = ink.text, anchor = 'start', bold, halo } = style;
  const weight = bold ? ' font-weight="600"' : '';
  const rim = halo ? ' stroke="#ffffff" stroke-width="3" paint-order="stroke"' : '';
  const place = `x="${x.toFixed(1)}" y="${y.toFixed(1)}" font-size="${size}" fill="${fill}"`;
  return `<text ${place} text-anchor="${anchor}"${weight}${rim}>${escape(content)}</text>`;
}

const escape = (content: string): string =>
  content.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');

/** Powers of two around the values, 1 among them. */
export function logTicks(values: readonly number[]): number[] {
  const low = Math.min(0, Math.floor(Math.log2(Math.min(1, ...values))));
  const high = Math.max(1, Math.ceil(Math.log2(Math.max(1, ...values) * 1.1)));
  return Array.from({ length: high - low + 1 }, (_, i) => 2 ** (low + i));
}

/** Four to nine round numbers around the values, 1 among them. */
export function linearTicks(values: readonly number[]): number[] {
  const [low, high] = [Math.min(1, ...values), Math.max(1.2, ...values)];
  const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500];
  const step = steps.find((one) => (high - low) / one <= 7) ?? high / 5;
  const first = Math.floor(low / step + 1e-9);
  const last = Math.ceil((high * 1.02) / step);
  return Array.from({ length: last - first + 1 }, (_, i) =>
    Number(((first + i) * step).toFixed(6)),
  );
}

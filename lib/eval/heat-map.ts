import { formatLength } from '../cli/format';
import type { EvalArm, EvalResult } from './evaluate';

const ink = { text: '#1f2328', faint: '#656d76' };
const cell = { width: 64, height: 30 };
const margin = { left: 70, top: 92, between: 56, right: 24, bottom: 52 };

/** From wrong to right: the lightness falls evenly, so that it reads without colours too. */
const scale = [
  [178, 24, 43],
  [239, 138, 98],
  [253, 219, 199],
  [209, 229, 240],
  [103, 169, 207],
  [33, 102, 172],
] as const;

/** Pass keys found by depth and length, a panel for each arm, as an SVG document. Undefined without any. */
export function drawHeatMap(result: EvalResult): string | undefined {
  const panels = result.arms.map((arm) => cellsByDepth(arm));
  const [first] = panels;
  if (first === undefined || first.depths.length === 0) return undefined;
  const panelWidth = first.lengths.length * cell.width;
  const height = margin.top + first.depths.length * cell.height + margin.bottom;
  const width =
    margin.left + panels.length * (panelWidth + margin.between) - margin.between + margin.right;
  const drawn = panels.map((panel, i) => {
    const x = margin.left + i * (panelWidth + margin.between);
    return drawPanel(panel, result.arms[i] as EvalArm, x);
  });
  const title = 'Pass keys found, by depth and length';
  const notes = `${result.dir.split('/').at(-1)}, seed ${result.seed}, ${first.count} prompts a cell, percent`;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${Math.max(width, 420)}" height="${height}" viewBox="0 0 ${Math.max(width, 420)} ${height}" font-family="Helvetica, Arial, sans-serif" role="img">`,
    `<title>${title}</title>`,
    `<rect width="100%" height="100%" fill="#ffffff"/>`,
    text(title, 20, 30, { size: 18, bold: true }),
    text(notes, 20, 50, { size: 12, fill: ink.faint }),
    ...drawn,
    '</svg>',
    '',
  ].join('\n');
}

interface Panel {
  lengths: number[];
  depths: number[];
  count: number;
  share(length: number, depth: number): number | undefined;
}

function cellsByDepth({ cells }: EvalArm): Panel {
  const own = cells.filter(({ depth }) => depth !== undefined);
  return {
    lengths: [...new Set(own.map(({ length }) => length))].sort((a, b) => a - b),
    depths: [...new Set(own.map(({ depth }) => depth as number))].sort((a, b) => a - b),
    count: own[0]?.count ?? 0,
    share: (length, depth) =>
      own.find((one) => one.length === length && one.depth === depth)?.share,
  };
}

function drawPanel(panel: Panel, { name, layerType }: EvalArm, left: number): string {
  const { lengths, depths } = panel;
  const bottom = margin.top + depths.length * cell.height;
  const boxes = depths.flatMap((depth, row) =>
    lengths.map((length, column) => {
      const share = panel.share(length, depth);
      if (share === undefined) return '';
      const [x, y] = [left + column * cell.width, margin.top + row * cell.height];
      const box = `<rect x="${x}" y="${y}" width="${cell.width - 2}" height="${cell.height - 2}" rx="3" fill="${colourOf(share)}"/>`;
      const fill = share < 0.15 || share > 0.75 ? '#ffffff' : ink.text;
      const middle = { x: x + cell.width / 2 - 1, y: y + cell.height / 2 + 3 };
      const label = text((share * 100).toFixed(0), middle.x, middle.y, {
        ...{ size: 12, fill, anchor: 'middle' },
      });
      return box + label;
    }),
  );
  const depthNames = depths.map((depth, row) =>
    text(`${Number((depth * 100).toFixed(1))} %`, left - 8, margin.top + row * cell.height + 18, {
      ...{ size: 11, fill: ink.faint, anchor: 'end' },
    }),
  );
  const lengthNames = lengths.map((length, column) =>
    text(formatLength(length), left + column * cell.width + cell.width / 2 - 1, bottom + 16, {
      ...{ size: 12, anchor: 'middle' },
    }),
  );
  return [
    text(`${name}  ${layerType}`, left, margin.top - 12, { size: 13, bold: true }),
    ...boxes,
    ...depthNames,
    ...lengthNames,
    text('tokens', left, bottom + 34, { size: 11, fill: ink.faint }),
  ].join('\n');
}

/** A colour of the scale, between its steps in proportion. */
function colourOf(share: number): string {
  const at = share * (scale.length - 1);
  const step = Math.min(Math.floor(at), scale.length - 2);
  const [from, to] = [scale[step], scale[step + 1]] as [readonly number[], readonly number[]];
  const mixed = from.map((value, i) =>
    Math.round(value + ((to[i] as number) - value) * (at - step)),
  );
  return `rgb(${mixed.join()})`;
}

interface TextStyle {
  size: number;
  fill?: string;
  anchor?: 'start' | 'middle' | 'end';
  bold?: boolean;
}

function text(content: string, x: number, y: number, style: TextStyle): string {
  const { size, fill = ink.text, anchor = 'start', bold } = style;
  const weight = bold ? ' font-weight="600"' : '';
  const escaped = content.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
  return `<text x="${x}" y="${y}" font-size="${size}" fill="${fill}" text-anchor="${anchor}"${weight}>${escaped}</text>`;
}

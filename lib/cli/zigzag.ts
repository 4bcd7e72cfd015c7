import { plural } from './format';

/** An attention in a drawing: full ones stand above, streaming ones below. */
export const glyphs = { full: '●', streaming: '○' } as const;

const labels = ['full       ', 'streaming  '] as const;
/** Room for ' 128-255' behind a row. */
const rangeWidth = 10;

interface Row {
  first: number;
  top: string;
  bottom: string;
}

/**
 * A layer pattern as a zigzag: two lines, full attentions on the upper, streaming ones on the lower,
 * joined where the pattern changes level. Wraps at `width`, and then names the attentions of a row.
 *
 *     full        ╭●╮   ╭●●●
 *     streaming  ○╯ ╰○○○╯
 */
export function drawZigzag(layerType: string, width: number): string {
  const rows = splitRows(layerType, Math.max(width - labels[0].length - rangeWidth, 3));
  return rows
    .map(({ first, top, bottom }, i) => {
      const last = (rows[i + 1]?.first ?? layerType.length) - 1;
      const range = rows.length > 1 ? `  ${first}-${last}` : '';
      return `${labels[0]}${top}${range}\n${labels[1]}${bottom}`.replace(/ +$/gm, '');
    })
    .join('\n\n');
}

/** What the marks mean, with how many there are. */
export function zigzagLegend(pattern: {
  layerType: string;
  sinkBlocks: number;
  localBlocks: number;
}): string {
  const { layerType, sinkBlocks, localBlocks } = pattern;
  const streaming = [...layerType].filter((type) => type === '1').length;
  const full = layerType.length - streaming;
  const keep = (count: number) => (count === 1 ? 'keeps' : 'keep');
  const above = `${glyphs.full} ${plural(full, 'full attention')}: ${keep(full)} every token`;
  if (streaming === 0) return above;
  const kept = `the first ${sinkBlocks * 128} and about the last ${localBlocks * 128} tokens`;
  const below = `${glyphs.streaming} ${plural(streaming, 'streaming attention')}`;
  return `${above}\n${below}: ${keep(streaming)} ${kept}`;
}

/** The pattern on one line: '○●○○○●●●'. */
export function drawInline(layerType: string): string {
  return [...layerType].map((type) => (type === '1' ? glyphs.streaming : glyphs.full)).join('');
}

function splitRows(layerType: string, width: number): Row[] {
  const rows: Row[] = [];
  let row: Row | undefined;
  [...layerType].forEach((type, index) => {
    const changes = row !== undefined && type !== layerType[index - 1];
    const needed = changes ? 2 : 1;
    if (row === undefined || row.top.length + needed > width) {
      row = { first: index, top: '', bottom: '' };
      rows.push(row);
    } else if (changes) {
      row.top += type === '1' ? '╮' : '╭';
      row.bottom += type === '1' ? '╰' : '╯';
    }
    row.top += type === '1' ? ' ' : glyphs.full;
    row.bottom += type === '1' ? glyphs.streaming : ' ';
  });
  return rows;
}

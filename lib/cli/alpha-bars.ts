import { glyphs } from './zigzag';

const levels = '▁▂▃▄▅▆▇█';
const eighths = ' ▏▎▍▌▋▊▉█';

/** Alphas as a row of bars, one character each: '█▅▁█'. */
export function drawAlphaRow(alphas: readonly number[]): string {
  const last = levels.length - 1;
  return alphas.map((alpha) => levels[Math.round(alpha * last)] ?? '?').join('');
}

/** Alphas as bars below each other, with the attention and what it becomes. */
export function drawAlphaBars(alphas: readonly number[], layerType: string, width: number): string {
  const digits = String(alphas.length - 1).length;
  const room = Math.max(width - digits - 12, 8);
  return alphas
    .map((alpha, i) => {
      const glyph = layerType[i] === '1' ? glyphs.streaming : glyphs.full;
      const bar = drawBar(alpha, room);
      return `${String(i).padStart(digits)} ${glyph} ${alpha.toFixed(3)} ${bar}`.trimEnd();
    })
    .join('\n');
}

/** A bar of at most `room` characters, to an eighth of one. */
function drawBar(alpha: number, room: number): string {
  const parts = Math.round(alpha * room * 8);
  const rest = parts % 8;
  return '█'.repeat(Math.floor(parts / 8)) + (rest > 0 ? eighths[rest] : '');
}

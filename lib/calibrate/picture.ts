/** What the picture shows of a calibration. */
export interface AlphaPicture {
  title: string;
  subtitle: string;
  alphas: readonly number[];
  layerType: string;
  /** Attentions in a layer: they stand together. */
  perLayer: number;
}

const ink = { text: '#1f2328', faint: '#656d76', grid: '#e3e6ea' };
const colours = { '0': '#0b5fa5', '1': '#e0a458' } as const;
const size = {
  left: 48,
  right: 24,
  top: 104,
  plot: 220,
  bottom: 64,
  bar: 14,
  gap: 3,
  layerGap: 10,
};
const leastWidth = 480;

/**
 * The alphas as bars from the first layer to the last, streaming attentions in another colour than
 * full ones: an SVG document that needs nothing else.
 */
export function drawAlphas({ title, subtitle, alphas, layerType, perLayer }: AlphaPicture): string {
  const x = (i: number) =>
    size.left + 12 + i * (size.bar + size.gap) + Math.floor(i / perLayer) * size.layerGap;
  const bottom = size.top + size.plot;
  const right = x(alphas.length - 1) + size.bar + 12;
  const width = Math.max(right + size.right, leastWidth);
  const height = bottom + size.bottom;
  const y = (alpha: number) => bottom - alpha * size.plot;
  const grid = [0, 0.25, 0.5, 0.75, 1].map(
    (tick) =>
      `<line x1="${size.left}" y1="${y(tick)}" x2="${right}" y2="${y(tick)}" stroke="${ink.grid}"/>` +
      text(String(tick), size.left - 8, y(tick) + 4, 'end', ink.faint),
  );
  const bars = alphas.map((alpha, i) => {
    const tall = Math.max(alpha * size.plot, 1.5); // an alpha of 0 too is there
    const kind = layerType[i] === '1' ? '1' : '0';
    const name = `<title>attention ${i}: ${alpha.toFixed(4)}, ${kind === '1' ? 'streaming' : 'full'}</title>`;
    return `<rect x="${x(i)}" y="${(bottom - tall).toFixed(1)}" width="${size.bar}" height="${tall.toFixed(1)}" fill="${colours[kind]}">${name}</rect>`;
  });
  const every = Math.ceil(alphas.length / perLayer / 16);
  const layers = alphas.flatMap((_, i) => {
    const layer = i / perLayer;
    if (i % perLayer !== 0 || layer % every !== 0) return [];
    const middle = (x(i) + x(i + perLayer - 1) + size.bar) / 2;
    return text(String(layer), middle, bottom + 18, 'middle', ink.faint);
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="Helvetica, Arial, sans-serif" font-size="12" role="img">`,
    `<title>${escape(title)}</title>`,
    `<rect width="${width}" height="${height}" fill="#ffffff"/>`,
    `<text x="20" y="30" font-size="19" font-weight="600" fill="${ink.text}">${escape(title)}</text>`,
    text(subtitle, 20, 52, 'start', ink.faint),
    legend('0', 'full attention', 20),
    legend('1', 'streaming attention', 140),
    ...grid,
    ...bars,
    ...layers,
    text('layer', (size.left + right) / 2, bottom + 40, 'middle', ink.faint),
    text('alpha', size.left, size.top - 10, 'end', ink.faint),
    '</svg>',
    '',
  ].join('\n');
}

function legend(kind: keyof typeof colours, name: string, x: number): string {
  const square = `<rect x="${x}" y="66" width="12" height="12" fill="${colours[kind]}"/>`;
  return square + text(name, x + 18, 76, 'start', ink.text);
}

function text(content: string, x: number, y: number, anchor: string, fill: string): string {
  const place = `x="${x.toFixed(1)}" y="${y.toFixed(1)}" text-anchor="${anchor}"`;
  return `<text ${place} fill="${fill}">${escape(content)}</text>`;
}

const escape = (content: string): string =>
  content.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');

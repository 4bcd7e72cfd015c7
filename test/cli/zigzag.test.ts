import fc from 'fast-check';

import { drawInline, drawZigzag, zigzagLegend } from '../../lib/cli/zigzag';

test('full attentions stand above, streaming ones below', () => {
  expect(drawZigzag('10111000', 80)).toBe(
    ['full        ╭●╮   ╭●●●', 'streaming  ○╯ ╰○○○╯'].join('\n'),
  );
  expect(drawZigzag('000', 80)).toBe('full       ●●●\nstreaming');
  expect(drawZigzag('11', 80)).toBe('full\nstreaming  ○○');
  expect(drawInline('101')).toBe('○●○');
});

test('wraps, and then names the attentions of each row', () => {
  expect(drawZigzag('0101', 24)).toBe(
    ['full       ●╮   0-1', 'streaming   ╰○', '', 'full       ●╮   2-3', 'streaming   ╰○'].join(
      '\n',
    ),
  );
});

test('any pattern can be read back, at any width', () => {
  const pattern = fc.string({ unit: fc.constantFrom('0', '1'), minLength: 1, maxLength: 130 });
  fc.assert(
    fc.property(pattern, fc.integer({ min: 40, max: 200 }), (layerType, width) => {
      const lines = drawZigzag(layerType, width).split('\n');
      expect(Math.max(...lines.map((line) => line.length))).toBeLessThanOrEqual(width);
      expect(readBack(lines)).toBe(layerType);
    }),
  );
});

test('the legend counts both kinds and says what streaming ones keep', () => {
  const legend = zigzagLegend({ layerType: '100', sinkBlocks: 1, localBlocks: 7 });
  expect(legend).toContain('● 2 full attentions: keep every token');
  expect(legend).toContain('○ 1 streaming attention: keeps the first 128 and about the last 896');
  const full = zigzagLegend({ layerType: '0', sinkBlocks: 0, localBlocks: 0 });
  expect(full).toBe('● 1 full attention: keeps every token');
});

/** The pattern that a drawing shows. */
function readBack(lines: readonly string[]): string {
  let pattern = '';
  for (let i = 0; i < lines.length; i += 3) {
    const [top = '', bottom = ''] = [lines[i], lines[i + 1]];
    for (let column = 11; column < Math.max(top.length, bottom.length); column++) {
      if (top[column] === '●') pattern += '0';
      else if (bottom[column] === '○') pattern += '1';
    }
  }
  return pattern;
}

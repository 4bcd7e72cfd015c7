import { readFileSync } from 'node:fs';
import path from 'node:path';

import type { EvalResult } from '../../lib/eval/evaluate';
import { tempFolder } from '../support/temp-folder';
import { describeCli, expectFailure, loza, lozaJson, tiny } from './cli';

const short = ['eval', tiny, '--device', 'cpu', '--lengths', '400', '--depths', '2', '-n', '1'];

describeCli('loza eval', () => {
  test('a table and a picture of pass keys', async () => {
    const svg = path.join(tempFolder(), 'keys.svg');
    const { code, stdout, stderr } = await loza([...short, '--tasks', 'passkey', '--svg', svg]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toMatch(/^passkey +400 +100 +\S+ \[/m);
    expect(readFileSync(svg, 'utf8')).toMatch(/^<svg [^]*<\/svg>\n$/);
  });

  test('--json has the cells of every arm', async () => {
    const flags = ['--tasks', 'lines,passkey', '--attention', 'odd,full'];
    const { arms } = await lozaJson<EvalResult>([...short, ...flags]);
    expect(arms.map(({ name, layerType }) => [name, layerType])).toEqual([
      ['odd', '01010101'],
      ['full', '00000000'],
    ]);
    for (const { cells } of arms) expect(cells.map(({ count }) => count)).toEqual([1, 1, 1]);
  });

  test.each([
    [['--tasks', 'none'], /passkey, multikey/],
    [['--attention', 'half'], /streaming/],
    [['--depths', '1.5'], /0 to 1/],
    [['--haystack', 'no-such-file'], /no-such-file/],
  ])('%j is refused', async (flags, said) => {
    await expectFailure([...short, ...flags], said);
  });
});

import { randomIntegers, statistics } from '../../lib/cli/bench';
import { describeCli, expectFailure, loza, lozaJson, tiny } from './cli';

test('mean and sample standard deviation', () => {
  expect(statistics([1, 3])).toEqual({ mean: 2, sd: Math.SQRT2 });
  expect(statistics([5])).toEqual({ mean: 5, sd: 0 });
});

test('random prompts depend on the seed alone and stay in range', () => {
  const draw = (seed: number) => Array.from({ length: 2000 }, randomIntegers(seed, 50));
  expect(draw(1)).toEqual(draw(1));
  expect(draw(1)).not.toEqual(draw(2));
  expect(new Set(draw(1)).size).toBe(50);
  expect(Math.max(...draw(7))).toBe(49);
});

describeCli('loza bench', () => {
  const small = ['bench', tiny, '-p', '16,32', '-n', '4', '-r', '2'];

  test('a row for each attention and prompt length', async () => {
    const { rows } = await lozaJson<{ rows: Record<string, unknown>[] }>(small);
    expect(rows.map(({ attention, promptTokens }) => [attention, promptTokens])).toEqual([
      ['full', 16],
      ['full', 32],
      ['auto', 16],
      ['auto', 32],
    ]);
    for (const row of rows) {
      expect(row).toMatchObject({ newTokens: 4, runs: 2, device: expect.any(String) });
      expect((row['prefill'] as { mean: number }).mean).toBeGreaterThan(0);
      expect((row['decode'] as { mean: number }).mean).toBeGreaterThan(0);
    }
  });

  test('-o md is a Markdown table, -o json the same as --json', async () => {
    const markdown = await loza([...small, '--attention', '11111111']);
    expect(markdown.code).toBe(0);
    const lines = markdown.stdout.trimEnd().split('\n');
    expect(lines).toHaveLength(4);
    expect(lines[2]).toMatch(/^\| 11111111 +\| +16 \| +4 \| +\S+ ± \S+ \| +\S+ ± \S+ \|$/);
    const json = await loza([...small, '-o', 'json', '--attention', 'full']);
    expect(JSON.parse(json.stdout)).toMatchObject({ seed: 1, rows: [{}, {}] });
  });

  test('errors', async () => {
    await expectFailure(['bench', tiny, '-p', '8190', '-n', '4'], /8,193 positions.*8,192/);
    await expectFailure(['bench', tiny, '-p', '16,x'], /whole number/);
  });
});

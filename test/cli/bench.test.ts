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

  test('a preset with dummy weights', async () => {
    const sizes = ['--layers', '2', '--experts', '4', '--zero-experts', '2'];
    const dummy = ['bench', tiny, '--load-format', 'dummy', ...sizes];
    const { rows } = await lozaJson<{ rows: Record<string, unknown>[] }>([
      ...dummy,
      ...['-p', '16', '-n', '4', '-r', '1', '--attention', 'full'],
    ]);
    expect(rows).toEqual([expect.objectContaining({ layerType: '0000' })]);
    await expectFailure(['bench', tiny, '--layers', '2'], /loadFormat: "dummy"/);
  });
});

describeCli('loza bench kernels', () => {
  const small = ['bench', 'kernels', '--small', '--device', 'cpu'];

  test('chosen cases, as Markdown and as JSON', async () => {
    const markdown = await loza([...small, '--case', '^decode: streaming']);
    expect(markdown.code).toBe(0);
    expect(markdown.stdout).toMatch(/^Measured limits: copy .* TB\/s/m);
    expect(markdown.stdout.match(/^\| streaming, /gm)).toHaveLength(4);
    const object = await lozaJson<Record<string, unknown>>([...small, '--case', 'rms_norm']);
    expect(object).toMatchObject({
      date: expect.stringMatching(/^\d{4}-\d\d-\d\d$/),
      device: { kind: 'cpu' },
      driver: null,
      small: true,
      rows: [{ table: 'everything else' }, {}],
    });
    expect(object).toHaveProperty('commit');
  });

  test('predictions need no addon', async () => {
    const env = { LOZA_ADDON_PATH: '/nowhere/loza.node' };
    const { code, stdout } = await loza(['bench', 'kernels', '--gpu', 'h20'], { env });
    expect(code).toBe(0);
    expect(stdout).toMatch(/^Predictions for an H20/);
  });

  test('errors', async () => {
    await expectFailure([...small, '--case', 'nothing like it'], /no case matches/);
    await expectFailure(['bench', 'kernels', '--gpu', 'h800'], /h20/);
  });
});

describeCli('loza bench stack', () => {
  test('steps and a table of operations each', async () => {
    const sizes = ['--prompt', '64', '--context', '200', '--batch', '1,2', '--runs', '2'];
    const args = ['bench', 'stack', tiny, '--small', '--device', 'cpu', ...sizes];
    const { stdout, code } = await loza(args);
    expect(code).toBe(0);
    for (const name of ['prefill, 64 tokens', 'decode, batch 2, context 200']) {
      expect(stdout).toContain(`| ${name} `);
      expect(stdout).toContain(`### ${name}\n`);
    }
    const { rows, device } = await lozaJson<{ rows: object[]; device: object }>(args);
    expect(rows).toHaveLength(3);
    expect(rows[1]).toMatchObject({ name: 'decode, batch 1, context 200', batch: 1 });
    expect(device).toMatchObject({ kind: 'cpu' });
  });
});

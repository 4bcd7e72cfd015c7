import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

import type { BenchRow } from '../../lib/bench/ab-report';
import { describeCli, expectFailure, loza, lozaJson, tiny } from './cli';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'loza-bench-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

describeCli('loza bench', () => {
  const cpu = ['bench', tiny, '--device', 'cpu', '--no-profile'];
  const small = [...cpu, '-p', '16-32*2', '-n', '4', '-r', '2'];

  test('a row for each test and arm, under the names of llama-bench', async () => {
    const rows = await lozaJson<BenchRow[]>(small);
    expect(rows.map(({ test, attention }) => [test, attention])).toEqual([
      ...['pp16', 'pp32', 'tg4'].flatMap((name) => [
        [name, 'full'],
        [name, 'loza'],
      ]),
    ]);
    for (const row of rows) {
      expect(row).toMatchObject({
        backend: 'cpu',
        n_depth: 0,
        batch_size: 1,
        weights: 'checkpoint',
      });
      expect(row.samples_ns).toHaveLength(2);
      expect(row.avg_ts).toBeGreaterThan(0);
    }
    expect(rows.map(({ speedup }) => speedup === null)).toEqual([
      true,
      false,
      true,
      false,
      true,
      false,
    ]);
  });

  test('-o md shows where, what, and that it was checked', async () => {
    const { code, stdout } = await loza([
      ...small,
      '-pg',
      '16,4',
      '-d',
      '128',
      '--attention',
      'full',
    ]);
    expect(code).toBe(0);
    expect(stdout).toContain('attentions (1 streams): full 00000000.');
    expect(stdout).toMatch(/^Checked first: finite logits/m);
    expect(stdout.match(/^\| pp16\+tg4 @ d128 +\| full /gm)).toHaveLength(2);
  });

  test('-o jsonl and csv have a line a row; synonyms are those of vLLM', async () => {
    const words = [
      '--input-len',
      '16',
      '--output-len',
      '0',
      '--num-iters',
      '1',
      '--batch-size',
      '2',
    ];
    const jsonl = await loza([...cpu, ...words, '-ub', '16', '-o', 'jsonl']);
    const rows = jsonl.stdout
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line) as BenchRow);
    expect(rows).toHaveLength(2);
    expect(rows[0]).toMatchObject({ test: 'pp16', batch_size: 2, n_ubatch: 16 });
    const csv = await loza([...cpu, ...words, '--no-warmup', '-o', 'csv']);
    expect(csv.stdout.trimEnd().split('\n')).toHaveLength(3);
  });

  test('errors', async () => {
    await expectFailure(['bench', tiny, '-p', '8192', '-d', '1'], /8,193 positions.*8,192/);
    const named = /option '-p, --prompt <n,...>' .*whole number.*See loza bench model --help/;
    await expectFailure(['bench', tiny, '-p', '16,x'], named);
    await expectFailure(['bench', tiny, '-p', '0', '-n', '0'], /no test is left/);
    await expectFailure(['bench', tiny, '--batch-size', '0'], /at least 1/);
    await expectFailure(['bench', tiny, '--attention', 'half'], /full, loza or a pattern/);
    await expectFailure(['bench', tiny, '--layers', '2'], /need --load-format dummy/);
  });

  test('dummy weights', async () => {
    const sizes = ['--layers', '2', '--experts', '4', '--zero-experts', '2'];
    const dummy = [...cpu, '--load-format', 'dummy', ...sizes];
    const words = ['-p', '16', '-n', '0', '-r', '1', '-d', '2K', '--attention', '1010,full'];
    const rows = await lozaJson<BenchRow[]>([...dummy, ...words]);
    const base = { depth_fill: 'random', weights: 'dummy' };
    expect(rows).toEqual([
      expect.objectContaining({ ...base, layer_type: '1010' }),
      expect.objectContaining({ ...base, layer_type: '0000' }),
    ]);
  });

  test('--dry-run prints the plan of a model that no test machine holds', async () => {
    const words = ['--load-format', 'dummy', '-p', '8K', '-n', '0', '-d', '64K', '--dry-run'];
    const preset = ['bench', 'longcat-flash', ...words, '--device', 'cuda', '--layers', '4'];
    const plan = await lozaJson<{ arms: { weights_bytes: number; tests: object[] }[] }>(preset);
    expect(plan.arms).toHaveLength(2);
    expect(plan.arms[0]?.weights_bytes).toBeGreaterThan(100 * 2 ** 30);
    const kv = 8 * 72 * 1024 * 1152;
    expect(plan.arms[0]?.tests).toEqual([
      { test: 'pp8192 @ d65536', batch_size: 1, kv_resident_bytes: kv, kv_freed_bytes: 0 },
    ]);
  });
});

describeCli('loza bench compare', () => {
  test('ratios, and an exit code where one is too low', async () => {
    const row = { n_prompt: 512, n_gen: 0, n_depth: 0, stddev_ts: 1, test: 'pp512' };
    const files = [100, 90].map((avg_ts) => {
      const file = path.join(folder, `${avg_ts}.json`);
      writeFileSync(file, JSON.stringify([{ ...row, avg_ts, attention: 'loza' }]));
      return file;
    });
    const compare = ['bench', 'compare', ...files];
    const { code, stdout } = await loza([...compare, '--fail-below', '0.9']);
    expect(code).toBe(0);
    expect(stdout).toContain('0.900 ± 0.013');
    const failed = await loza([...compare, '--fail-below', '0.95']);
    expect(failed.code).toBe(1);
    expect(failed.stdout).toContain('0.900');
    expect(failed.stderr).toBe('loza: 1 test below 0.95: pp512 loza\n');
    const json = await lozaJson<{ rows: { ratio: { mean: number } }[] }>(compare);
    expect(json.rows[0]?.ratio.mean).toBeCloseTo(0.9, 12);
    await expectFailure(['bench', 'compare', `${folder}/none.json`, files[0] ?? ''], /none\.json/);
  });
});

describeCli('loza bench figure3', () => {
  test('measures, draws and tabulates', async () => {
    const svg = path.join(folder, 'figure3.svg');
    const sizes = ['--layers', '1', '--experts', '2', '--zero-experts', '1'];
    const lengths = [
      '--from',
      '128',
      '--to',
      '512',
      '--chunk',
      '256',
      '--steps',
      '2',
      '--batch',
      '2',
    ];
    const args = ['bench', 'figure3', tiny, '--device', 'cpu', ...sizes, ...lengths];
    const { code, stdout } = await loza([...args, '-o', `svg:${svg}`]);
    expect(code).toBe(0);
    expect(stdout).toContain('### Decode attention kernel, batch 1');
    expect(stdout).toMatch(/^Checked first: /m);
    expect(readFileSync(svg, 'utf8')).toMatch(/^<svg /);
  }, 30_000);

  test('predicts for an H20 without an addon', async () => {
    const env = { LOZA_ADDON_PATH: '/nowhere/loza.node' };
    const args = ['bench', 'figure3', '--gpu', 'h20', '--to', '1M'];
    const report = await lozaJson<{ panels: Record<string, { paper?: number }[]> }>(args, { env });
    expect(report).toMatchObject({ predictedFor: 'h20', yarnFactor: 8, layers: 4, experts: 64 });
    expect(report.panels['prefill']).toHaveLength(9);
    expect(report.panels['prefill']?.[0]?.paper).toBe(0.99);
  });

  test('errors', async () => {
    await expectFailure(['bench', 'figure3', '--to', '100K'], /powers of two/);
    await expectFailure(['bench', 'figure3', '-o', 'png'], /svg:FILE/);
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

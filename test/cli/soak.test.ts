import { growth, trend } from '../../lib/cli/memory-watch';
import type { SoakReport } from '../../lib/cli/soak';
import { describeCli, expectFailure, golden, loza, lozaJson } from './cli';

describeCli('loza soak', () => {
  const flags = ['soak', golden('longcat-zigzag-yarn'), '--device', 'cpu'];

  test('reports every cycle with its looks at memory', async () => {
    const { device, cycles } = await lozaJson<{ device: string; cycles: SoakReport[] }>([
      ...flags,
      ...['--loads', '20', '--aborts', '20'],
    ]);
    expect(device).toBe('cpu');
    expect(cycles.map(({ cycle }) => cycle)).toEqual(['load and close', 'aborted generation']);
    for (const { cycles: count, warmUp, host, allocated, hostGrowth, ...report } of cycles) {
      expect({ count, warmUp }).toEqual({ count: 20, warmUp: 2 });
      expect(report).toMatchObject({ device: null, deviceGrowth: null, trend: null, passed: true });
      expect(host).toHaveLength(20);
      expect(allocated).toHaveLength(20);
      expect(hostGrowth).toBe(growth(host));
    }
  });

  test('prints a table, and leaves out what was not asked for', async () => {
    const { code, stdout, stderr } = await loza([...flags, '--loads', '3', '--aborts', '0']);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toMatch(/^load and close +3 .* PASS$/m);
    expect(stdout).not.toContain('aborted generation');
  });

  test('mixed work: requests of every kind, and no block that stays', async () => {
    const { cycles } = await lozaJson<{ cycles: SoakReport[] }>([...flags, '--minutes', '0.03']);
    expect(cycles).toEqual([expect.objectContaining({ cycle: 'mixed work' })]);
    const { cycles: requests, work, host } = cycles[0]!;
    expect(requests).toBeGreaterThan(12);
    expect(work?.tokens).toBeGreaterThan(1000);
    expect(work?.cachedTokens).toBeGreaterThan(0);
    expect(work?.sessions).toBeGreaterThan(0);
    expect(host).toHaveLength(20);
  });

  test('a folder that is no checkpoint is an error', async () => {
    await expectFailure(['soak', '/nowhere'], /\/nowhere/);
  });
});

test('growth is between the halves, and peaks are none', () => {
  expect(growth([10, 10, 12, 30, 11, 10])).toBe(0);
  expect(growth([10, 20, 30, 40, 50, 60])).toBe(30);
  expect(growth([50, 40, 30, 20])).toBe(-20);
  expect(growth([7])).toBe(0);
});

describe('the trend of what is allocated', () => {
  const cycles = Array.from({ length: 20 }, (_, i) => 200 * (i + 1));
  const noise = (i: number) => 40_000 * Math.sin(i * i);
  const of = (bytesAt: (cycle: number, i: number) => number) =>
    trend(
      cycles,
      cycles.map((cycle, i) => 1e8 + bytesAt(cycle, i) + noise(i)),
    );

  test('is what each cycle of the second half adds', () => {
    expect(of((cycle) => 1024 * cycle)).toBeCloseTo(1024, -2);
    expect(Math.abs(of(() => 0)!)).toBeLessThan(100);
  });

  test('is not what comes at the beginning, or once', () => {
    expect(Math.abs(of((cycle) => 1024 * Math.min(cycle, 1800))!)).toBeLessThan(100);
    expect(Math.abs(of((_, i) => (i < 17 ? 0 : 3e6))!)).toBeLessThan(200);
    expect(Math.abs(of((_, i) => (i === 14 ? 3e6 : 0))!)).toBeLessThan(100);
  });

  test('says nothing of few cycles', () => {
    expect(trend([10, 20, 30, 40], [0, 1e6, 2e6, 3e6])).toBeNull();
  });
});

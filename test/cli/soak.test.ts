import { growth } from '../../lib/cli/memory-watch';
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
    await expectFailure(['soak', '--loads', '0', '--aborts', '0'], /nothing to do/);
  });
});

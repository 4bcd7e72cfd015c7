import { growth, type SoakReport } from '../../lib/cli/soak';
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
    for (const { cycles: count, warmUp, host, device: onDevice, hostGrowth } of cycles) {
      expect({ count, warmUp, onDevice }).toEqual({ count: 20, warmUp: 2, onDevice: null });
      expect(host).toHaveLength(10);
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
    expect(cycles[0]?.cycles).toBeGreaterThan(12);
    expect(cycles[0]?.tokens).toBeGreaterThan(1000);
    expect(cycles[0]?.host).toHaveLength(10);
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

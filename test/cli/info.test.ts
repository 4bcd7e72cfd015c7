import { describeCli, loza, lozaJson, root } from './cli';

interface InfoObject {
  version: string;
  commit: string | null;
  node: string;
  package: string;
  addon: { path: string | null; cuda: boolean | null; error: { code: string } | null };
  devices: { kind: string; usable: boolean; reason: string }[];
}

describeCli('loza info', () => {
  test('names the build and the devices', async () => {
    const info = await lozaJson<InfoObject>(['info']);
    expect(info).toMatchObject({ node: process.version, package: root, addon: { error: null } });
    expect(info.version).toMatch(/^\d+\.\d+\.\d+/);
    expect(info.addon.path).toMatch(/loza\.node$/);
    expect(typeof info.addon.cuda).toBe('boolean');
    const cpu = info.devices.find(({ kind }) => kind === 'cpu');
    expect(cpu).toMatchObject({ usable: true, reason: '' });
    for (const { usable, reason } of info.devices) expect(reason === '').toBe(usable);
    const { stdout } = await loza(['info']);
    expect(stdout).toContain(info.addon.path);
    expect(stdout).toMatch(/^cpu .*cores?/m);
  });

  test('works without git', async () => {
    const { code, stdout } = await loza(['info', '--json'], { env: { PATH: '/nowhere' } });
    expect(code).toBe(0);
    expect((JSON.parse(stdout) as InfoObject).commit).toBeNull();
  });

  test('without the addon it still says what it can, and exits with 1', async () => {
    const env = { LOZA_ADDON_PATH: '/nowhere/loza.node' };
    const { code, stdout, stderr } = await loza(['info', '--json'], { env });
    expect(code).toBe(1);
    const { addon, devices } = JSON.parse(stdout) as InfoObject;
    expect(addon).toMatchObject({ path: null, error: { code: 'ERR_LOZA_ADDON_NOT_FOUND' } });
    expect(devices).toEqual([]);
    expect(stderr).toMatch(/^loza: The compiled addon is missing: [^\n]*\n$/);
  });
});

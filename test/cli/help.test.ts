import { commands, describeCli, expectFailure, loza, root } from './cli';

describeCli('help', () => {
  test.each(commands)('loza %s --help explains options and gives an example', async (command) => {
    const { code, stdout, stderr } = await loza([command, '--help']);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toMatch(new RegExp(`^Usage: loza ${command}`));
    expect(stdout).toContain('--json');
    expect(stdout).toContain('--debug');
    if (command !== 'demo') expect(stdout).toMatch(new RegExp(`Examples?:\n.*loza ${command}`));
    expect(Math.max(...stdout.split('\n').map((line) => line.length))).toBeLessThanOrEqual(100);
  });

  test('loza --help lists every command', async () => {
    const { code, stdout } = await loza(['--help']);
    expect(code).toBe(0);
    for (const command of commands) expect(stdout).toMatch(new RegExp(`^  ${command} `, 'm'));
  });

  test('loza alone shows the help, as an error', async () => {
    const { code, stdout, stderr } = await loza([]);
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toContain('First steps:');
  });

  test('--version is that of package.json', async () => {
    const { version } = jest.requireActual<{ version: string }>(`${root}/package.json`);
    expect((await loza(['--version'])).stdout).toBe(`${version}\n`);
  });

  test('an unknown command is an error that says where help is', async () => {
    await expectFailure(['frobnicate'], /unknown command 'frobnicate'.*See loza --help/);
    await expectFailure(['generat'], /Did you mean generate/);
    await expectFailure(['bench', 'compare', '--half'], /'--half'.*See loza bench compare --help/);
  });
});

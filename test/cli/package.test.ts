import { describeCli, golden, runNode } from './cli';

/** Counts what a program loads natively: calls of dlopen, and the addon among the mapped files. */
const watch = `
let opened = 0;
const { dlopen } = process;
process.dlopen = (...args) => { opened += 1; return dlopen.apply(process, args); };
const report = async (loza) => {
  const { readFileSync } = process.getBuiltinModule('node:fs');
  const mapped = readFileSync('/proc/self/maps', 'utf8').includes('loza.node');
  const { LanguageModel } = loza;
  console.log(JSON.stringify({ opened, mapped, exports: Object.keys(loza).sort() }));
};`;

const required = `${watch} report(require('loza'));`;
const imported = `${watch} report(await import('loza'));`;

describeCli('the package', () => {
  test.each([
    ['require', ['-e', required]],
    ['import', ['--input-type=module', '-e', imported]],
  ])('%s loads no native code', async (_, args) => {
    const { code, stdout, stderr } = await runNode(args);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    const { opened, mapped, exports } = JSON.parse(stdout) as Record<string, unknown>;
    expect({ opened, mapped }).toEqual({ opened: 0, mapped: false });
    expect(exports).toEqual(expect.arrayContaining(['LanguageModel', 'LozaError', 'probeDevices']));
  });

  test('both ways give the same classes', async () => {
    const program = `
      import { createRequire } from 'node:module';
      import * as imported from 'loza';
      const required = createRequire(process.cwd() + '/x.js')('loza');
      console.log(Object.keys(required).every((name) => imported[name] === required[name]));`;
    const { stdout } = await runNode(['--input-type=module', '-e', program]);
    expect(stdout).toBe('true\n');
  });

  test('without the addon, loading fails with a code and says how to build it', async () => {
    const program = `
      const { LanguageModel, probeDevices, LozaError } = require('loza');
      const show = (error) => [error.code, error.message, LozaError.isInstance(error)];
      Promise.all([
        LanguageModel.load(${JSON.stringify(golden('longcat-full'))}).catch(show),
        probeDevices().catch(show),
      ]).then((errors) => console.log(JSON.stringify(errors)));`;
    const env = { LOZA_ADDON_PATH: '/nowhere/loza.node' };
    const { stdout, stderr } = await runNode(['-e', program], { env });
    expect(stderr).toBe('');
    const errors = JSON.parse(stdout) as [string, string, boolean][];
    expect(errors).toHaveLength(2);
    for (const [code, message, isLozaError] of errors) {
      expect({ code, isLozaError }).toEqual({
        code: 'ERR_LOZA_ADDON_NOT_FOUND',
        isLozaError: true,
      });
      expect(message).toContain('/nowhere/loza.node does not exist');
      expect(message).toContain('npm run build:native');
    }
  });
});

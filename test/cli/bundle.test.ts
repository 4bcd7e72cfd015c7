import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import path from 'node:path';
import { tempFolder } from '../support/temp-folder';
import { root } from './cli';

const script = path.join(root, 'scripts', 'bundle.mjs');
const isAddonBuilt = existsSync(path.join(root, 'build', 'Release', 'loza.node'));
const isDistBuilt = existsSync(path.join(root, 'dist', 'cli', 'main.js'));

function reasonToSkip(): string | undefined {
  const { glibcVersionRuntime } = (
    process.report.getReport() as { header: { glibcVersionRuntime?: string } }
  ).header;
  if (process.arch !== 'x64' || glibcVersionRuntime === undefined) return 'not x86-64 with glibc';
  if (!isAddonBuilt || !isDistBuilt) return 'the addon or dist is not built';
  const missing = ['strip', 'objdump'].find((tool) => spawnSync(tool, ['-V']).error !== undefined);
  return missing && `there is no ${missing}`;
}

const reason = reasonToSkip();
const describeBundle = reason === undefined ? describe : describe.skip;

describeBundle(`npm run bundle${reason === undefined ? '' : ` (skipped: ${reason})`}`, () => {
  const { version } = jest.requireActual<{ version: string }>(`${root}/package.json`);
  const folder = path.join(root, 'build', 'bundle', `loza-${version}-linux-x64`);
  const elsewhere = tempFolder({});

  beforeAll(() => {
    const { status, stderr } = spawnSync(process.execPath, [script, '--folder'], {
      encoding: 'utf8',
    });
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    symlinkSync(path.join(folder, 'loza'), path.join(elsewhere, 'first'));
    symlinkSync('first', path.join(elsewhere, 'second'));
  });
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  /** On a host without Node: nothing in the environment, through two links. */
  const run = (...args: string[]) => {
    const env = { PATH: '/usr/bin:/bin' };
    const link = path.join(elsewhere, 'second');
    return spawnSync(link, args, { cwd: elsewhere, env, encoding: 'utf8' });
  };

  test('has what runs and the licences, and nothing else', () => {
    expect(readdirSync(folder).sort()).toEqual([
      ...['CHANGELOG.md', 'LICENSE', 'LICENSE.node', 'README.md', 'THIRD-PARTY.txt'],
      ...['bin', 'build', 'dist', 'loza', 'node_modules', 'package.json'],
    ]);
    const packages = readdirSync(path.join(folder, 'node_modules'));
    expect(packages).toEqual(expect.arrayContaining(['@huggingface', 'bindings', 'commander']));
    for (const tool of ['cmake-js', 'node-addon-api', 'typescript', 'jest'])
      expect(packages).not.toContain(tool);
    const licences = readFileSync(path.join(folder, 'THIRD-PARTY.txt'), 'utf8');
    for (const name of packages.filter((one) => !one.startsWith('@')))
      expect(licences).toContain(`${name} `);
  });

  test('runs with its own Node and addon, wherever it is', () => {
    expect(run('--version').stdout).toBe(`${version}\n`);
    const { status, stdout } = run('selftest', '--device', 'cpu', '--ops', 'swiglu', '--json');
    expect(status).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ device: 'cpu', passed: true });
    const { addon } = JSON.parse(run('info', '--json').stdout) as { addon: { path: string } };
    expect(addon.path).toBe(path.join(folder, 'build', 'Release', 'loza.node'));
  });

  test('the demo says what it lacks', () => {
    const { status, stderr } = run('demo');
    expect(status).toBe(1);
    expect(stderr).toMatch(/Copy the folder models\/loza-tiny of the sources there/);
  });
});

test('bundle refuses an unknown option', () => {
  const { status, stderr } = spawnSync(process.execPath, [script, '--zip'], { encoding: 'utf8' });
  expect({ status, stderr }).toEqual({
    status: 1,
    stderr: 'Unknown option --zip: there are --with-model and --folder.\n',
  });
});

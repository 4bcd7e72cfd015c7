// Brings a checkout to the state where the demo and the tests run: dependencies, addon, dist.
//
//   node scripts/setup.mjs                 what is out of date, and nothing else
//   node scripts/setup.mjs native|dist     that step in any case, with the tool's own output
//
// LOZA_CUDA=AUTO|ON|OFF chooses the CUDA kernels, CXX the compiler. Node's built-in modules only.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import os from 'node:os';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const inRoot = (...parts) => path.join(root, ...parts);
const build = inRoot('build');
const { resolve } = createRequire(import.meta.url);
const cudaOption = process.env.LOZA_CUDA || 'AUTO';
const forced = process.argv.slice(2);

/** A problem that the user can solve; shown as its sentences alone, without a stack trace. */
class SetupError extends Error {}

// ---- Tools -------------------------------------------------------------------------------------

function checkNode() {
  const [major, minor] = process.versions.node.split('.').map(Number);
  if (major > 20 || (major === 20 && minor >= 19)) return;
  throw new SetupError(
    `loza needs Node 20.19 or newer, but this is ${process.versions.node}: install it from https://nodejs.org or with a version manager such as nvm.`,
  );
}

function onPath(program) {
  if (program.includes('/')) return fs.existsSync(program) ? program : undefined;
  const folders = (process.env.PATH ?? '').split(path.delimiter).filter(Boolean);
  return folders.map((folder) => path.join(folder, program)).find(isExecutable);
}

function isExecutable(file) {
  try {
    fs.accessSync(file, fs.constants.X_OK);
    return fs.statSync(file).isFile();
  } catch {
    return false;
  }
}

function compilerProblem() {
  const install =
    'install GCC 11 or newer (Debian/Ubuntu: apt-get install g++) or Clang 14 or newer, or set CXX';
  const asked = process.env.CXX;
  const compiler = asked ? asked.split(' ')[0] : ['c++', 'g++', 'clang++'].find(onPath);
  if (compiler === undefined) return `loza needs a C++20 compiler, and none was found: ${install}.`;
  const source =
    '#include <concepts>\n#include <span>\nstd::span<int> s; std::integral auto i = 1;\n';
  const args = ['-std=c++20', '-fsyntax-only', '-x', 'c++', '-'];
  if (spawnSync(compiler, args, { input: source }).status === 0) return undefined;
  return `loza needs a C++20 compiler, and ${compiler} does not compile C++20: ${install}.`;
}

function cmakeProblem() {
  const install =
    'install it (Debian/Ubuntu: apt-get install cmake; elsewhere: https://cmake.org/download or pip install cmake)';
  const answer = spawnSync('cmake', ['--version'], { encoding: 'utf8' });
  const version = /version (\d+)\.(\d+)/.exec(answer.stdout ?? '');
  if (version === null) return `loza needs CMake 3.24 or newer, and none was found: ${install}.`;
  const [major, minor] = [Number(version[1]), Number(version[2])];
  if (major > 3 || (major === 3 && minor >= 24)) return undefined;
  return `loza needs CMake 3.24 or newer, but the one on PATH is ${major}.${minor}: ${install}.`;
}

function generatorProblem() {
  if (onPath('ninja') ?? onPath('make')) return undefined;
  return 'loza needs make or ninja, and neither was found: install one (Debian/Ubuntu: apt-get install make).';
}

function cudaProblem() {
  if (!['AUTO', 'ON', 'OFF'].includes(cudaOption)) {
    return `LOZA_CUDA must be AUTO, ON or OFF, but it is ${JSON.stringify(cudaOption)}.`;
  }
  if (cudaOption !== 'ON' || findNvcc()) return undefined;
  return 'LOZA_CUDA=ON needs nvcc, and none was found: install the CUDA 13 toolkit and put its bin folder on PATH, or set LOZA_CUDA=OFF.';
}

/** The places where CMakeLists.txt looks, in its order. */
function findNvcc() {
  const { CUDACXX, CUDA_HOME, CUDA_PATH } = process.env;
  if (CUDACXX) return CUDACXX;
  const prefixes = [CUDA_HOME, CUDA_PATH].filter(Boolean);
  const hinted = prefixes.map((prefix) => path.join(prefix, 'bin', 'nvcc')).find(isExecutable);
  return hinted ?? onPath('nvcc') ?? ['/usr/local/cuda/bin/nvcc'].find(isExecutable);
}

function checkNativeTools() {
  const problems = [cudaProblem(), compilerProblem(), cmakeProblem(), generatorProblem()];
  const sentences = problems.filter((problem) => problem !== undefined);
  if (sentences.length > 0) throw new SetupError(sentences.join('\n'));
}

// ---- What is out of date -----------------------------------------------------------------------

/** A hash of the names and contents of files and folders (all files below them). */
function hashInputs(names, settings = []) {
  const hash = createHash('sha256').update(JSON.stringify(settings));
  const lock = isCheckout ? ['package-lock.json'] : [];
  for (const name of [...lock, 'scripts/setup.mjs', ...names].flatMap(filesBelow)) {
    const bytes = fs.readFileSync(inRoot(name));
    hash.update(`\0${name}\0${bytes.length}\0`).update(bytes);
  }
  return hash.digest('hex');
}

function filesBelow(name) {
  if (!fs.statSync(inRoot(name)).isDirectory()) return [name];
  const below = fs.readdirSync(inRoot(name)).sort();
  return below.flatMap((entry) => filesBelow(path.join(name, entry)));
}

function readOr(file, otherwise) {
  try {
    return fs.readFileSync(file, 'utf8');
  } catch {
    return otherwise;
  }
}

/** In a package that npm installed there is no lock file: its dependencies are the installer's. */
const isCheckout = fs.existsSync(inRoot('package-lock.json'));

/** npm writes node_modules/.package-lock.json last, so it says what is completely installed. */
function dependenciesAreCurrent() {
  if (!isCheckout) return true;
  const installed = JSON.parse(readOr(inRoot('node_modules/.package-lock.json'), '{}')).packages;
  if (installed === undefined) return false;
  const locked = JSON.parse(fs.readFileSync(inRoot('package-lock.json'), 'utf8')).packages;
  return Object.entries(locked).every(([name, wanted]) => {
    if (name === '') return true;
    const found = installed[name];
    return found === undefined ? wanted.optional === true : found.integrity === wanted.integrity;
  });
}

/** What the compiled addon depends on besides its sources; a change needs a new CMake cache. */
const nativeSettings = () => [
  cudaOption,
  findNvcc() ?? 'no nvcc',
  process.env.CXX ?? '',
  onPath('ninja') ? 'ninja' : 'make', // cmake-js's choice
  `node ${process.versions.node.split('.')[0]}`,
];

const dependencies = {
  title: 'dependencies',
  isCurrent: dependenciesAreCurrent,
  run: installDependencies,
  failure: 'The dependencies could not be installed: check the network and see the messages above.',
};

const native = {
  title: 'native addon',
  stamp: path.join(build, '.stamp-native'),
  output: path.join(build, 'Release', 'loza.node'),
  hash: () => hashInputs(['CMakeLists.txt', 'native'], nativeSettings()),
  run: buildNative,
  failure: 'The native addon could not be built: see the messages above.',
};

const dist = {
  title: 'TypeScript',
  stamp: path.join(build, '.stamp-dist'),
  output: inRoot('dist', 'index.js'),
  hash: () => hashInputs(['lib', 'tsconfig.json', 'tsconfig.build.json']),
  run: buildDist,
  failure: 'The TypeScript sources could not be compiled: see the messages above.',
};

function isCurrent(step) {
  if (step.isCurrent) return step.isCurrent();
  return fs.existsSync(step.output) && readOr(step.stamp, '') === step.hash();
}

// ---- Steps -------------------------------------------------------------------------------------

function installDependencies(tool) {
  const npm = process.env.npm_execpath ?? '';
  const [program, first] = npm.endsWith('npm-cli.js') ? [process.execPath, [npm]] : ['npm', []];
  // No dependency needs its install script, and npm 12 would not run it.
  const options = ['--ignore-scripts', '--include=dev', '--no-audit', '--no-fund'];
  tool(program, [...first, 'ci', ...options]);
}

function buildNative(tool) {
  const settings = JSON.stringify(nativeSettings());
  const settingsFile = path.join(build, '.native-settings');
  if (readOr(settingsFile, settings) !== settings) clearCMakeCache();
  fs.writeFileSync(settingsFile, settings);
  const cmakeJs = [path.join(path.dirname(resolve('cmake-js/package.json')), 'bin', 'cmake-js')];
  tool(process.execPath, [...cmakeJs, 'configure', `--CDLOZA_CUDA=${cudaOption}`]);
  tool(process.execPath, [...cmakeJs, 'build', '--parallel', String(os.availableParallelism())]);
}

/** Forgets what CMake found (compilers, CUDA), but keeps object files that are still right. */
function clearCMakeCache() {
  fs.rmSync(path.join(build, 'CMakeCache.txt'), { force: true });
  const folder = path.join(build, 'CMakeFiles');
  if (!fs.existsSync(folder)) return;
  for (const name of fs.readdirSync(folder).filter((entry) => /^\d/.test(entry))) {
    fs.rmSync(path.join(folder, name), { recursive: true });
  }
}

/** Compiles beside dist and swaps, so that a failed compile leaves the old dist in place. */
function buildDist(tool) {
  const fresh = path.join(build, 'dist');
  fs.rmSync(fresh, { recursive: true, force: true });
  const tsc = inRoot('node_modules/typescript/bin/tsc');
  tool(process.execPath, [tsc, '-p', 'tsconfig.build.json', '--outDir', fresh]);
  const cli = path.join(fresh, 'cli', 'main.js');
  if (fs.existsSync(cli)) fs.chmodSync(cli, 0o755);
  fs.rmSync(inRoot('dist'), { recursive: true, force: true });
  fs.renameSync(fresh, inRoot('dist'));
}

/** Runs a program with its output in a log file; a failure shows the end of that log. */
function runLogged(program, args) {
  const log = path.join(build, 'setup.log');
  const output = fs.openSync(log, 'w');
  const { status, error } = spawnSync(program, args, {
    cwd: root,
    stdio: ['ignore', output, output],
  });
  fs.closeSync(output);
  if (status === 0) return;
  const lines = readOr(log, '').trimEnd().split('\n');
  throw new SetupError([...lines.slice(-40), ...(error ? [error.message] : [])].join('\n'));
}

function runShown(program, args) {
  const { status, error } = spawnSync(program, args, { cwd: root, stdio: 'inherit' });
  if (status !== 0) throw new SetupError(error?.message ?? '');
}

function perform(step) {
  const isShown = forced.length > 0;
  const heading = `loza set-up: ${step.title} ...`;
  if (step.stamp) fs.rmSync(step.stamp, { force: true });
  const inputs = step.hash?.();
  const started = performance.now();
  if (!isShown) process.stdout.write(heading);
  const finish = (result) => console.log(`${isShown ? heading : ''} ${result}`);
  try {
    step.run(isShown ? runShown : runLogged);
  } catch (error) {
    finish('failed');
    if (error instanceof SetupError) error.message = `${error.message}\n${step.failure}`.trim();
    throw error;
  }
  if (step.stamp) fs.writeFileSync(step.stamp, inputs);
  finish(`${((performance.now() - started) / 1000).toFixed(1)} s`);
}

// ---- One set-up at a time ------------------------------------------------------------------------

/** A build folder that was copied with its checkout holds absolute paths of the original. */
function removeForeignBuild() {
  const cache = readOr(path.join(build, 'CMakeCache.txt'), '');
  const home = /^CMAKE_HOME_DIRECTORY:INTERNAL=(.*)$/m.exec(cache)?.[1];
  if (home === undefined || realPath(home) === realPath(root)) return;
  fs.rmSync(build, { recursive: true, force: true });
}

const realPath = (file) => (fs.existsSync(file) ? fs.realpathSync(file) : path.resolve(file));

function withLock(action) {
  const lock = path.join(build, '.setup-lock');
  fs.mkdirSync(build, { recursive: true });
  for (let waits = 0; !tryLock(lock); waits += 1) {
    if (waits === 10) console.log(`loza set-up: waiting for another set-up, which holds ${lock}`);
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 200);
  }
  try {
    action();
  } finally {
    fs.rmSync(lock, { force: true });
  }
}

function tryLock(lock) {
  try {
    fs.writeFileSync(lock, String(process.pid), { flag: 'wx' });
    return true;
  } catch (error) {
    if (error.code !== 'EEXIST') throw error;
  }
  const holder = Number(readOr(lock, ''));
  const isStale = holder === process.pid || (holder > 0 && !isRunning(holder));
  if (isStale) fs.rmSync(lock, { force: true });
  return false;
}

function isRunning(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === 'EPERM';
  }
}

function setUp() {
  checkNode();
  removeForeignBuild();
  const named = { native, dist };
  const wrong = forced.find((name) => !(name in named));
  if (wrong !== undefined) throw new SetupError(`Unknown step "${wrong}": use native or dist.`);
  const wanted = forced.length > 0 ? forced.map((name) => named[name]) : [native, dist];
  const isDue = (step) => forced.length > 0 || !isCurrent(step);
  if (isCurrent(dependencies) && !wanted.some(isDue)) return;

  if (wanted.includes(native) && isDue(native)) checkNativeTools();
  withLock(() => {
    if (!isCurrent(dependencies)) perform(dependencies);
    for (const step of wanted) if (isDue(step)) perform(step);
  });
}

try {
  setUp();
} catch (error) {
  if (!(error instanceof SetupError)) throw error;
  process.stderr.write(`${error.message}\n`);
  process.exitCode = 1;
}

// Makes one archive that runs loza on a bare x86-64 Linux host (glibc 2.28 or newer) without Node, a
// compiler or a registry:
//
//   npm run bundle [-- --with-model] [-- --folder]
//
// --with-model packs models/loza-tiny too, for the demo; --folder stops before the archive is made.
// Node's built-in modules, and strip, objdump, tar and xz. The same inputs give the same bytes.
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const inRoot = (...parts) => path.join(root, ...parts);
const { version } = readJson(inRoot('package.json'));
const name = `loza-${version}-linux-x64`;
const parent = inRoot('build', 'bundle');
const inBundle = (...parts) => path.join(parent, name, ...parts);
const model = 'models/loza-tiny';
const maxBytes = 32e6;
/** The newest versions that the oldest host has; libstdc++ is Node's own need. */
const newest = { GLIBC: '2.28', GLIBCXX: '3.4.25', CXXABI: '1.3.11', GCC: '8.0.0' };

/** A problem that the user can solve; shown as its sentences alone, without a stack trace. */
class BundleError extends Error {}

function readJson(file) {
  return JSON.parse(fs.readFileSync(file, 'utf8'));
}

function readOptions() {
  const known = ['--with-model', '--folder'];
  const given = process.argv.slice(2);
  const wrong = given.find((option) => !known.includes(option));
  if (wrong !== undefined) {
    throw new BundleError(`Unknown option ${wrong}: there are ${known.join(' and ')}.`);
  }
  return { withModel: given.includes('--with-model'), folderOnly: given.includes('--folder') };
}

function checkPlatform() {
  const glibc = process.report.getReport().header.glibcVersionRuntime;
  if (process.platform === 'linux' && process.arch === 'x64' && glibc) return;
  throw new BundleError('A bundle is made on x86-64 Linux with glibc, for hosts of the same kind.');
}

/** Runs a tool and returns what it printed. */
function tool(program, args) {
  const env = { ...process.env, LC_ALL: 'C' };
  const answer = spawnSync(program, args, { encoding: 'utf8', maxBuffer: 2 ** 28, env });
  if (answer.error?.code === 'ENOENT') {
    const packages = { strip: 'binutils', objdump: 'binutils', xz: 'xz-utils' };
    const install = `apt-get install ${packages[program] ?? program}`;
    throw new BundleError(`loza bundle needs ${program}, and none was found: ${install}.`);
  }
  if (answer.status === 0) return answer.stdout;
  throw new BundleError(`${program} failed: ${answer.stderr || answer.error?.message}`);
}

// ---- What goes in ------------------------------------------------------------------------------

function copy(from, to, accepts = () => true) {
  fs.cpSync(from, to, {
    recursive: true,
    dereference: true,
    filter: (file) => fs.statSync(file).isDirectory() || accepts(file),
  });
}

function addProgram(from, to) {
  copy(from, to);
  fs.chmodSync(to, 0o755);
  tool('strip', [to]);
  checkSymbols(to, from);
}

/** Refuses a program that needs what the oldest host's libraries do not have. */
function checkSymbols(file, origin) {
  const needed = tool('objdump', ['-T', file]).matchAll(/\(?\b([A-Z]+)_([\d.]+)\)? +(\S+)$/gm);
  const missing = [...needed].flatMap(([, library, wanted, symbol]) =>
    library in newest && isNewer(wanted, newest[library]) ? `${symbol} (${library}_${wanted})` : [],
  );
  if (missing.length === 0) return;
  const shown = missing.slice(0, 8).join(', ') + (missing.length > 8 ? ' and others' : '');
  const hint = origin.endsWith('.node')
    ? 'Either it was linked without native/glibc (is libstdc++.a missing?), or that must name these symbols.'
    : 'Make the bundle with a Node from https://nodejs.org, which runs on glibc 2.28.';
  throw new BundleError(`${origin} needs a newer glibc than 2.28: ${shown}. ${hint}`);
}

function isNewer(one, other) {
  const [a, b] = [one, other].map((text) => text.split('.').map(Number));
  const at = a.findIndex((part, i) => part !== (b[i] ?? 0));
  return at >= 0 && a[at] > (b[at] ?? 0);
}

/** Folders of the packages that the compiled files of dist import, and of those these depend on. */
function findPackages() {
  const { packages } = readJson(inRoot('package-lock.json'));
  const found = new Set();
  const visit = (names, from) => {
    for (const folder of names.map((one) => locatePackage(packages, one, from))) {
      if (folder === undefined || found.has(folder)) continue; // undefined: optional, not installed
      found.add(folder);
      const { dependencies, optionalDependencies } = packages[folder];
      visit(Object.keys({ ...dependencies, ...optionalDependencies }), folder);
    }
  };
  const imported = findImports();
  visit(
    Object.keys(packages[''].dependencies).filter((one) => imported.has(one)),
    '',
  );
  return [...found].sort();
}

function findImports() {
  const files = fs.readdirSync(inRoot('dist'), { recursive: true }).filter(isScript);
  const codes = files.map((file) => fs.readFileSync(inRoot('dist', file), 'utf8'));
  const pattern = /\b(?:require\(|import\(|from )["']((?:@[\w-]+\/)?[\w-]+)["'/]/g;
  return new Set(codes.flatMap((code) => [...code.matchAll(pattern)].map((match) => match[1])));
}

/** Where Node finds a package that `from` asks for: nearest first. */
function locatePackage(packages, wanted, from) {
  const folder = path.posix.join(from, 'node_modules', wanted);
  if (folder in packages && fs.existsSync(inRoot(folder))) return folder;
  const outer = from.replace(/\/?node_modules\/(@[^/]+\/)?[^/]+$/, '');
  return from === '' ? undefined : locatePackage(packages, wanted, outer);
}

const isScript = (file) => /\.(?:js|cjs|mjs|json)$/.test(file);
const isLicence = (file) => /^(?:licen[cs]e|copying|notice)\b/i.test(path.basename(file));

function addPackages(folders) {
  for (const folder of folders) {
    const nested = path.join(folder, 'node_modules');
    copy(inRoot(folder), inBundle(folder), (file) => {
      const inside = path.relative(root, file);
      return !inside.startsWith(`${nested}/`) && (isScript(file) || isLicence(file));
    });
  }
}

/** Whose work is in the bundle, under which licence, and where that is. */
function describeLicences(folders) {
  const packages = folders.map((folder) => {
    const { name: title, version: number, license } = readJson(inRoot(folder, 'package.json'));
    const file = fs.readdirSync(inBundle(folder)).find(isLicence);
    if (file === undefined) throw new BundleError(`${folder} comes without its licence.`);
    return `${title} ${number}: ${license}, ${folder}/${file}`;
  });
  return [
    'loza is under the MIT licence (LICENSE). With it come:',
    '',
    `Node.js ${process.versions.node}: MIT and others, LICENSE.node`,
    'libstdc++ (in loza.node): GPL 3 with the GCC Runtime Library Exception 3.1',
    'CUDA runtime (in loza.node, if built with CUDA): NVIDIA CUDA Toolkit EULA',
    ...packages,
    '',
  ].join('\n');
}

function findNodeLicence() {
  const prefix = path.dirname(path.dirname(fs.realpathSync(process.execPath)));
  const places = ['LICENSE', 'share/doc/node/LICENSE', 'share/doc/nodejs/LICENSE'];
  const found = places.map((place) => path.join(prefix, place)).find((file) => fs.existsSync(file));
  if (found !== undefined) return found;
  throw new BundleError(
    `Node's LICENSE, which has to go with it, is not below ${prefix}: use a Node from https://nodejs.org.`,
  );
}

const launcher = `#!/bin/sh
# Runs loza with the Node that came with it, wherever this folder is and whatever links here.
self=$0
while [ -L "$self" ]; do
  target=$(readlink "$self")
  case $target in
    /*) self=$target ;;
    *) self=$(dirname "$self")/$target ;;
  esac
done
here=$(CDPATH= cd -P "$(dirname "$self")" && pwd) || exit 1
exec "$here/bin/node" "$here/dist/cli/main.js" "$@"
`;

function fillFolder({ withModel }) {
  fs.rmSync(inBundle(), { recursive: true, force: true });
  fs.mkdirSync(inBundle(), { recursive: true });
  addProgram(process.execPath, inBundle('bin', 'node'));
  addProgram(inRoot('build/Release/loza.node'), inBundle('build/Release/loza.node'));
  copy(inRoot('dist'), inBundle('dist'), isScript);
  for (const file of ['package.json', 'README.md', 'CHANGELOG.md', 'LICENSE']) {
    copy(inRoot(file), inBundle(file));
  }
  copy(findNodeLicence(), inBundle('LICENSE.node'));
  if (withModel) copy(inRoot(model), inBundle(model));
  const packages = findPackages();
  addPackages(packages);
  fs.writeFileSync(inBundle('THIRD-PARTY.txt'), describeLicences(packages));
  fs.writeFileSync(inBundle('loza'), launcher, { mode: 0o755 });
}

// ---- The archive -------------------------------------------------------------------------------

/** Sorted, with fixed owners, times and modes. */
function makeArchive() {
  const plain = path.join(parent, `${name}.tar`);
  const fixed = ['--sort=name', '--mtime=@315532800', '--owner=0', '--group=0', '--numeric-owner'];
  const format = ['--format=ustar', '--mode=u=rwX,go=rX'];
  tool('tar', [...fixed, ...format, '-C', parent, '-cf', plain, name]);
  // One thread: the bytes do not depend on the machine. --x86: jumps in programs repeat.
  tool('xz', ['--force', '--threads=1', '--x86', '--lzma2=preset=6', plain]);
  return `${plain}.xz`;
}

function bundle() {
  const options = readOptions();
  checkPlatform();
  fillFolder(options);
  if (options.folderOnly) {
    console.log(path.relative(process.cwd(), inBundle()));
    return;
  }
  console.log('loza bundle: packing, which takes a minute ...');
  const archive = makeArchive();
  const bytes = fs.statSync(archive).size;
  console.log(`${path.relative(process.cwd(), archive)}: ${(bytes / 1e6).toFixed(1)} MB`);
  if (bytes < maxBytes) return;
  const reason = `The archive is not smaller than ${maxBytes / 1e6} MB`;
  if (!options.withModel) throw new BundleError(`${reason}.`);
  console.log(`${reason}, because ${model} is in it.`);
}

try {
  bundle();
} catch (error) {
  if (!(error instanceof BundleError)) throw error;
  process.stderr.write(`${error.message}\n`);
  process.exitCode = 1;
}

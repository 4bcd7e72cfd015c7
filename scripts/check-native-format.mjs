// Checks native/ against .clang-format; --write formats the files instead.
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));

function sourcesBelow(folder) {
  return fs.readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const file = path.join(folder, entry.name);
    if (entry.isDirectory()) return sourcesBelow(file);
    return /\.(h|cpp|cu|cuh)$/.test(entry.name) ? [file] : [];
  });
}

function main() {
  const version = spawnSync('clang-format', ['--version'], { encoding: 'utf8' });
  if (version.status !== 0) {
    console.log('C++ format: skipped, because clang-format is not installed.');
    return 0;
  }
  const files = sourcesBelow(path.join(root, 'native'));
  if (files.length === 0) return 0;
  const mode = process.argv.includes('--write') ? ['-i'] : ['--dry-run', '--Werror'];
  const { status } = spawnSync('clang-format', [...mode, ...files], { stdio: 'inherit' });
  if (status !== 0) {
    console.error(`C++ format: run "npm run format" (${version.stdout.trim()}).`);
  }
  return status ?? 1;
}

process.exitCode = main();

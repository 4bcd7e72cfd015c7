import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';

/** Where package.json is, and in a checkout the sources and the bundled model. */
export const packageRoot = path.join(__dirname, '..', '..');

/** The model that comes with the sources. */
export const bundledModel = path.join(packageRoot, 'models', 'loza-tiny');

export interface BuildInfo {
  version: string;
  /** Only in a git checkout, or where LOZA_COMMIT names it. */
  commit: string | null;
  node: string;
}

export function readBuildInfo(): BuildInfo {
  return { version: packageVersion(), commit: readCommit(), node: process.version };
}

export function packageVersion(): string {
  const file = path.join(packageRoot, 'package.json');
  return (JSON.parse(readFileSync(file, 'utf8')) as { version: string }).version;
}

/**
 * Git is not asked where this is installed: it would answer with the commit of another project. There
 * LOZA_COMMIT can name it, so that figures from a GPU host say what was measured.
 */
function readCommit(): string | null {
  const named = process.env['LOZA_COMMIT'];
  if (named !== undefined && named !== '') return named;
  if (!existsSync(path.join(packageRoot, '.git'))) return null;
  try {
    const args = ['-C', packageRoot, 'rev-parse', '--short', 'HEAD'];
    return execFileSync('git', args, {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    }).trim();
  } catch {
    return null;
  }
}

import { spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';

export const root = path.join(__dirname, '..', '..');
export const tiny = path.join(root, 'models', 'loza-tiny');
export const golden = (name: string) => path.join(root, 'test', 'golden', name);

const program = path.join(root, 'dist', 'cli', 'main.js');

export const commands = [
  ...['generate', 'chat', 'inspect', 'verify', 'selftest', 'soak', 'info', 'demo', 'eval', 'bench'],
  ...['calibrate', 'train'],
];

export interface Outcome {
  code: number | null;
  stdout: string;
  stderr: string;
}

export interface CliOptions {
  input?: string;
  env?: NodeJS.ProcessEnv;
  /** Sent when the first output comes. */
  signal?: NodeJS.Signals;
}

/** Tests of the command line, which needs dist. */
export function describeCli(name: string, body: () => void): void {
  if (existsSync(program)) return describe(name, body);
  describe(name, () => test.skip('skipped: dist is not built (npm run build:ts)', () => {}));
}

/** Runs `loza` with these arguments as a child process. */
export function loza(args: readonly string[], options: CliOptions = {}): Promise<Outcome> {
  return runNode([program, ...args], options);
}

export function runNode(args: readonly string[], options: CliOptions = {}): Promise<Outcome> {
  const env = { ...process.env, LOZA_DEBUG: '', ...options.env };
  const child = spawn(process.execPath, args, { cwd: root, env });
  const outcome: Outcome = { code: null, stdout: '', stderr: '' };
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    if (outcome.stdout === '' && options.signal !== undefined) child.kill(options.signal);
    outcome.stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => (outcome.stderr += text));
  child.stdin.on('error', () => {}); // the command may end without reading it
  child.stdin.end(options.input ?? '');
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => resolve({ ...outcome, code }));
  });
}

/** Runs `loza ... --json` and returns what it printed: one line, one object. */
export async function lozaJson<T = Record<string, unknown>>(
  args: readonly string[],
  options: CliOptions = {},
): Promise<T> {
  const { code, stdout, stderr } = await loza([...args, '--json'], options);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  expect(stdout.trimEnd().split('\n')).toHaveLength(1);
  return JSON.parse(stdout) as T;
}

/** Runs a command that must fail: exit code 1, one line on stderr, and without JSON nothing else. */
export async function expectFailure(
  args: readonly string[],
  message: RegExp,
  options: CliOptions = {},
): Promise<void> {
  const plain = await loza(args, options);
  expect(plain.code).toBe(1);
  expect(plain.stdout).toBe('');
  expect(plain.stderr).toMatch(/^loza: [^\n]+\n$/);
  expect(plain.stderr).toMatch(message);
}

/** The same with --json: the error is an object on stdout, with a code. */
export async function expectJsonFailure(
  args: readonly string[],
  code: string,
  options: CliOptions = {},
): Promise<{ message: string; value?: unknown; hint?: string }> {
  const outcome = await loza([...args, '--json'], options);
  expect(outcome.code).toBe(1);
  expect(outcome.stderr).toBe('');
  const { error } = JSON.parse(outcome.stdout) as {
    error: { code: string; message: string; value?: unknown; hint?: string };
  };
  expect(error.code).toBe(code);
  expect(error.message).not.toBe('');
  return error;
}

/** The files of a folder, by name. */
export function readFiles(dir: string, names: readonly string[]): Record<string, Buffer> {
  return Object.fromEntries(names.map((name) => [name, readFileSync(path.join(dir, name))]));
}

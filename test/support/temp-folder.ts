import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';

/**
 * A new folder with the given files (relative path to content; objects are written as JSON),
 * removed after the tests.
 */
export function tempFolder(files: Record<string, string | Uint8Array | object> = {}): string {
  const dir = mkdtempSync(join(tmpdir(), 'loza-test-'));
  made.push(dir);
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(dirname(join(dir, name)), { recursive: true });
    const raw = typeof content === 'string' || content instanceof Uint8Array;
    writeFileSync(join(dir, name), raw ? content : JSON.stringify(content));
  }
  return dir;
}

const made: string[] = [];
afterAll(() => {
  for (const dir of made.splice(0)) rmSync(dir, { recursive: true, force: true });
});

import { spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { Random } from '../../lib/selftest/random';
import { tempFolder } from '../support/temp-folder';
import { recallLines, smallModel } from '../support/training';
import { describeCli, expectJsonFailure, loza, lozaJson, root } from './cli';

const dir = smallModel();
const data = path.join(tempFolder({ 'a.jsonl': recallLines(12, 270) }), 'a.jsonl');
const newFolder = () => path.join(tempFolder(), 'out');
const window = ['--sink-blocks', '1', '--local-blocks', '1', '--device', 'cpu'];
const runs = {
  calibrate: [
    ...['calibrate', dir, '--data', data, '--sequence-length', '300', '--batch', '2'],
    ...['--steps', '10', '--rounds', '1', '--ablation-sequences', '8', '--tie-width', '1'],
    ...window,
  ],
  train: [
    ...['train', dir, '--data', data, '--sequence-length', '300', '--batch', '2', '--steps', '10'],
    ...['--save-every', '2', '--loss-on', 'answers', '--device', 'cpu'],
  ],
};
const results = {
  calibrate: ['alphas.json', 'alphas.svg', 'config.json'],
  train: ['model.safetensors', 'training.json', 'config.json'],
};

/** Starts a run, and kills it without a warning after so many milliseconds; true if it had ended. */
function killAfter(args: readonly string[], milliseconds: number): Promise<boolean> {
  const program = path.join(root, 'dist', 'cli', 'main.js');
  const child = spawn(process.execPath, [program, ...args], { stdio: 'ignore' });
  const timer = setTimeout(() => child.kill('SIGKILL'), milliseconds);
  return new Promise((resolve) =>
    child.on('close', (code) => {
      clearTimeout(timer);
      resolve(code === 0);
    }),
  );
}

/** All is written, and the state that a run goes on from is gone. */
function isDone(out: string, wanted: readonly string[]): boolean {
  const names = existsSync(out) ? readdirSync(out) : [];
  return wanted.every((name) => names.includes(name)) && !names.some((n) => n.includes('-state.'));
}

describeCli('loza calibrate and loza train', () => {
  test.each(['calibrate', 'train'] as const)(
    '%s that is killed at random moments ends in the same bytes',
    async (command) => {
      const [straight, killed] = [newFolder(), newFolder()];
      const began = Date.now();
      await lozaJson([...runs[command], '--out', straight]);
      const duration = Date.now() - began;
      const random = new Random(command);
      let ended = false;
      for (let kills = 0; kills < 3 && !ended; kills++) {
        const moment = duration * (0.4 + 0.5 * random.uniform());
        ended = await killAfter([...runs[command], '--out', killed], moment);
        ended ||= isDone(killed, results[command]); // killed on its way out
      }
      if (!ended) await lozaJson([...runs[command], '--out', killed]);
      for (const name of results[command]) {
        const bytes = (out: string) => readFileSync(path.join(out, name));
        expect({ name, same: bytes(killed).equals(bytes(straight)) }).toEqual({ name, same: true });
      }
    },
  );

  test('the pattern is drawn, and what it cost is told', async () => {
    const out = newFolder();
    const args = ['calibrate', dir, '--out', out, '--method', 'interleaved', '--parity', 'even'];
    const { code, stdout } = await loza(args);
    expect(code).toBe(0);
    expect(stdout).toContain('full');
    expect(stdout).toMatch(/pattern +1010/);
    const { info } = await lozaJson<{ info?: object; layerType?: string }>(['inspect', out]).then(
      (info) => ({ info }),
    );
    expect(JSON.stringify(info)).toContain('1010');
  });

  test('what cannot be is refused before anything is loaded', async () => {
    const out = newFolder();
    const missing = ['calibrate', dir, '--data', 'no.jsonl', '--out', out];
    await expectJsonFailure(missing, 'ERR_LOZA_NOT_FOUND');
    await expectJsonFailure(['calibrate', dir, '--out', out], 'ERR_LOZA_INVALID_ARG');
    await expectJsonFailure(['train', dir, '--data', data], 'ERR_LOZA_INVALID_ARG');
  });
});

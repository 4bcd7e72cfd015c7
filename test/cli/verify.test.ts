import path from 'node:path';

import { pathNames } from '../../lib/cli/verify-paths';
import { readSafetensorsHeader } from '../../lib/checkpoint/safetensors';
import { tempFolder } from '../support/temp-folder';
import { describeCli, expectFailure, golden, loza, lozaJson, readFiles } from './cli';

interface VerifyObject {
  metric: string;
  prompts: { name: string; maxError: number; cosine: number; passed: boolean }[];
  batches: { batch: number; greedy: { equal: number }; sameBits: boolean; passed: boolean }[];
  paths: { path: string; greedy: { equal: number; expected: number }; passed: boolean }[];
  passed: boolean;
}

const source = golden('longcat-full');
const names = ['config.json', 'model.safetensors', 'expected.json', 'expected.safetensors'];

describeCli('loza verify', () => {
  test('a golden passes, and the table says so', async () => {
    const { code, stdout, stderr } = await loza(['verify', source]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toMatch(/^p2 +200 +6 positions +\S+e-\d+ +1\.000000 +8 of 8 +PASS$/m);
    expect(stdout).toMatch(/^PASS {2}/m);
  });

  test('--json holds every prompt', async () => {
    const object = await lozaJson<VerifyObject>(['verify', source]);
    expect(object).toMatchObject({ metric: 'error', passed: true });
    expect(object.prompts.map(({ name }) => name)).toEqual(['p0', 'p1', 'p2']);
    for (const { maxError, cosine } of object.prompts) {
      expect(maxError).toBeLessThan(1e-3);
      expect(cosine).toBeGreaterThan(0.999);
    }
  });

  test('a cache in bfloat16 is measured by the cosine', async () => {
    const object = await lozaJson<VerifyObject>([
      ...['verify', golden('glm4-moe-lite'), '--device', 'cpu'],
      ...['--dtype', 'bfloat16', '--margin', '0.1'],
    ]);
    expect(object.metric).toBe('cosine');
    expect(object.passed).toBe(true);
  });

  test('a flipped logit is a mismatch: exit code 1, the table, and one line', async () => {
    const dir = await flippedGolden();
    const { code, stdout, stderr } = await loza(['verify', dir]);
    expect(code).toBe(1);
    expect(stdout).toMatch(/^p1 .*FAIL$/m);
    expect(stdout).toMatch(/^p2 .*PASS$/m);
    expect(stderr).toMatch(/^loza: 1 of 3 prompts of .* did not give what was expected\n$/);
    const json = await loza(['verify', dir, '--json']);
    expect(json.code).toBe(1);
    expect(JSON.parse(json.stdout)).toMatchObject({ passed: false });
    expect((await loza(['verify', dir, '--tolerance', '1000'])).code).toBe(0);
  });

  test('--batch generates among random prompts, recorded and eager', async () => {
    const flags = ['verify', source, '--device', 'cpu', '--batch', '1,20'];
    const { batches, passed } = await lozaJson<VerifyObject>(flags);
    const greedy = { equal: 24, expected: 24, passed: true };
    expect(batches).toEqual(
      [1, 20].map((batch) => ({ batch, greedy, sameBits: true, passed: true })),
    );
    expect(passed).toBe(true);
    const { code, stdout } = await loza(flags);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^ +20 +24 of 24 +same bits +PASS$/m);
    await expectFailure([...flags.slice(0, -1), '0'], /whole number/);
  });

  test('--paths answers on every path, and tells which', async () => {
    const flags = ['verify', golden('glm4-moe-lite'), '--device', 'cpu', '--paths'];
    const { paths, passed } = await lozaJson<VerifyObject>(flags);
    expect(paths.map(({ path }) => path)).toEqual(pathNames);
    for (const { path, greedy, passed } of paths) {
      expect({ path, passed, equal: greedy.equal }).toEqual({
        ...{ path, passed: true, equal: greedy.expected },
      });
    }
    expect(passed).toBe(true);
  });

  test('another attention than the one that was expected is a mismatch', async () => {
    const { code } = await loza(['verify', golden('longcat-zigzag-yarn'), '--attention', 'full']);
    expect(code).toBe(1);
  });

  test('a folder without expected.safetensors, or with a strange one', async () => {
    const { 'expected.safetensors': expected, ...files } = readFiles(source, names);
    const without = tempFolder(files);
    await expectFailure(['verify', without], /expected\.safetensors does not exist\. verify comp/);
    const cut = tempFolder({ ...files, 'expected.safetensors': expected!.subarray(0, 500) });
    await expectFailure(['verify', cut], /expected\.safetensors/);
    const model = files['model.safetensors']!;
    const other = tempFolder({ ...files, 'expected.safetensors': model });
    await expectFailure(['verify', other], /must hold at least one tensor NAME\.input_ids/);
  });
});

/** A golden of which one expected logit of prompt p1 has another sign. */
async function flippedGolden(): Promise<string> {
  const files = readFiles(source, names);
  const expected = files['expected.safetensors']!;
  const header = await readSafetensorsHeader(path.join(source, 'expected.safetensors'));
  const at = header.tensors.get('p1.logits')!.begin + 4 * 17;
  expected.writeFloatLE(1 - expected.readFloatLE(at), at);
  return tempFolder(files);
}

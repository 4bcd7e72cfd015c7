import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { readSafetensorsHeader } from '../../lib/checkpoint/safetensors';
import { writeAtomically } from '../../lib/train/atomic-file';
import { writeSafetensors } from '../../lib/train/safetensors-writer';
import { expectLozaError } from '../support/errors';
import { tempFolder } from '../support/temp-folder';

describe('writeAtomically', () => {
  test('what fails half way leaves the old content and nothing else', async () => {
    const dir = tempFolder({ 'a.json': 'old' });
    const file = path.join(dir, 'a.json');
    const failing = writeAtomically(file, async (handle) => {
      await handle.write('ne');
      throw new Error('interrupted');
    });
    await expect(failing).rejects.toThrow('interrupted');
    expect(readFileSync(file, 'utf8')).toBe('old');
    expect(readdirSync(dir)).toEqual(['a.json']);
    await writeAtomically(file, 'new');
    expect(readFileSync(file, 'utf8')).toBe('new');
  });

  test('a folder that is not there is an ERR_LOZA_IO', async () => {
    await expectLozaError(() => writeAtomically('/no/such/a', 'x'), 'ERR_LOZA_IO', '/no/such/a');
  });
});

test('written tensors are read back, aligned, with their metadata', async () => {
  const file = path.join(tempFolder(), 'a.safetensors');
  const bytes = (count: number, value: number) => new Uint8Array(count).fill(value);
  const read = (count: number, value: number) => () => Promise.resolve(bytes(count, value));
  await writeSafetensors(
    file,
    [
      { name: 'b', dtype: 'BF16', shape: [3], read: read(6, 1) },
      { name: 'z', dtype: 'F32', shape: [2, 1], read: read(8, 2) },
      { name: 'empty', dtype: 'F32', shape: [0], read: read(0, 0) },
    ],
    { format: 'pt', more: '"{}' },
  );
  const { tensors, metadata } = await readSafetensorsHeader(file);
  expect(Object.fromEntries(metadata)).toEqual({ format: 'pt', more: '"{}' });
  const content = readFileSync(file);
  for (const [name, value] of [
    ['b', 1],
    ['z', 2],
  ] as const) {
    const { begin, end, dtype } = tensors.get(name)!;
    expect(begin % (dtype === 'F32' ? 4 : 2)).toBe(0);
    expect([...content.subarray(begin, end)]).toEqual([...bytes(end - begin, value)]);
  }
  writeFileSync(file, content.subarray(0, content.length - 1));
  await expectLozaError(() => readSafetensorsHeader(file), 'ERR_LOZA_CHECKPOINT', 'cut off');
});

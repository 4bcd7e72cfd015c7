import { rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { Device, type Stream } from '../../lib/native/device';
import type { Tensor } from '../../lib/native/tensor';
import { forEachDeviceKind } from '../support/devices';
import { expectLozaError } from '../support/errors';
import { tempFolder } from '../support/temp-folder';

forEachDeviceKind('mapped file', (kind) => {
  let device: Device;
  let stream: Stream;
  beforeEach(() => {
    device = new Device(kind, 'f32');
    stream = device.makeStream();
  });
  afterEach(() => device.close());
  const mappedBytes = () => device.memory().mappedWeights;
  const numbers = async (tensor: Tensor) => {
    const copy = device.allocate('f32', tensor.shape, 'workspace'); // a GPU cannot read the file
    stream.upload(copy, tensor);
    return Array.from(await stream.readFloats(copy));
  };

  const dir = tempFolder({
    'data.bin': new Uint8Array(Float32Array.of(1, 2, 3, 4).buffer),
    'empty.bin': '',
    'folder/file': 'x',
  });
  const file = (name: string) => path.join(dir, name);

  test('hold what the file holds, counted until they are released', async () => {
    const mapped = device.mapFile(file('data.bin'), 16);
    expect([mapped.dtype, mapped.shape]).toEqual(['f8e4m3', [16]]);
    expect(mappedBytes()).toBe(16);
    const view = mapped.view('f32', [2, 2], [2, 1], 0);
    const last = mapped.view('f32', [2], [1], 2);
    device.release(mapped);
    expect(await numbers(view)).toEqual([1, 2, 3, 4]);
    device.release(view);
    await stream.synchronize();
    expect(mappedBytes()).toBe(16); // the other view holds it
    expect(await numbers(last)).toEqual([3, 4]);
    device.release(last);
    await stream.synchronize();
    expect(mappedBytes()).toBe(0);
  });

  test('survive the removal of the file, and end before its end', async () => {
    writeFileSync(file('gone.bin'), new Uint8Array(Float32Array.of(5, 6).buffer));
    const mapped = device.mapFile(file('gone.bin'), 8);
    rmSync(file('gone.bin'));
    expect(await numbers(mapped.view('f32', [2], [1], 0))).toEqual([5, 6]);
    const beyond = () => mapped.view('f32', [1], [1], 2);
    await expectLozaError(beyond, 'ERR_LOZA_INTERNAL', 'lie outside');
    const between = () => mapped.slice(0, 1, 8).view('f32', [1], [1], 0);
    await expectLozaError(between, 'ERR_LOZA_INTERNAL', /not aligned|lie outside/);
  });

  test.each([
    ['missing.bin', 16, 'ERR_LOZA_NOT_FOUND', /missing.bin: No such file/],
    ['data.bin', 15, 'ERR_LOZA_IO', /had 15 bytes when it was read and has 16 now/],
    ['data.bin', 17, 'ERR_LOZA_IO', /had 17 bytes/],
    ['data.bin', -1, 'ERR_LOZA_IO', /data.bin/],
    ['data.bin', NaN, 'ERR_LOZA_IO', /data.bin/],
    ['empty.bin', 16, 'ERR_LOZA_IO', /has 0 now/],
    ['empty.bin', 0, 'ERR_LOZA_IO', /empty.bin/],
    ['folder', 16, 'ERR_LOZA_IO', /folder/],
    ['data.bin/x', 16, 'ERR_LOZA_IO', /Not a directory/],
    ['', 16, 'ERR_LOZA_IO', /./],
  ] as const)('%j as %i bytes: %s', async (name, bytes, code, message) => {
    await expectLozaError(() => device.mapFile(file(name), bytes), code, message);
    expect(mappedBytes()).toBe(0);
  });

  test('uploads copy any part of a file, large or small, in order', async () => {
    const values = Float32Array.from({ length: 3 * 2 ** 20 }, (_, i) => i % 8191);
    writeFileSync(file('large.bin'), new Uint8Array(values.buffer));
    const mapped = device.mapFile(file('large.bin'), values.byteLength);
    const bytes = (start: number, end: number) => mapped.slice(0, 4 * start, 4 * end);
    const target = device.allocate('f32', [values.length], 'weights');
    const part = (start: number, end: number) =>
      target.view('f8e4m3', [4 * (end - start)], [1], 4 * start);
    stream.upload(part(0, values.length), bytes(0, values.length));
    stream.upload(part(5, 8), bytes(7, 10));
    const result = await stream.readFloats(target);
    values.copyWithin(5, 7, 10);
    expect(Buffer.from(result.buffer).equals(Buffer.from(values.buffer))).toBe(true);
  });

  test('an upload from elsewhere is refused', async () => {
    const tensor = device.allocate('f8e4m3', [4], 'weights');
    await expectLozaError(() => stream.upload(tensor, tensor), 'ERR_LOZA_INTERNAL', 'mapped file');
  });

  // A CPU reads where the file is mapped: there the system would end the process.
  (kind === 'cpu' ? test.skip : test)('a file shortened before an upload: an error', async () => {
    const size = 8 * 2 ** 20;
    writeFileSync(file('short.bin'), new Uint8Array(size));
    const mapped = device.mapFile(file('short.bin'), size);
    const tensor = device.allocate('f8e4m3', [size], 'weights');
    truncateSync(file('short.bin'), size / 2);
    stream.upload(tensor, mapped);
    await expectLozaError(() => stream.synchronize(), 'ERR_LOZA_IO', 'was shortened');
    stream.upload(tensor.slice(0, 0, size / 2), mapped.slice(0, 0, size / 2));
    await stream.synchronize();
  });

  test('a folder is no file, whatever size it reports', async () => {
    const { size } = statSync(dir);
    await expectLozaError(() => device.mapFile(dir, size), 'ERR_LOZA_IO', dir);
  });
});

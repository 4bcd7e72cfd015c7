import { Device, type Arena, type Stream } from '../../lib/native/device';
import { Ops } from '../../lib/native/ops';
import { rowMajor, type Tensor } from '../../lib/native/tensor';
import { forEachDeviceKind } from '../support/devices';
import { lozaErrorOf } from '../support/errors';
import { Random } from '../../lib/selftest/random';

test.each([
  [[], []],
  [[5], [1]],
  [
    [2, 3, 4],
    [12, 4, 1],
  ],
  [
    [2, 0, 4],
    [0, 4, 1],
  ],
])('row-major strides of [%p] are [%p]', (shape, strides) => {
  expect(rowMajor(shape)).toEqual(strides);
});

forEachDeviceKind('tensor', (kind) => {
  let device: Device;
  let arena: Arena;
  let stream: Stream;
  let ops: Ops;
  beforeAll(() => {
    device = new Device(kind, 'f32');
    [arena, stream] = [device.makeArena(), device.makeStream()];
    ops = new Ops(stream, arena);
  });
  afterAll(() => device.close());
  const numbers = async (tensor: Tensor) => Array.from(await stream.readFloats(tensor));

  describe('views', () => {
    test('slices and reshapes of slices, against JavaScript', async () => {
      const random = new Random('views');
      for (let run = 0; run < 60; run++) {
        const shape = [1, 2, 3].map(() => 1 + random.below(6));
        const values = random.normals(shape[0]! * shape[1]! * shape[2]!);
        let view: Tensor = arena.allocate('f32', shape);
        stream.write(view, values);
        let offset = 0;
        for (let i = 0; i < 4; i++) {
          const dimension = random.below(6) - 3;
          const from = random.below(view.dim(dimension));
          const to = from + 1 + random.below(view.dim(dimension) - from);
          offset += from * view.strides.at(dimension)!;
          view = view.slice(dimension, from, to);
        }
        const [a, b, c] = view.shape as [number, number, number];
        const copy = arena.allocate('f32', view.shape);
        ops.cast(copy, view);
        const expected = Array.from({ length: a * b * c }, (_, i) => {
          const index = [Math.floor(i / (b * c)), Math.floor(i / c) % b, i % c];
          return values[offset + index.reduce((sum, at, d) => sum + at * view.strides[d]!, 0)];
        });
        expect(await numbers(copy)).toEqual(expected);
        expect(await numbers(copy.reshape(c, a * b))).toEqual(expected);
      }
    });

    test.each([
      [[4, 6], 0, 2, 2],
      [[4, 6], 1, 6, 6],
      [[0, 8], 1, 3, 8],
      [[4, 0, 6], 2, 3, 6],
    ])('[%p] sliced to nothing, or of nothing, is empty', (shape, dimension, from, to) => {
      const part = arena.allocate('f32', shape).slice(dimension, from, to);
      expect(part.shape).toEqual(shape.with(dimension, to - from));
      expect(part.elements).toBe(0);
    });

    test('bytes can be seen as another type', async () => {
      const tensor = arena.allocate('i32', [2]);
      stream.write(tensor, Int32Array.of(0x3f800000, 0x40000000));
      expect(await numbers(tensor.view('f32', [2], [1], 0))).toEqual([1, 2]);
      const halves = tensor.view('bf16', [2], [2], 1);
      const wide = arena.allocate('f32', [2]);
      ops.cast(wide, halves);
      expect(await numbers(wide)).toEqual([1, 2]);
    });

    const shape = [4, 6];
    const refused: [string, (tensor: Tensor) => unknown][] = [
      ['a slice from a negative row', (t) => t.slice(0, -1, 2)],
      ['a slice past the end', (t) => t.slice(0, 0, 5)],
      ['a slice that ends before it begins', (t) => t.slice(1, 3, 2)],
      ['a slice of another dimension', (t) => t.slice(2, 0, 1)],
      ['the extent of another dimension', (t) => t.dim(-3)],
      ['more elements', (t) => t.reshape(5, 5)],
      ['an offset past the end', (t) => t.view('f32', [1], [1], 24)],
      ['a negative offset', (t) => t.view('f32', [1], [1], -1)],
      ['a negative stride', (t) => t.view('f32', [2], [-1], 1)],
      ['a negative extent', (t) => t.view('f32', [-2], [1], 0)],
      ['a stride past the end', (t) => t.view('f32', [5, 6], [6, 1], 0)],
      ['a stride that overflows', (t) => t.view('f32', [3, 6], [2 ** 62, 1], 0)],
      ['a stride that overflows to zero', (t) => t.view('f32', [5, 6], [2 ** 62, 1], 0)],
      ['a size that overflows', (t) => t.view('f32', [5, 1], [2 ** 60, 1], 0)],
      ['an offset that overflows', (t) => t.view('f32', [2], [1], 2 ** 61)],
      ['a huge extent', (t) => t.view('f32', [2 ** 50], [0], 0)],
      ['an extent that is no number', (t) => t.view('f32', [NaN], [1], 0)],
      ['fewer strides than extents', (t) => t.view('f32', [2, 2], [1], 0)],
      ['five dimensions', (t) => t.reshape(1, 1, 2, 2, 6)],
      ['floats between floats', (t) => t.view('bf16', [5], [1], 1).view('f32', [1], [1], 0)],
      ['a reshape of what is not contiguous', (t) => t.slice(1, 0, 2).reshape(8)],
    ];
    test.each(refused)('%s: refused', async (_, view) => {
      const tensor = device.allocate('f32', shape, 'kv');
      const error = await lozaErrorOf(() => view(tensor));
      expect(['ERR_LOZA_INTERNAL', 'ERR_LOZA_INVALID_ARG']).toContain(error.code);
    });
  });
});

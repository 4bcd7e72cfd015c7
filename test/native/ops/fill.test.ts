import { forEachDevice } from '../../support/devices';
import { expectLozaError } from '../../support/errors';

forEachDevice('fill', (lab) => {
  test.each([
    ['f32', 0.1, Math.fround(0.1)],
    ['f32', -Infinity, -Infinity],
    ['bf16', 1.001953125 + 2 ** -7, 1.0078125],
    ['i32', -7, -7],
  ] as const)('%s with %d', async (dtype, value, expected) => {
    const out = await lab.runOne((ops) => {
      const tensor = ops.arena.allocate(dtype, [3, 20001]);
      ops.fill(tensor, value);
      return tensor;
    });
    expect(out.length).toBe(60003);
    expect(out.every((x) => x === expected)).toBe(true);
  });

  test('NaN', async () => {
    const out = await lab.runOne((ops) => {
      const tensor = ops.float(5);
      ops.fill(tensor, 0);
      ops.fill(tensor, NaN);
      return tensor;
    });
    expect([...out]).toEqual([NaN, NaN, NaN, NaN, NaN]);
  });

  test('strided tensors are refused', async () => {
    const run = () =>
      lab.run((ops) => {
        ops.fill(ops.float(4, 4).slice(1, 0, 2), 0);
        return {};
      });
    await expectLozaError(run, 'ERR_LOZA_INTERNAL', /contiguous/);
  });
});

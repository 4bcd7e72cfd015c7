import { cast } from '../../../lib/selftest/cases/cast';
import { compareBits } from '../../../lib/selftest/compare';
import { forEachDevice } from '../../support/devices';
import { expectLozaError } from '../../support/errors';
import { decodeF8, floatOf, host, roundToBf16 } from '../../../lib/selftest/host-tensor';
import { sweep } from '../../support/sweep';

forEachDevice('cast', (lab) => {
  sweep(lab, cast);

  test('every f8e4m3 code is exact', async () => {
    const out = await lab.runOne((ops) => {
      const codes = ops.arena.allocate('f8e4m3', [256]);
      lab.stream.write(
        codes,
        Uint8Array.from({ length: 256 }, (_, code) => code),
      );
      const result = ops.float(256);
      ops.cast(result, codes);
      return result;
    });
    const expected = Array.from({ length: 256 }, (_, code) => decodeF8(code));
    compareBits('f8e4m3', out, expected, [256]);
  });

  test('bf16 rounds to nearest even and keeps NaN and infinities', async () => {
    const bits = [
      ...[0x3f800000, 0x3f808000, 0x3f818000, 0x3f807fff, 0x3f808001, 0xbf808000, 0xbf818001],
      ...[0x7f7fffff, 0x7f800000, 0xff800000, 0x7f800001, 0x7fffffff, 0xffffffff],
      ...[0x00000000, 0x80000000, 0x00000001, 0x00008000, 0x00018000, 0x80008001],
    ];
    const values = bits.map(floatOf);
    const out = await lab.runOne((ops) => {
      const result = ops.arena.allocate('bf16', [bits.length]);
      ops.cast(result, lab.upload(host('f32', [bits.length], values)));
      return result;
    });
    compareBits('bf16', out, values.map(roundToBf16), [bits.length]);
  });

  test.each([
    ['another shape', 'f32', [2, 3], undefined, /does not fit/],
    ['integers', 'i32', [2, 4], undefined, /cast in/],
    ['scales for another shape', 'f8e4m3', [2, 4], [2, 1], /cast scale/],
    ['scales for floats', 'f32', [2, 4], [1, 1], /cast in with scale/],
  ] as const)('%s: refused', async (_, dtype, shape, scale, message) => {
    const run = () =>
      lab.runOne((ops) => {
        const out = ops.float(2, 4);
        ops.cast(out, ops.arena.allocate(dtype, shape), scale && ops.float(...scale));
        return out;
      });
    await expectLozaError(run, 'ERR_LOZA_INTERNAL', message);
  });
});

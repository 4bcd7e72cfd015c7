import { swiglu } from '../../../lib/selftest/cases/swiglu';
import { forEachDevice } from '../../support/devices';
import { sweep } from '../../support/sweep';

forEachDevice('swiglu', (lab) => {
  sweep(lab, swiglu);

  test('gate and up of different widths are refused', async () => {
    const swigluOf = () =>
      lab.runOne((ops) => {
        const [out, gate, up] = [8, 8, 7].map((width) => ops.activation(2, width).handle);
        ops.stream.native.Swiglu(out!, gate!, up!);
        return ops.activation(2, 8);
      });
    await expect(swigluOf).rejects.toThrow(
      /swiglu up: expected (f32|bf16)\[2, 8\], got (f32|bf16)\[2, 7\]/,
    );
  });
});

import {
  attentionForward,
  mixAttention,
  mixAttentionBackward,
} from '../../../lib/native/attention-gradient-ops';
import { fullRange, type Ops } from '../../../lib/native/ops';
import { backwardInputs, backwardScale } from '../../../lib/selftest/cases/attention-backward';
import { zigzag } from '../../../lib/selftest/cases/key-range';
import { mixAttentionCases } from '../../../lib/selftest/cases/mix-attention';
import { compareBits } from '../../../lib/selftest/compare';
import { Random } from '../../../lib/selftest/random';
import { forEachDevice, type Lab } from '../../support/devices';
import { expectLozaError } from '../../support/errors';
import { sweep } from '../../support/sweep';

const sizes = { heads: 2, nope: 16, rope: 8, value: 24, range: fullRange };

/** A full and a streaming attention of one sequence, their mix and the gradient of alpha. */
async function mixOf(lab: Lab, length: number, alpha: number) {
  const c = { ...sizes, sequences: [{ length }] };
  const inputs = backwardInputs(c, new Random('mix'), lab.activation);
  const run = (ops: Ops) => {
    const tensors = lab.uploadAll(inputs);
    const segments = ops.upload(Int32Array.of(0, length, 0, 0, length, 0), 1, 6);
    const attend = (range: typeof zigzag) =>
      attentionForward(
        ops,
        { ...tensors, segments, softmaxScale: backwardScale, range },
        ops.activation(length, c.heads, c.value),
      ).out;
    const [full, streaming] = [attend(fullRange), attend(zigzag)];
    const [alphas, dAlpha] = [ops.float(1), ops.float(1)];
    ops.fill(alphas, alpha);
    ops.fill(dAlpha, 0);
    mixAttentionBackward(ops, alphas, full, streaming, tensors.dOut, dAlpha, {});
    return { full, streaming, mixed: mixAttention(ops, alphas, full, streaming), dAlpha };
  };
  const { full, streaming, mixed, dAlpha } = await lab.run(run);
  return { full: full!, streaming: streaming!, mixed: mixed!, dAlpha: dAlpha![0]! };
}

forEachDevice('mix_attention', (lab) => {
  sweep(lab, mixAttentionCases);

  test('alpha 1 has the bits of full attention, alpha 0 those of streaming', async () => {
    const one = await mixOf(lab, 1300, 1);
    compareBits('mixed', one.mixed, one.full, []);
    const none = await mixOf(lab, 1300, 0);
    compareBits('mixed', none.mixed, none.streaming, []);
    expect(none.dAlpha).not.toBe(0);
    expect(none.dAlpha).toBe(one.dAlpha);
  });

  test('a text that fits the window: alpha moves nothing', async () => {
    const { full, mixed, dAlpha } = await mixOf(lab, 1024, 0.37);
    compareBits('mixed', mixed, full, []);
    expect(dAlpha).toBe(0);
  });

  test('tensors of other shapes are refused', async () => {
    const run = (ops: Ops) => {
      const alpha = ops.float(1);
      return { out: mixAttention(ops, alpha, ops.float(4, 2, 8), ops.float(4, 2, 9)) };
    };
    await expectLozaError(() => lab.run(run), 'ERR_LOZA_INTERNAL', /mix_attention: streaming/);
  });
});

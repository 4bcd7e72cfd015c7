import path from 'node:path';
import { MixRunner } from '../../lib/calibrate/mix-runner';
import type { MixOptions } from '../../lib/calibrate/mixed-model';
import { LanguageModel } from '../../lib/language-model';
import { layOut } from '../../lib/train/batch';
import type { TrainingSequence } from '../../lib/train/data/sequences';
import type { Session } from '../../lib/train/session';
import { forEachDeviceKind } from '../support/devices';
import { goldenDir } from '../support/goldens';
import {
  meanLoss,
  mixGradient,
  openFrozen,
  randomBatch,
  randomSequences,
  withoutChoice,
} from '../support/training';

/** Everything up to 256 tokens is in the window. */
const range = { sinkBlocks: 1, localBlocks: 1 };
const defaults: MixOptions = { range, objective: 'distill', fullTerm: 'exact' };
const nextToken: MixOptions = { ...defaults, objective: 'next-token' };
const families = ['longcat-full', 'deepseek-v2', 'deepseek-v3-yarn', 'glm4-moe-lite'];

for (const name of families) {
  forEachDeviceKind(`${name} with mixed attentions`, (kind) => {
    let session: Session;
    let count: number;
    let vocabulary: number;
    let sequences: TrainingSequence[];
    beforeAll(async () => {
      session = await openFrozen(withoutChoice(name), kind);
      count = session.plan.model.attentions;
      vocabulary = session.plan.model.mla.vocabSize;
      sequences = randomSequences([300, 270], vocabulary);
    });
    afterAll(() => session.close());

    test.each<Partial<MixOptions>>([
      { objective: 'distill' },
      { objective: 'next-token' },
      { objective: 'distill', fullTerm: 'detached' },
    ])('the gradient with %j is that of central differences', async (change) => {
      const options = { ...defaults, ...change };
      const batch = randomBatch([330, 40], vocabulary);
      const alphas = Array.from({ length: count }, (_, i) => 0.3 + 0.1 * i);
      const { gradient } = await mixGradient(session, options, batch, alphas);
      const size = Math.hypot(...gradient);
      const h = 0.03;
      // The first alpha, through which all other attentions are reached, and all at once.
      for (const direction of [
        alphas.map((_, i) => (i === 0 ? 1 : 0)),
        alphas.map((a) => 2 - 4 * a),
      ]) {
        const at = async (shift: number) => {
          const moved = alphas.map((alpha, i) => alpha + shift * direction[i]!);
          return (await mixGradient(session, options, batch, moved)).loss;
        };
        const difference = ((await at(h)) - (await at(-h))) / (2 * h);
        const slope = gradient.reduce((sum, one, i) => sum + one * direction[i]!, 0);
        expect(Math.abs(slope - difference) / (size * Math.hypot(...direction))).toBeLessThan(3e-3);
      }
    });

    test('the gradients along a path add up to the difference of the losses at its ends', async () => {
      const options = nextToken;
      const batch = randomBatch([330], vocabulary);
      const panels = 4;
      let integral = 0;
      const losses: number[] = [];
      for (let i = 0; i <= panels; i++) {
        const alphas = new Array<number>(count).fill(i / panels);
        const { loss, gradient } = await mixGradient(session, options, batch, alphas);
        const weight = i === 0 || i === panels ? 1 : i % 2 === 1 ? 4 : 2;
        integral += (weight / (3 * panels)) * gradient.reduce((sum, slope) => sum + slope, 0);
        losses.push(loss);
      }
      const difference = losses.at(-1)! - losses[0]!;
      expect(Math.abs(difference)).toBeGreaterThan(1e-4);
      expect(Math.abs(integral / difference - 1)).toBeLessThan(1e-2);
    });

    test('within the window nothing depends on the alphas', async () => {
      const options = nextToken;
      const batch = randomBatch([256, 100], vocabulary);
      const one = await mixGradient(session, options, batch, new Array<number>(count).fill(1));
      const other = await mixGradient(session, options, batch, new Array<number>(count).fill(0.37));
      expect([...one.gradient, ...other.gradient].every((slope) => slope === 0)).toBe(true);
      expect(other.loss).toBe(one.loss);
    });

    test('ablations are the losses with one attention streaming', async () => {
      const runner = new MixRunner(session, sequences, nextToken, 1);
      const state = { sequences: 0, labelled: 0, sums: [] as number[] };
      const attentions = Array.from({ length: count }, (_, i) => i);
      while (state.sequences < 2) await runner.ablate(state, 2, attentions, undefined);
      for (const [i, sum] of state.sums.entries()) {
        const alphas = attentions.map((one) => (one === i - 1 ? 0 : 1));
        const { loss } = await mixGradient(session, nextToken, layOut(sequences), alphas);
        expect(Math.abs(sum / state.labelled / loss - 1)).toBeLessThan(1e-6);
      }
    });

    test('sequences add up to the same, one after the other or together', async () => {
      const alphas = Float32Array.from({ length: count }, (_, i) => 0.3 + 0.1 * i);
      const [one, both] = await Promise.all(
        [1, 2].map((atOnce) =>
          new MixRunner(session, sequences, defaults, atOnce).gradient([0, 1], alphas, undefined),
        ),
      );
      expect(Math.abs(one!.loss / both!.loss - 1)).toBeLessThan(1e-5);
      const size = Math.hypot(...both!.gradient);
      const apart = both!.gradient.map((slope, i) => slope - one!.gradient[i]!);
      expect(Math.hypot(...apart) / size).toBeLessThan(1e-4);
    });

    test('the gradient of the last attention does not depend on where the full term is from', async () => {
      const batch = randomBatch([330], vocabulary);
      const alphas = [...new Array<number>(count - 1).fill(1), 0.5];
      const [exact, detached] = await Promise.all(
        (['exact', 'detached'] as const).map((fullTerm) =>
          mixGradient(session, { ...defaults, fullTerm }, batch, alphas),
        ),
      );
      const last = count - 1;
      expect(exact!.gradient[last]).not.toBe(0);
      expect(detached!.gradient[last]! / exact!.gradient[last]!).toBeCloseTo(1, 4);
    });
  });
}

for (const name of families) {
  forEachDeviceKind(`${name} as it is`, (kind) => {
    const dir = path.join(goldenDir, name);
    test.each([
      [1, '0'],
      [0, '1'],
    ])('with alphas of %i gives the loss that inference gives', async (alpha, type) => {
      const session = await openFrozen(dir, kind);
      const { attentions, mla } = session.plan.model;
      const batch = randomBatch([330], mla.vocabSize);
      const options = nextToken;
      const alphas = new Array<number>(attentions).fill(alpha);
      const { loss } = await mixGradient(session, options, batch, alphas);
      session.close();

      const attention = { layerType: type.repeat(attentions), ...range };
      await using model = await LanguageModel.load(dir, {
        device: kind,
        dtype: 'float32',
        attention,
      });
      const { logits } = await model.score(batch.tokens, { positions: batch.labelled });
      expect(Math.abs(loss / meanLoss(logits, batch.targets, mla.vocabSize) - 1)).toBeLessThan(
        kind === 'cpu' ? 1e-6 : 1e-5,
      );
    });
  });
}

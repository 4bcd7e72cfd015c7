import path from 'node:path';
import type { MixOptions } from '../../lib/calibrate/mixed-model';
import { LanguageModel } from '../../lib/language-model';
import type { Session } from '../../lib/train/session';
import { goldenDir } from '../support/goldens';
import { mixGradient, openFrozen, randomBatch, withoutChoice } from '../support/training';

/** Everything up to 256 tokens is in the window. */
const range = { sinkBlocks: 1, localBlocks: 1 };
const defaults: MixOptions = { range, objective: 'distill', fullTerm: 'exact' };
const families = ['longcat-full', 'deepseek-v2', 'deepseek-v3-yarn', 'glm4-moe-lite'];

describe.each(families)('%s with mixed attentions', (name) => {
  let session: Session;
  let count: number;
  let vocabulary: number;
  beforeAll(async () => {
    session = await openFrozen(withoutChoice(name));
    count = session.plan.model.attentions;
    vocabulary = session.plan.model.mla.vocabSize;
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
    const options: MixOptions = { ...defaults, objective: 'next-token' };
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
    const options: MixOptions = { ...defaults, objective: 'next-token' };
    const batch = randomBatch([256, 100], vocabulary);
    const one = await mixGradient(session, options, batch, new Array<number>(count).fill(1));
    const other = await mixGradient(session, options, batch, new Array<number>(count).fill(0.37));
    expect([...one.gradient, ...other.gradient].every((slope) => slope === 0)).toBe(true);
    expect(other.loss).toBe(one.loss);
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

describe.each(families)('%s as it is', (name) => {
  const dir = path.join(goldenDir, name);
  test.each([
    [1, '0'],
    [0, '1'],
  ])('with alphas of %i gives the loss that inference gives', async (alpha, type) => {
    const session = await openFrozen(dir);
    const { attentions, mla } = session.plan.model;
    const batch = randomBatch([330], mla.vocabSize);
    const options: MixOptions = { ...defaults, objective: 'next-token' };
    const alphas = new Array<number>(attentions).fill(alpha);
    const { loss } = await mixGradient(session, options, batch, alphas);
    session.close();

    const attention = { layerType: type.repeat(attentions), ...range };
    await using model = await LanguageModel.load(dir, { device: 'cpu', attention });
    const { logits } = await model.score(batch.tokens, { positions: batch.labelled });
    expect(Math.abs(loss / meanLoss(logits, batch.targets, mla.vocabSize) - 1)).toBeLessThan(1e-6);
  });
});

function meanLoss(logits: Float32Array, targets: Int32Array, vocabulary: number): number {
  let sum = 0;
  targets.forEach((target, i) => {
    const row = logits.subarray(i * vocabulary, (i + 1) * vocabulary);
    const most = Math.max(...row);
    const all = row.reduce((total, logit) => total + Math.exp(logit - most), 0);
    sum += Math.log(all) + most - row[target]!;
  });
  return sum / targets.length;
}

import path from 'node:path';
import type { Tensor } from '../../lib/native/tensor';
import { uploadBatch, uploadLabels } from '../../lib/train/batch';
import { nextTokenLoss } from '../../lib/train/objectives';
import { TrainableWeights, type Parameter } from '../../lib/train/parameters';
import { zeros, type AttentionMode, type Pass } from '../../lib/train/pass';
import { openDevice, openSession, planTraining, type Session } from '../../lib/train/session';
import { readTwin, writeTwin } from '../support/checkpoint-twin';
import { goldenDir } from '../support/goldens';
import { quiet, randomBatch, sumOf, withoutChoice } from '../support/training';

const range = { sinkBlocks: 1, localBlocks: 1 };

/** A model with all its weights in training. */
class Trained {
  private constructor(
    readonly session: Session,
    readonly weights: TrainableWeights,
  ) {}

  static async open(dir: string): Promise<Trained> {
    const plan = await planTraining(dir, 'full', undefined);
    let weights: TrainableWeights | undefined;
    const session = await openSession(plan, openDevice(plan, quiet), quiet, (device, ops) => {
      return (weights = new TrainableWeights(plan.checkpoint, device, ops));
    });
    return new Trained(session, weights!);
  }

  /** The loss of a batch, every other attention streaming; gradients are added up. */
  async loss(batch: ReturnType<typeof randomBatch>): Promise<number> {
    const { grads, model, angles } = this.session;
    const { ops } = grads;
    const attention = (i: number): AttentionMode =>
      i % 2 === 0 ? { kind: 'streaming', range } : { kind: 'full' };
    const gradientOf = (weight: Tensor) => this.weights.gradientOf(weight);
    const losses = await ops.arena.scope(() => {
      const pass: Pass = { ...uploadBatch(grads, batch, angles), attention, gradientOf };
      const labels = uploadLabels(grads, batch, 1 / batch.labelled.length);
      const kept: Tensor[][] = [];
      const [x] = model.forward([pass], kept) as [Tensor];
      const d = zeros(ops, ...x.shape);
      const loss = nextTokenLoss(pass, model.head, x, labels, d);
      model.backward([pass], kept, d);
      return ops.stream.readFloats(loss);
    });
    return sumOf(losses);
  }

  read(tensor: Tensor): Promise<Float32Array> {
    return this.session.grads.ops.stream.readFloats(tensor);
  }

  /** The parameters of a kind, whichever layer they are in. */
  kinds(): Map<string, Parameter[]> {
    const kinds = new Map<string, Parameter[]>();
    for (const parameter of this.weights.parameters) {
      const kind = parameter.names[0]!.replace(/\d+/g, '#');
      kinds.set(kind, [...(kinds.get(kind) ?? []), parameter]);
    }
    return kinds;
  }
}

describe.each(['longcat-full', 'deepseek-v2'])('weights of %s', (name) => {
  let trained: Trained;
  beforeAll(async () => {
    trained = await Trained.open(withoutChoice(name));
  });
  afterAll(() => trained.session.close());

  test('a step along the gradient changes the loss by its square', async () => {
    const { weights, session } = trained;
    const { stream } = session.grads.ops;
    const batch = randomBatch([300, 30], session.plan.model.mla.vocabSize);
    weights.clearGradients();
    await trained.loss(batch);
    const kinds = await Promise.all(
      [...trained.kinds()].map(async ([kind, parameters]) => {
        const training = parameters.flatMap((one) => one.training ?? []);
        const values = parameters.map(({ master }) => trained.read(master));
        const slopes = training.map(({ gradient }) => trained.read(gradient));
        return {
          ...{ kind, parameters },
          ...{ values: await Promise.all(values), slopes: await Promise.all(slopes) },
        };
      }),
    );
    for (const { kind, parameters, values, slopes } of kinds) {
      if (slopes.length === 0) continue;
      const square = slopes.reduce((sum, one) => sum + sumOf(one.map((x) => x * x)), 0);
      const h = 0.02 / Math.sqrt(square);
      const at = async (shift: number) => {
        parameters.forEach(({ master }, i) =>
          stream.write(
            master,
            values[i]!.map((value, j) => value + shift * slopes[i]![j]!),
          ),
        );
        return trained.loss(batch);
      };
      const slope = ((await at(h)) - (await at(-h))) / (2 * h);
      await at(0);
      expect({ kind, ratio: slope / square }).toEqual({ kind, ratio: expect.closeTo(1, 1.5) });
    }
  });
});

test('masters, moments and checkpoints come back as they were written', async () => {
  const dir = path.join(goldenDir, 'longcat-full');
  const trained = await Trained.open(dir);
  const out = writeTwin(readTwin(dir));
  const written = path.join(out, 'model.safetensors');
  await trained.weights.writeCheckpoint(written);
  expect(
    readTwin(out)
      .tensors.map(({ name }) => name)
      .sort(),
  ).toEqual(
    readTwin(dir)
      .tensors.map(({ name }) => name)
      .sort(),
  );
  for (const tensor of readTwin(dir).tensors) {
    const same = readTwin(out).tensors.find(({ name }) => name === tensor.name)!;
    expect(same.dtype).toBe(tensor.dtype);
    expect(Buffer.from(same.data!).equals(Buffer.from(tensor.data!))).toBe(true);
  }
  trained.session.close();
});

import type { Checkpoint } from '../checkpoint/checkpoint';
import { checkScales } from '../checkpoint/scales';
import { WeightLoader, type WeightSource } from '../checkpoint/weights';
import { throwIfAborted } from '../errors';
import {
  computeType,
  chooseDevice,
  copyWeights,
  planLoad,
  uploadAngles,
  withDtypeHint,
  type LoadPlan,
} from '../load-model';
import type { LoadProgress } from '../load-options';
import type { NativeDeviceInfo } from '../native/binding';
import { Device } from '../native/device';
import { GradientOps } from '../native/gradient-ops';
import { Ops } from '../native/ops';
import { bytesPerElement, type DType } from '../native/tensor';
import type { RopeAngles } from '../runner/step';
import { buildTrainable, type TrainableModel } from './model/trainable-model';

export interface SessionOptions {
  device: 'auto' | 'cpu' | 'cuda';
  dtype: 'auto' | 'float32' | 'bfloat16';
  signal: AbortSignal | undefined;
  onLoad?: ((progress: LoadProgress) => void) | undefined;
}

/** Where a session's weights come from, and what brings them to the device. */
export interface SessionWeights {
  source: WeightSource;
  load(options: SessionOptions): Promise<void>;
}

/** A differentiable model on a device. Whatever it takes goes with `close`. */
export interface Session {
  plan: LoadPlan;
  device: Device;
  deviceInfo: NativeDeviceInfo;
  grads: GradientOps;
  angles: RopeAngles;
  model: TrainableModel;
  close(): void;
}

/** A device that a plan can run on, opened with the type of activations it will have. */
export interface OpenDevice {
  device: Device;
  deviceInfo: NativeDeviceInfo;
}

/**
 * The plan of a checkpoint with full attention everywhere, or as it says; `yarnFactor` stretches its
 * positions.
 *
 * @throws LozaError as `planLoad`.
 */
export function planTraining(
  dir: string,
  attention: 'full' | 'auto',
  signal: AbortSignal | undefined,
  yarnFactor?: number,
): Promise<LoadPlan> {
  return planLoad(dir, { attention, rope: { yarnFactor, exactAngles: false }, signal });
}

export function openDevice(plan: LoadPlan, options: SessionOptions): OpenDevice {
  const { info } = chooseDevice(options.device);
  const type: DType = computeType(info.kind, options.dtype, plan.checkpoint);
  return { device: new Device(info.kind, info.kind === 'cpu' ? 'f32' : type), deviceInfo: info };
}

/** Builds the model on an open device, which is closed if that fails. */
export async function openSession(
  plan: LoadPlan,
  { device, deviceInfo }: OpenDevice,
  options: SessionOptions,
  makeWeights: (device: Device, ops: Ops) => SessionWeights = (_, ops) =>
    frozenWeights(plan, device, ops),
): Promise<Session> {
  try {
    const ops = new Ops(device.makeStream(), device.makeArena());
    const weights = makeWeights(device, ops);
    const model = buildTrainable(plan, weights.source);
    await weights.load(options);
    const angles = uploadAngles(device, ops, plan.table, false);
    await ops.stream.synchronize();
    throwIfAborted(options.signal);
    const grads = new GradientOps(ops);
    return { plan, device, deviceInfo, grads, angles, model, close: () => device.close() };
  } catch (error) {
    device.close();
    throw withDtypeHint(error, device);
  }
}

/** Weights as inference has them, but never quantised: nothing of them is trained. */
function frozenWeights({ checkpoint }: LoadPlan, device: Device, ops: Ops): SessionWeights {
  const loader = new WeightLoader(checkpoint, device, ops, { dequantise: true });
  return {
    source: loader,
    async load({ signal, onLoad }) {
      await checkScales(checkpoint, signal);
      await copyWeights(loader, ops, { signal, onProgress: onLoad });
      loader.finish();
    },
  };
}

/** Bytes of the weights of a checkpoint that is frozen, at the most. */
export function frozenBytes({ tensors }: Pick<Checkpoint, 'tensors'>, activation: DType): number {
  let total = 0;
  for (const { dtype, begin, end } of tensors.values()) {
    total += (end - begin) * (dtype === 'F8_E4M3' ? bytesPerElement[activation] : 1);
  }
  return total;
}

import type { Config } from '../checkpoint/config';
import type { MlaConfig } from '../checkpoint/mla-config';
import type { WeightSource } from '../checkpoint/weights';
import type { Ops } from '../native/ops';
import type { Tensor } from '../native/tensor';
import type { Step } from '../runner/step';

/** A model that can run: layers over native operations. */
export interface Model {
  /** The hidden states of a step's rows, [rows, hidden], before the final norm. */
  forward(step: Step): Tensor;
  /** Logits of some of these rows, [rows, vocabulary]. */
  logits(ops: Ops, hidden: Tensor): Tensor;
}

/** All that config.json says about a model; weights come later. */
export interface ModelPlan {
  readonly mla: MlaConfig;
  readonly layers: number;
  /** Attentions in the order of the layers; LongCat has two a layer. */
  readonly attentions: number;
  /** Routed experts, zero experts not counted; 0 for a dense model. */
  readonly experts: number;
  /** Experts past those that return their input. */
  readonly zeroExperts: number;
  /** Tensors that the checkpoint may hold although the model does not use them, and what they are. */
  leftAside(name: string): string | undefined;
  /** `softmaxFactor` is YaRN's M², which may come from the user's extension. */
  build(weights: WeightSource, softmaxFactor: number): Model;
}

/** One family of models: how its checkpoints are called and read. */
export interface ModelFamily {
  readonly architectures: readonly string[];
  readonly modelTypes: readonly string[];
  /** Throws ERR_LOZA_CONFIG or ERR_LOZA_UNSUPPORTED with the key's name. */
  plan(config: Config): ModelPlan;
}

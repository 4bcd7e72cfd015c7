import type { LoadPlan } from '../../load-model';
import type { WeightSource } from '../../checkpoint/weights';
import { readDeepseek } from '../../model/deepseek';
import { longcatFlash, readLongcat } from '../../model/longcat-flash';
import { findFamily } from '../../model/registry';
import type { Tensor } from '../../native/tensor';
import { TokenHead } from '../layers/token-head';
import { copyOf, type Pass } from '../pass';
import { DeepseekLayer } from './deepseek-layer';
import { LongcatLayer } from './longcat-layer';

/** One layer with its gradient. A record is what a layer keeps between its two directions. */
export interface TrainableLayer<Record = unknown> {
  /** Changes the residual stream x, f32 [rows, hidden], in place. */
  forward(pass: Pass, x: Tensor): Record;
  /** Turns d, the gradient of what `forward` made of x, into that of x, in place. */
  backward(pass: Pass, record: Record, d: Tensor): void;
}

/**
 * A model that can be differentiated. Of a pass only the residual stream before each layer is kept;
 * everything else is computed again, layer by layer, on the way back.
 */
export class TrainableModel {
  constructor(
    readonly head: TokenHead,
    readonly layers: readonly TrainableLayer[],
  ) {}

  /** The stream behind the last layer. `kept` gets a copy of it before each layer. */
  forward(pass: Pass, kept?: Tensor[]): Tensor {
    const x = this.head.embed(pass);
    this.layers.forEach((_, index) => {
      kept?.push(copyOf(pass.ops, x));
      this.forwardLayer(pass, index, x);
    });
    return x;
  }

  /** x is changed in place. */
  forwardLayer(pass: Pass, index: number, x: Tensor): void {
    pass.ops.arena.scope(() => this.layer(index).forward(pass, x));
  }

  /** d is the gradient of what `forward` gave; `kept` what it kept, which is used up. */
  backward(pass: Pass, kept: readonly Tensor[], d: Tensor): void {
    for (let index = this.layers.length - 1; index >= 0; index--) {
      pass.ops.arena.scope(() => this.backwardLayer(pass, index, kept[index] as Tensor, d));
    }
    this.head.embedBackward(pass, d);
  }

  /** x is the stream before the layer, and is used up; d is changed in place. */
  backwardLayer(pass: Pass, index: number, x: Tensor, d: Tensor): void {
    const layer = this.layer(index);
    layer.backward(pass, layer.forward(pass, x), d);
  }

  private layer(index: number): TrainableLayer {
    return this.layers[index] as TrainableLayer;
  }
}

/** The model of a checkpoint; weights are asked for under the same names as for inference. */
export function buildTrainable(
  { checkpoint, model, table }: LoadPlan,
  weights: WeightSource,
): TrainableModel {
  const { config } = checkpoint;
  const { softmaxFactor } = table;
  const head = new TokenHead(weights, model.mla);
  const layers = Array.from({ length: model.layers }, (_, i) => i);
  if (findFamily(checkpoint) === longcatFlash) {
    const longcat = readLongcat(config);
    const make = (i: number) => new LongcatLayer(weights, longcat, i, softmaxFactor);
    return new TrainableModel(head, layers.map(make));
  }
  const deepseek = readDeepseek(config);
  const make = (i: number) => new DeepseekLayer(weights, deepseek, i, softmaxFactor);
  return new TrainableModel(head, layers.map(make));
}

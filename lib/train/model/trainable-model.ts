import type { LoadPlan } from '../../load-model';
import type { WeightSource } from '../../checkpoint/weights';
import { deepseekParts, readDeepseek } from '../../model/deepseek';
import { longcatFlash, longcatParts, readLongcat } from '../../model/longcat-flash';
import { findFamily } from '../../model/registry';
import type { Tensor } from '../../native/tensor';
import { TokenHead } from '../layers/token-head';
import { copyOf, type Pass } from '../pass';
import { DeepseekLayer } from './deepseek-layer';
import { LongcatLayer } from './longcat-layer';
import { trainableMakers } from './makers';

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

  /**
   * The streams behind the last layer. Several passes go through a layer one after the other: a later
   * one may use what an earlier one did there. `kept` gets copies of the streams before each layer.
   */
  forward(passes: readonly Pass[], kept?: Tensor[][]): Tensor[] {
    const streams = passes.map((pass) => this.head.embed(pass));
    for (const index of this.layers.keys()) {
      kept?.push(streams.map((x, i) => copyOf((passes[i] as Pass).ops, x)));
      this.forwardLayer(index, passes, streams);
    }
    return streams;
  }

  /** The streams, f32 [rows, hidden], are changed in place. */
  forwardLayer(index: number, passes: readonly Pass[], streams: readonly Tensor[]): void {
    const [first] = passes;
    first?.ops.arena.scope(() => {
      passes.forEach((pass, i) => this.layer(index).forward(pass, streams[i] as Tensor));
    });
  }

  /**
   * Differentiates the last of the passes. d, the gradient of its stream behind the last layer, and
   * what was kept of all of them are used up.
   */
  backward(passes: readonly Pass[], kept: readonly Tensor[][], d: Tensor): void {
    const pass = passes.at(-1) as Pass;
    for (let index = this.layers.length - 1; index >= 0; index--) {
      const layer = this.layer(index);
      pass.ops.arena.scope(() => {
        const streams = kept[index] ?? [];
        const records = passes.map((one, i) => layer.forward(one, streams[i] as Tensor));
        layer.backward(pass, records.at(-1), d);
      });
    }
    this.head.embedBackward(pass, d);
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
  const makers = trainableMakers(weights, model.mla, table.softmaxFactor);
  const head = new TokenHead(weights, model.mla);
  const layers = Array.from({ length: model.layers }, (_, i) => i);
  if (findFamily(checkpoint) === longcatFlash) {
    const longcat = readLongcat(config);
    const make = (i: number) => new LongcatLayer(longcatParts(makers, longcat, i));
    return new TrainableModel(head, layers.map(make));
  }
  const deepseek = readDeepseek(config);
  const make = (i: number) => new DeepseekLayer(deepseekParts(makers, deepseek, i));
  return new TrainableModel(head, layers.map(make));
}

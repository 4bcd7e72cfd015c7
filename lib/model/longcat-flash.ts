import { configCaps, type Config } from '../checkpoint/config';
import { readMlaConfig, type MlaConfig } from '../checkpoint/mla-config';
import type { WeightSource } from '../checkpoint/weights';
import { Experts, type ExpertsShape } from '../layers/experts';
import { FeedForward } from '../layers/feed-forward';
import { Mla, type MlaScales } from '../layers/mla';
import type { Ops } from '../native/ops';
import type { Tensor } from '../native/tensor';
import type { Step } from '../runner/step';
import { LayerStack, type Layer } from './layer-stack';
import type { ModelFamily, ModelPlan } from './model';

export interface LongcatConfig {
  mla: MlaConfig;
  layers: number;
  feedForwardWidth: number;
  experts: ExpertsShape;
  scales: MlaScales;
}

/** LongCat-Flash: shortcut-connected experts over two attentions a layer (model-spec section 1). */
export const longcatFlash: ModelFamily = {
  architectures: ['LongcatFlashForCausalLM'],
  modelTypes: ['longcat_flash'],
  plan(config: Config): ModelPlan {
    const longcat = readLongcat(config);
    return {
      mla: longcat.mla,
      layers: longcat.layers,
      attentions: longcat.layers * 2,
      experts: longcat.experts.experts,
      zeroExperts: longcat.experts.zeroExperts,
      leftAside: (name) =>
        name.startsWith('model.mtp.')
          ? 'multi-token prediction head'
          : name.endsWith('.rotary_emb.inv_freq')
            ? 'rotary frequencies'
            : undefined,
      build: (weights, softmaxFactor) =>
        new LayerStack(
          weights,
          longcat.mla,
          longcat.layers,
          (layer) => new LongcatLayer(weights, longcat, layer, softmaxFactor),
        ),
    };
  },
};

export function readLongcat(config: Config): LongcatConfig {
  const mla = readMlaConfig(config);
  const { hiddenSize, qLoraRank, kvLoraRank } = mla;
  if (qLoraRank === null) throw config.problem('q_lora_rank is missing, expected an integer');
  checkFixed(config);
  const width = { max: configCaps.hiddenSize };
  const experts = config.int('n_routed_experts', { max: configCaps.experts });
  const zeroExperts = config.int('zero_expert_num', {
    min: 0,
    max: configCaps.experts,
    default: 0,
  });
  const scaled = (flag: string, rank: number) =>
    config.boolean(flag, { default: true }) ? Math.sqrt(hiddenSize / rank) : 1;
  return {
    mla,
    layers: readLayers(config),
    feedForwardWidth: config.int(['ffn_hidden_size', 'intermediate_size'], width),
    experts: {
      hidden: hiddenSize,
      width: config.int(['expert_ffn_hidden_size', 'moe_intermediate_size'], width),
      experts,
      zeroExperts,
      router: {
        topK: config.int(['moe_topk', 'num_experts_per_tok'], { max: experts + zeroExperts }),
        scoring: 'softmax',
        groupScore: 'max',
        groups: 1,
        topGroups: 1,
        normalize: config.boolean('norm_topk_prob', { default: false }),
        scale: config.number('routed_scaling_factor', { exclusiveMin: 0, default: 1 }),
      },
    },
    scales: {
      query: scaled('mla_scale_q_lora', qLoraRank),
      latent: scaled('mla_scale_kv_lora', kvLoraRank),
    },
  };
}

/** `num_layers` counts layers. transformers also writes `num_hidden_layers` = 2 * num_layers (attentions). */
function readLayers(config: Config): number {
  const cap = { max: configCaps.layers };
  if (!config.has('num_layers')) return config.int('num_hidden_layers', cap);
  const layers = config.int('num_layers', cap);
  const other = config.int('num_hidden_layers', { ...cap, default: layers });
  if (other !== layers && other !== 2 * layers) {
    const rule = `num_hidden_layers must be num_layers (${layers}) or twice that`;
    throw config.problem(`${rule}, got ${other}`, other);
  }
  return layers;
}

function checkFixed(config: Config): void {
  config.string('zero_expert_type', { oneOf: ['identity'], default: 'identity' });
  config.string('attention_method', { oneOf: ['MLA'], default: 'MLA' });
  if (config.boolean('router_bias', { default: false })) {
    throw config.unsupported('router_bias must be false, got true', true);
  }
}

/** Two attentions and two feed-forwards; the experts branch off after the first attention. */
class LongcatLayer implements Layer {
  private readonly eps: number;
  private readonly inputNorms: Tensor[];
  private readonly postNorms: Tensor[];
  private readonly attentions: Mla[];
  private readonly feedForwards: FeedForward[];
  private readonly experts: Experts;

  constructor(weights: WeightSource, config: LongcatConfig, layer: number, softmaxFactor: number) {
    const { mla, feedForwardWidth, experts, scales } = config;
    const prefix = `model.layers.${layer}.`;
    const twice = <T>(make: (i: number) => T): T[] => [make(0), make(1)];
    const norm = (name: string) =>
      twice((i) => weights.vector(`${prefix}${name}.${i}.weight`, mla.hiddenSize));
    this.eps = mla.rmsNormEps;
    this.inputNorms = norm('input_layernorm');
    this.postNorms = norm('post_attention_layernorm');
    this.attentions = twice(
      (i) =>
        new Mla(weights, `${prefix}self_attn.${i}.`, mla, 2 * layer + i, scales, softmaxFactor),
    );
    this.feedForwards = twice(
      (i) => new FeedForward(weights, `${prefix}mlps.${i}.`, mla.hiddenSize, feedForwardWidth),
    );
    const router = {
      classifier: 'router.classifier.weight',
      bias: 'router.e_score_correction_bias',
    };
    this.experts = new Experts(weights, `${prefix}mlp.`, router, experts);
  }

  /**
   *     a = x + MLA_0(norm x);  n = norm a;  b = a + FFN_0(n)
   *     c = b + MLA_1(norm b);  y = c + FFN_1(norm c) + Experts(n)
   */
  addTo(x: Tensor, step: Step): void {
    const { ops } = step;
    ops.arena.scope(() => {
      this.attend(0, x, step);
      const n = this.norm(this.postNorms, 0, x, ops);
      this.feedForwards[0]?.addTo(x, ops, n);
      this.attend(1, x, step);
      this.feedForwards[1]?.addTo(x, ops, this.norm(this.postNorms, 1, x, ops));
      this.experts.addTo(x, ops, n);
    });
  }

  private attend(i: number, x: Tensor, step: Step): void {
    step.ops.arena.scope(() => {
      this.attentions[i]?.addTo(x, step, this.norm(this.inputNorms, i, x, step.ops));
    });
  }

  private norm(weights: Tensor[], i: number, x: Tensor, ops: Ops): Tensor {
    return ops.rmsNorm(x, weights[i] as Tensor, this.eps);
  }
}

import { configCaps, type Config } from '../checkpoint/config';
import { readMlaConfig, type MlaConfig } from '../checkpoint/mla-config';
import type { Experts, ExpertsShape } from '../layers/experts';
import type { FeedForward } from '../layers/feed-forward';
import type { Mla, MlaScales } from '../layers/mla';
import type { Tensor } from '../native/tensor';
import type { Step } from '../runner/step';
import { inferenceMakers, type LayerMakers } from './layer-parts';
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
      build: (weights, softmaxFactor) => {
        const { mla, layers } = longcat;
        const make = inferenceMakers(weights, mla, softmaxFactor);
        const layer = (index: number) =>
          new LongcatLayer(longcatParts(make, longcat, index), mla.rmsNormEps);
        return new LayerStack(weights, mla, layers, layer);
      },
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

/** Two attentions and two feed-forwards, each behind a norm; the experts branch off after the first attention. */
export interface LongcatParts<Norm, Attention, RoutedExperts, Dense> {
  inputNorms: readonly [Norm, Norm];
  postNorms: readonly [Norm, Norm];
  attentions: readonly [Attention, Attention];
  feedForwards: readonly [Dense, Dense];
  experts: RoutedExperts;
}

export function longcatParts<N, A, E, F>(
  make: LayerMakers<N, A, E, F>,
  { feedForwardWidth, experts, scales }: LongcatConfig,
  layer: number,
): LongcatParts<N, A, E, F> {
  const prefix = `model.layers.${layer}.`;
  const twice = <T>(part: (i: number) => T) => [part(0), part(1)] as const;
  const router = {
    classifier: 'router.classifier.weight',
    bias: 'router.e_score_correction_bias',
  };
  return {
    inputNorms: twice((i) => make.norm(`${prefix}input_layernorm.${i}.weight`)),
    postNorms: twice((i) => make.norm(`${prefix}post_attention_layernorm.${i}.weight`)),
    attentions: twice((i) => make.attention(`${prefix}self_attn.${i}.`, 2 * layer + i, scales)),
    feedForwards: twice((i) => make.feedForward(`${prefix}mlps.${i}.`, feedForwardWidth)),
    experts: make.experts(`${prefix}mlp.`, router, experts),
  };
}

class LongcatLayer implements Layer {
  constructor(
    private readonly parts: LongcatParts<Tensor, Mla, Experts, FeedForward>,
    private readonly eps: number,
  ) {}

  /**
   *     a = x + MLA_0(norm x);  n = norm a;  b = a + FFN_0(n)
   *     c = b + MLA_1(norm b);  y = c + FFN_1(norm c) + Experts(n)
   */
  addTo(x: Tensor, step: Step): void {
    const { ops } = step;
    const { postNorms, feedForwards, experts } = this.parts;
    ops.arena.scope(() => {
      this.attend(0, x, step);
      const n = ops.rmsNorm(x, postNorms[0], this.eps);
      feedForwards[0].addTo(x, ops, n);
      this.attend(1, x, step);
      feedForwards[1].addTo(x, ops, ops.rmsNorm(x, postNorms[1], this.eps));
      experts.addTo(x, ops, n);
    });
  }

  private attend(i: 0 | 1, x: Tensor, step: Step): void {
    const { attentions, inputNorms } = this.parts;
    const { ops } = step;
    ops.arena.scope(() => attentions[i].addTo(x, step, ops.rmsNorm(x, inputNorms[i], this.eps)));
  }
}

import { configCaps, type Config } from '../checkpoint/config';
import { readMlaConfig, type MlaConfig } from '../checkpoint/mla-config';
import type { Experts, ExpertsShape } from '../layers/experts';
import type { FeedForward } from '../layers/feed-forward';
import type { Mla } from '../layers/mla';
import type { RouterOptions } from '../native/ops';
import type { Tensor } from '../native/tensor';
import type { Step } from '../runner/step';
import { inferenceMakers, type LayerMakers } from './layer-parts';
import { LayerStack, type Layer } from './layer-stack';
import type { ModelFamily, ModelPlan } from './model';

export interface DeepseekConfig {
  mla: MlaConfig;
  layers: number;
  denseWidth: number;
  moe: MoeConfig | undefined;
}

interface MoeConfig {
  /** Whether layer i has experts. */
  sparse: boolean[];
  experts: ExpertsShape;
  /** Width of the shared expert, 0 for none. */
  sharedWidth: number;
  correctionBias: boolean;
}

type TopKMethod = 'greedy' | 'group_limited_greedy' | 'noaux_tc';

const softmaxTypes = ['deepseek_v2'];
const sigmoidTypes = ['deepseek_v3', 'kimi_k2', 'glm4_moe_lite'];
const softmaxArchitecture = 'DeepseekV2ForCausalLM';

/** DeepSeek V2 and V3 and what is built like them: Moonlight, Kimi-K2, GLM-4.7-Flash (model-spec section 4). */
export const deepseek: ModelFamily = {
  architectures: [
    softmaxArchitecture,
    'DeepseekV3ForCausalLM',
    'KimiK2ForCausalLM',
    'Glm4MoeLiteForCausalLM',
  ],
  modelTypes: [...softmaxTypes, ...sigmoidTypes],
  plan(config: Config): ModelPlan {
    const deepseek = readDeepseek(config);
    const { layers } = deepseek;
    const drafts = config.int('num_nextn_predict_layers', { min: 0, max: 64, default: 0 });
    return {
      mla: deepseek.mla,
      layers,
      attentions: layers,
      experts: deepseek.moe?.experts.experts ?? 0,
      zeroExperts: 0,
      leftAside: (name) => {
        const layer = Number(/^model\.layers\.(\d+)\./.exec(name)?.[1] ?? -1);
        if (layer >= layers && layer < layers + drafts) return 'multi-token prediction head';
        return name.endsWith('.rotary_emb.inv_freq') ? 'rotary frequencies' : undefined;
      },
      build: (weights, softmaxFactor) => {
        const { mla } = deepseek;
        const make = inferenceMakers(weights, mla, softmaxFactor);
        const layer = (index: number) =>
          new DeepseekLayer(deepseekParts(make, deepseek, index), mla.rmsNormEps);
        return new LayerStack(weights, mla, layers, layer);
      },
    };
  },
};

export function readDeepseek(config: Config): DeepseekConfig {
  const layers = config.int('num_hidden_layers', { max: configCaps.layers });
  return {
    mla: readMlaConfig(config),
    layers,
    denseWidth: config.int('intermediate_size', { max: configCaps.hiddenSize }),
    moe: config.has('n_routed_experts') ? readMoe(config, layers) : undefined,
  };
}

function readMoe(config: Config, layers: number): MoeConfig {
  const experts = config.int('n_routed_experts', { max: configCaps.experts });
  const width = config.int('moe_intermediate_size', { max: configCaps.hiddenSize });
  const shared = config.int('n_shared_experts', { min: 0, max: 64, default: 0 });
  const method = readMethod(config);
  return {
    sparse: readSparseLayers(config, layers),
    experts: {
      hidden: config.int('hidden_size', { max: configCaps.hiddenSize }),
      width,
      experts,
      zeroExperts: 0,
      router: readRouter(config, method, experts),
    },
    sharedWidth: shared * width,
    correctionBias: method === 'noaux_tc',
  };
}

/** V2 names its method; V3 configs saved by transformers leave it out. */
function readMethod(config: Config): TopKMethod {
  const type = config.string('model_type', { default: '' });
  const [architecture] = config.strings('architectures') ?? [];
  const isV2 = type === '' ? architecture === softmaxArchitecture : softmaxTypes.includes(type);
  return config.string<TopKMethod, TopKMethod>('topk_method', {
    oneOf: ['greedy', 'group_limited_greedy', 'noaux_tc'],
    default: isV2 ? 'greedy' : 'noaux_tc',
  });
}

function readRouter(config: Config, method: TopKMethod, experts: number): RouterOptions {
  const correction = method === 'noaux_tc';
  const grouped = method !== 'greedy';
  const groups = grouped ? config.int('n_group', { max: experts, default: 1 }) : 1;
  const topGroups = groups > 1 ? config.int('topk_group', { max: groups }) : 1;
  if (experts % groups !== 0) {
    const rule = `n_group must divide n_routed_experts (${experts})`;
    throw config.problem(`${rule}, got ${groups}`, groups);
  }
  const normalize = config.boolean('norm_topk_prob', { default: correction });
  const scale = config.number('routed_scaling_factor', { exclusiveMin: 0, default: 1 });
  return {
    topK: config.int('num_experts_per_tok', { max: (experts / groups) * topGroups }),
    scoring: config.string('scoring_func', {
      oneOf: ['softmax', 'sigmoid'],
      default: correction ? 'sigmoid' : 'softmax',
    }),
    groupScore: correction ? 'topTwoSum' : 'max',
    groups,
    topGroups,
    normalize,
    // DeepSeek-V2's own code normalises or scales, never both.
    scale: normalize && !correction ? 1 : scale,
  };
}

function readSparseLayers(config: Config, layers: number): boolean[] {
  const frequency = config.int('moe_layer_freq', { max: configCaps.layers, default: 1 });
  if (frequency !== 1)
    throw config.unsupported(`moe_layer_freq must be 1, got ${frequency}`, frequency);
  const types = config.strings('mlp_layer_types');
  if (types === undefined) {
    const dense = config.int('first_k_dense_replace', { min: 0, max: layers, default: 0 });
    return Array.from({ length: layers }, (_, layer) => layer >= dense);
  }
  if (types.length !== layers || types.some((type) => type !== 'dense' && type !== 'sparse')) {
    const rule = `mlp_layer_types must be ${layers} of "dense" or "sparse"`;
    throw config.problem(`${rule}, got ${JSON.stringify(types)}`, types);
  }
  return types.map((type) => type === 'sparse');
}

/** `feedForward` is the dense one, or the shared expert beside the routed ones. */
export interface DeepseekParts<Norm, Attention, RoutedExperts, Dense> {
  inputNorm: Norm;
  postNorm: Norm;
  attention: Attention;
  experts: RoutedExperts | undefined;
  feedForward: Dense | undefined;
}

export function deepseekParts<N, A, E, F>(
  make: LayerMakers<N, A, E, F>,
  { moe, denseWidth }: DeepseekConfig,
  layer: number,
): DeepseekParts<N, A, E, F> {
  const prefix = `model.layers.${layer}.`;
  const mlp = `${prefix}mlp.`;
  const common = {
    inputNorm: make.norm(`${prefix}input_layernorm.weight`),
    postNorm: make.norm(`${prefix}post_attention_layernorm.weight`),
    attention: make.attention(`${prefix}self_attn.`, layer, { query: 1, latent: 1 }),
  };
  if (moe?.sparse[layer] !== true) {
    return { ...common, experts: undefined, feedForward: make.feedForward(mlp, denseWidth) };
  }
  const bias = moe.correctionBias ? 'gate.e_score_correction_bias' : undefined;
  const experts = make.experts(mlp, { classifier: 'gate.weight', bias }, moe.experts);
  const { sharedWidth } = moe;
  const shared = `${mlp}shared_experts.`;
  const feedForward = sharedWidth > 0 ? make.feedForward(shared, sharedWidth) : undefined;
  return { ...common, experts, feedForward };
}

class DeepseekLayer implements Layer {
  constructor(
    private readonly parts: DeepseekParts<Tensor, Mla, Experts, FeedForward>,
    private readonly eps: number,
  ) {}

  /** a = x + MLA(norm x);  y = a + MLP(norm a). */
  addTo(x: Tensor, step: Step): void {
    const { ops } = step;
    const { inputNorm, postNorm, attention, experts, feedForward } = this.parts;
    ops.arena.scope(() => attention.addTo(x, step, ops.rmsNorm(x, inputNorm, this.eps)));
    ops.arena.scope(() => {
      const h = ops.rmsNorm(x, postNorm, this.eps);
      experts?.addTo(x, ops, h);
      feedForward?.addTo(x, ops, h);
    });
  }
}

import { configCaps, type Config } from './config';
import { readRopeConfig, type RopeConfig } from './rope-config';

/** What every model with Multi-head Latent Attention shares. Sizes count elements. */
export interface MlaConfig {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly heads: number;
  /** Rank of the compressed query; null where the query is not compressed. */
  readonly qLoraRank: number | null;
  /** Size of the latent that keys and values are expanded from. */
  readonly kvLoraRank: number;
  /** Query and key dimensions of a head without, and with, rotation; and its value dimensions. */
  readonly nopeDim: number;
  readonly ropeDim: number;
  readonly valueDim: number;
  readonly rmsNormEps: number;
  readonly maxPosition: number;
  readonly tieWordEmbeddings: boolean;
  readonly rope: RopeConfig;
  /**
   * The object `streaming_sparse_attention`, for `readAttentionPattern` once the attentions are
   * counted.
   */
  readonly streaming: Config | undefined;
}

/** Wider than any head of a released model (256). */
const maxHeadDim = 4_096;

/**
 * Reads the keys that all MLA models share. `head_dim` is ignored (transformers writes the rope
 * dimension there), and `auto_map` is never looked at: no code comes from a checkpoint.
 *
 * @throws LozaError ERR_LOZA_CONFIG, or ERR_LOZA_UNSUPPORTED for biases, other activations or
 * quantisations.
 */
export function readMlaConfig(config: Config): MlaConfig {
  checkSupported(config);
  const headDim = { max: maxHeadDim };
  const rank = { max: configCaps.hiddenSize };
  const maxPosition = config.int('max_position_embeddings', { max: configCaps.positions });
  const mla = {
    vocabSize: config.int('vocab_size', { max: configCaps.vocabSize }),
    hiddenSize: config.int('hidden_size', { max: configCaps.hiddenSize }),
    heads: config.int('num_attention_heads', { max: configCaps.heads }),
    qLoraRank: config.int('q_lora_rank', { ...rank, default: null }),
    kvLoraRank: config.int('kv_lora_rank', rank),
    nopeDim: config.int('qk_nope_head_dim', headDim),
    ropeDim: config.int('qk_rope_head_dim', headDim),
    valueDim: config.int('v_head_dim', headDim),
    rmsNormEps: config.number('rms_norm_eps', { exclusiveMin: 0, max: 1 }),
    maxPosition,
    tieWordEmbeddings: config.boolean('tie_word_embeddings', { default: false }),
    rope: readRopeConfig(config, maxPosition),
    streaming: config.object('streaming_sparse_attention'),
  };
  checkConsistent(config, mla);
  return mla;
}

function checkConsistent(config: Config, { heads, nopeDim, ropeDim }: MlaConfig): void {
  if (ropeDim % 2 !== 0) {
    throw config.problem(`qk_rope_head_dim must be even, got ${ropeDim}`, ropeDim);
  }
  const keyHeads = config.int('num_key_value_heads', { max: configCaps.heads, default: heads });
  if (keyHeads !== heads) {
    const rule = `num_key_value_heads must equal num_attention_heads (${heads})`;
    throw config.problem(`${rule}, got ${keyHeads}`, keyHeads);
  }
  const sum = nopeDim + ropeDim;
  const keyDim = config.int('qk_head_dim', { max: 2 * maxHeadDim, default: sum });
  if (keyDim !== sum) {
    const rule = `qk_head_dim must equal qk_nope_head_dim + qk_rope_head_dim (${sum})`;
    throw config.problem(`${rule}, got ${keyDim}`, keyDim);
  }
}

function checkSupported(config: Config): void {
  if (config.boolean('attention_bias', { default: false })) {
    throw config.unsupported('attention_bias must be false, got true', true);
  }
  const activation = config.string('hidden_act', { default: 'silu' });
  if (activation !== 'silu') {
    throw config.unsupported(`hidden_act must be "silu", got "${activation}"`, activation);
  }
  const quantization = config.object('quantization_config');
  if (quantization !== undefined) checkQuantization(quantization);
}

/**
 * FP8 in blocks of 128 x 128 is the one quantisation that can run; which tensors have it, their
 * scales say.
 */
function checkQuantization(quantization: Config): void {
  const method = quantization.string('quant_method');
  if (method !== 'fp8') {
    const format = quantization.string('format', { default: undefined });
    const found = format === undefined ? `"${method}"` : `"${method}" (${format})`;
    const key = quantization.path('quant_method');
    throw quantization.unsupported(`${key} must be "fp8", got ${found}`, method);
  }
  const block = quantization.ints('weight_block_size', { max: configCaps.hiddenSize });
  if (block !== undefined && (block.length !== 2 || block.some((size) => size !== 128))) {
    const key = quantization.path('weight_block_size');
    throw quantization.unsupported(`${key} must be [128, 128], got [${block.join(', ')}]`, block);
  }
}

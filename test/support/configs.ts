import { Config } from '../../lib/checkpoint/config';

/**
 * A Config from JSON text, or from an object that is written as JSON; undefined fields are left
 * out.
 */
export function configOf(content: string | object): Config {
  const text = typeof content === 'string' ? content : JSON.stringify(content);
  return Config.parse(Buffer.from(text), 'config.json');
}

/** The keys that every MLA model needs, in small. */
export const mlaKeys = {
  vocab_size: 320,
  hidden_size: 64,
  num_attention_heads: 4,
  q_lora_rank: 24,
  kv_lora_rank: 32,
  qk_nope_head_dim: 16,
  qk_rope_head_dim: 8,
  v_head_dim: 24,
  rms_norm_eps: 1e-5,
  max_position_embeddings: 2048,
  rope_theta: 10_000,
};

/** YaRN as DeepSeek-V3 has it. */
export const yarnKeys = {
  type: 'yarn',
  factor: 40,
  original_max_position_embeddings: 4096,
  beta_fast: 32,
  beta_slow: 1,
  mscale: 1,
  mscale_all_dim: 1,
};

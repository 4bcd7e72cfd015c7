"""Writes a model as a Hugging Face folder: config.json and bf16 safetensors in two shards."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def tensors(state, c):
    """The stacked weights under the names of LongcatFlashForCausalLM."""
    out = {'model.embed_tokens.weight': state['embed'], 'lm_head.weight': state['head'], 'model.norm.weight': state['norm']}
    parts = {'q_a': 'q_a_proj', 'q_norm': 'q_a_layernorm', 'q_b': 'q_b_proj', 'kv_a': 'kv_a_proj_with_mqa',
             'kv_norm': 'kv_a_layernorm', 'kv_b': 'kv_b_proj', 'o': 'o_proj'}
    for layer in range(c.layers):
        at = f'model.layers.{layer}.'
        for half in (0, 1):
            i = 2 * layer + half
            for name, full in parts.items():
                out[f'{at}self_attn.{half}.{full}.weight'] = state[name][i]
            out[f'{at}input_layernorm.{half}.weight'] = state['in_norm'][i]
            out[f'{at}post_attention_layernorm.{half}.weight'] = state['post_norm'][i]
            out[f'{at}mlps.{half}.gate_proj.weight'] = state['gate_up'][i, 0]
            out[f'{at}mlps.{half}.up_proj.weight'] = state['gate_up'][i, 1]
            out[f'{at}mlps.{half}.down_proj.weight'] = state['down'][i]
        for e in range(c.experts):
            expert = f'{at}mlp.experts.{e}.'
            out[expert + 'gate_proj.weight'] = state['expert_gate_up'][layer, e, 0]
            out[expert + 'up_proj.weight'] = state['expert_gate_up'][layer, e, 1]
            out[expert + 'down_proj.weight'] = state['expert_down'][layer, e]
        out[at + 'mlp.router.classifier.weight'] = state['router'][layer]
        out[at + 'mlp.router.e_score_correction_bias'] = state['bias'][layer]
    exact = ('classifier.weight', 'correction_bias')
    return {name: t.detach().to(torch.float32 if name.endswith(exact) else torch.bfloat16).cpu().contiguous()
            for name, t in out.items()}


def config_json(c, pattern=None):
    config = dict(
        architectures=['LongcatFlashForCausalLM'], model_type='longcat_flash', vocab_size=c.vocab,
        hidden_size=c.hidden, num_layers=c.layers, num_attention_heads=c.heads, ffn_hidden_size=c.ffn,
        expert_ffn_hidden_size=c.expert_ffn, q_lora_rank=c.q_latent, kv_lora_rank=c.kv_latent,
        qk_nope_head_dim=c.nope, qk_rope_head_dim=c.rope, v_head_dim=c.v, mla_scale_q_lora=True,
        mla_scale_kv_lora=True, moe_topk=c.top_k, n_routed_experts=c.experts, zero_expert_num=c.zero_experts,
        zero_expert_type='identity', routed_scaling_factor=c.route_scale, rms_norm_eps=c.eps, rope_theta=c.theta,
        max_position_embeddings=c.positions, attention_bias=False, attention_method='MLA', tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=2, pad_token_id=3, dtype='bfloat16')
    if pattern is not None:
        config['streaming_sparse_attention'] = {'layer_type': pattern, 'sink_size': 128, 'recent_size': 896, 'sparsity': 0.5}
    return config


def export(folder, state, c, pattern=None):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = tensors(state, c)
    names = sorted(weights)
    size = lambda name: weights[name].numel() * weights[name].element_size()
    total, done, shards = sum(map(size, names)), 0, ([], [])
    for name in names:
        shards[done > total / 2].append(name)
        done += size(name)
    where = {}
    for i, shard in enumerate(shards):
        file = f'model-{i + 1:05}-of-00002.safetensors'
        save_file({name: weights[name] for name in shard}, folder / file, metadata={'format': 'pt'})
        where |= {name: file for name in shard}
    index = {'metadata': {'total_size': total}, 'weight_map': where}
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index, indent=2, sort_keys=True) + '\n')
    (folder / 'config.json').write_text(json.dumps(config_json(c, pattern), indent=1) + '\n')

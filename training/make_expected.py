"""
What transformers computes in fp32, for `loza verify`: expected.json and expected.safetensors.

    python make_expected.py MODEL_DIR PROMPTS_JSON

PROMPTS_JSON has {name: {prompt, greedy, positions}}: a text with its special tokens, how many tokens to continue it by, and
the positions whose logits are kept (negative ones count from the end). Streaming attentions are the same modules with another mask.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import LongcatFlashForCausalLM

BLOCK = 128


def streaming_mask(first, end, sink, local):
    """0 where the queries first..end-1 see a key, else the lowest number: [1, 1, end - first, end]."""
    t, j = torch.arange(first, end)[:, None], torch.arange(end)[None]
    seen = (j <= t) & ((j // BLOCK < sink) | (j // BLOCK > t // BLOCK - local))
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]


def stream(module, sink, local):
    full = module.forward

    def forward(hidden_states, *args, attention_mask=None, past_key_values=None, **kwargs):
        first = past_key_values.get_seq_length(module.layer_idx)
        mask = streaming_mask(first, first + hidden_states.shape[1], sink, local)
        return full(hidden_states, *args, attention_mask=mask, past_key_values=past_key_values, **kwargs)

    module.forward = forward


def load(folder):
    # transformers keeps rows for zero experts in gate_up_proj, which no checkpoint has: filled in by hand.
    model = LongcatFlashForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation='eager', ignore_mismatched_sizes=True).eval()
    weights = {name: w for file in sorted(folder.glob('model-*.safetensors')) for name, w in load_file(file).items()}
    for i, layer in enumerate(model.model.layers):
        for e in range(model.config.n_routed_experts):
            parts = [weights[f'model.layers.{i}.mlp.experts.{e}.{part}_proj.weight'] for part in ('gate', 'up')]
            layer.mlp.experts.gate_up_proj.data[e] = torch.cat(parts)
    pattern = json.loads((folder / 'config.json').read_text()).get('streaming_sparse_attention')
    attentions = [attention for layer in model.model.layers for attention in layer.self_attn]
    for i, attention in enumerate(attentions):
        if pattern is not None and pattern['layer_type'][i] == '1':
            stream(attention, -(-pattern['sink_size'] // BLOCK), -(-pattern['recent_size'] // BLOCK))
    return model


@torch.no_grad()
def main(folder, prompts):
    folder = Path(folder)
    model, tokenizer = load(folder), Tokenizer.from_file(str(folder / 'tokenizer.json'))
    tensors, report = {}, {}
    for name, wanted in json.loads(Path(prompts).read_text()).items():
        ids = tokenizer.encode(wanted['prompt']).ids
        output = model(torch.tensor([ids]), use_cache=True)
        logits = output.logits[0]
        positions = [p % len(ids) for p in wanted['positions']]
        tokens, margins, next_logits = [], [], logits[-1]
        for _ in range(wanted['greedy']):
            best = next_logits.topk(2)
            tokens.append(int(best.indices[0]))
            margins.append(round(float(best.values[0] - best.values[1]), 3))
            output = model(torch.tensor([tokens[-1:]]), past_key_values=output.past_key_values, use_cache=True)
            next_logits = output.logits[0, -1]
        tensors[f'{name}.input_ids'] = torch.tensor(ids, dtype=torch.int32)
        tensors[f'{name}.positions'] = torch.tensor(positions, dtype=torch.int32)
        tensors[f'{name}.logits'] = logits[positions].contiguous()
        tensors[f'{name}.greedy'] = torch.tensor(tokens, dtype=torch.int32)
        text = tokenizer.decode(tokens, skip_special_tokens=False)
        report[name] = {'prompt': wanted['prompt'], 'tokens': len(ids), 'greedy_text': text, 'greedy_margin': margins}
        print(name, len(ids), 'tokens', repr(text), margins)
    save_file(tensors, folder / 'expected.safetensors')
    (folder / 'expected.json').write_text(json.dumps(report))


if __name__ == '__main__':
    main(*sys.argv[1:])

"""
LongCat-Flash in PyTorch for training: full-size MLA dims per head, few of everything else.

Functions over stacked weights: every attention is a slice of one tensor, so a block is compiled once and the
optimizer works on few, large tensors. Tokens lie in one row [tokens, hidden] whatever the
sequences' length, so a change of length compiles nothing again.
"""

import math
import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F

BLOCK, SINK, LOCAL = 128, 1, 7


@dataclass(frozen=True)
class Config:
    vocab: int = 2048
    hidden: int = 192
    layers: int = 4
    heads: int = 1
    q_latent: int = 64
    kv_latent: int = 512
    nope: int = 128
    rope: int = 64
    v: int = 128
    ffn: int = 160
    expert_ffn: int = 64
    experts: int = 6
    zero_experts: int = 3
    top_k: int = 3
    route_scale: float = 3.0
    theta: float = 1e7
    eps: float = 1e-5
    positions: int = 8192

    @property
    def attentions(self):
        return 2 * self.layers


def init(config, device):
    """Stacked weights in fp32: 1 / sqrt(fan-in), embeddings 1, what adds to the residual smaller."""
    c, A, L = config, config.attentions, config.layers
    E, h = c.experts, c.hidden
    small = 1 / math.sqrt(2 * A)

    def matrix(*shape, gain=1.0):
        return torch.randn(*shape, device=device) * gain / math.sqrt(shape[-1])

    ones = lambda *shape: torch.ones(*shape, device=device)
    weights = {
        'embed': torch.randn(c.vocab, h, device=device),
        'head': matrix(c.vocab, h, gain=0.5),
        'norm': ones(h),
        'in_norm': ones(A, h),
        'post_norm': ones(A, h),
        'q_a': matrix(A, c.q_latent, h),
        'q_norm': ones(A, c.q_latent),
        'q_b': matrix(A, c.heads * (c.nope + c.rope), c.q_latent, gain=0.5),
        'kv_a': matrix(A, c.kv_latent + c.rope, h),
        'kv_norm': ones(A, c.kv_latent),
        'kv_b': matrix(A, c.heads * (c.nope + c.v), c.kv_latent),
        'o': matrix(A, h, c.heads * c.v, gain=small * 2),
        'gate_up': matrix(A, 2, c.ffn, h),
        'down': matrix(A, h, c.ffn, gain=small * 2),
        'router': matrix(L, E + c.zero_experts, h),
        'expert_gate_up': matrix(L, E, 2, c.expert_ffn, h),
        'expert_down': matrix(L, E, h, c.expert_ffn, gain=small * 2),
    }
    return {name: w.requires_grad_(True) for name, w in weights.items()}


def rms(x, weight, eps):
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight.to(x.dtype)


def rotate(x, cos, sin):
    a, b = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2).to(x.dtype)


def project(x, cos, sin, in_norm, q_a, q_norm, q_b, kv_a, kv_norm, kv_b, c: Config):
    """q, k, v [tokens, heads, nope + rope] of one attention; v is padded with zeros to that width."""
    n = rms(x, in_norm, c.eps)
    q = F.linear(rms(F.linear(n, q_a), q_norm, c.eps), q_b) * math.sqrt(c.hidden / c.q_latent)
    q = q.view(-1, c.heads, c.nope + c.rope)
    kv = F.linear(n, kv_a)
    latent = rms(kv[:, :c.kv_latent], kv_norm, c.eps) * math.sqrt(c.hidden / c.kv_latent)
    up = F.linear(latent, kv_b).view(-1, c.heads, c.nope + c.v)
    k_rope = rotate(kv[:, None, c.kv_latent:], cos, sin).expand(-1, c.heads, -1)
    q = torch.cat([q[..., :c.nope], rotate(q[..., c.nope:], cos, sin)], -1)
    k = torch.cat([up[..., :c.nope], k_rope], -1)
    return q, k, F.pad(up[..., c.nope:], (0, c.nope + c.rope - c.v))


def mlp(x, gate_up, down):
    a, b = F.linear(x, gate_up.flatten(0, 1)).chunk(2, -1)
    return F.linear(F.silu(a) * b, down)


def moe(n, router, bias, gate_up, down, c: Config):
    """All experts on all tokens (they are few), weighted; and the share of tokens that each got."""
    scores = F.softmax(F.linear(n.float(), router), -1)
    ranked = scores.detach() + bias
    chosen = ranked >= ranked.topk(c.top_k, -1).values[:, -1:]
    weight = torch.where(chosen, scores, 0.0) * c.route_scale
    up = F.linear(n, gate_up.flatten(0, 2)).view(-1, c.experts, 2, c.expert_ffn)
    y = F.silu(up[:, :, 0]) * up[:, :, 1] * weight[:, :c.experts, None].to(n.dtype)
    y = F.linear(y.flatten(1), down.permute(1, 0, 2).flatten(1))
    zero = weight[:, c.experts:].sum(-1, keepdim=True).to(n.dtype)
    return y + zero * n, chosen.float().mean(0)


def first_half(x, o, w_o, post_norm, gate_up, down, router, bias, e_gate_up, e_down, c: Config):
    a = x + F.linear(o, w_o)
    n = rms(a, post_norm, c.eps)
    m, load = moe(n, router, bias, e_gate_up, e_down, c)
    return a + mlp(n, gate_up, down), m, load


def second_half(x, o, m, w_o, post_norm, gate_up, down, c: Config):
    a = x + F.linear(o, w_o)
    return a + mlp(rms(a, post_norm, c.eps), gate_up, down) + m


def losses(x, norm, head, targets, c: Config):
    """Cross-entropy of each token, and whether the likeliest one was right."""
    logits = F.linear(rms(x, norm, c.eps), head).float()
    right = logits.detach().argmax(-1) == targets
    return F.cross_entropy(logits, targets, reduction='none'), right


if os.environ.get('COMPILE', '1') == '1':
    # Every shape is the same in every call: none is to become a variable.
    torch._dynamo.config.automatic_dynamic_shapes = False
    project, first_half, second_half, losses = map(torch.compile, (project, first_half, second_half, losses))


def full_attention(q, k, v, scale):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)


def streaming_attention(q, k, v, scale):
    """
    Each block of 128 queries sees the first block and the last LOCAL blocks up to its own: their keys are
    gathered, so work grows with the length and not with its square. [sequences, heads, T, d], T % 128 == 0.
    """
    B, H, T, d = q.shape
    n = T // BLOCK
    if n <= SINK + LOCAL - 1:
        return full_attention(q, k, v, scale)
    blocks = lambda x: x.reshape(B * H, n, BLOCK, d)

    def window(x):
        padded = F.pad(blocks(x), (0, 0, 0, 0, LOCAL - 1, 0))
        local = [padded[:, i:i + n] for i in range(LOCAL)]
        return torch.cat([blocks(x)[:, :1].expand(-1, n, -1, -1)] + local, 2)

    block = torch.arange(n, device=q.device)[:, None, None]
    row = torch.arange(BLOCK, device=q.device)[None, :, None]
    column = torch.arange((LOCAL + SINK) * BLOCK, device=q.device)[None, None]
    # Column block 0 is the sink, 1..LOCAL are blocks t - LOCAL + 1 .. t; block 0 counts as sink only.
    at = torch.where(column < BLOCK, 0, block - LOCAL + column // BLOCK)
    key = at * BLOCK + column % BLOCK
    seen = (key <= block * BLOCK + row) & ((column < BLOCK) | (at >= 1))
    # The kernels that take masks want one batch dimension.
    flat = lambda x: x.reshape(B * H * n, 1, x.shape[2], d)
    mask = seen[None].expand(B * H, -1, -1, -1).reshape(B * H * n, 1, BLOCK, -1)
    o = F.scaled_dot_product_attention(flat(blocks(q)), flat(window(k)), flat(window(v)), attn_mask=mask, scale=scale)
    return o.reshape(B, H, T, d)


def rope_table(c: Config, length, factor, device):
    """cos and sin [length, 1, rope / 2], by YaRN when factor > 1."""
    p = torch.arange(c.rope // 2, device=device, dtype=torch.float32)
    f = c.theta ** (-2 * p / c.rope)
    if factor > 1:
        turns = lambda r: c.rope * math.log(c.positions / (2 * math.pi * r)) / (2 * math.log(c.theta))
        low, high = max(math.floor(turns(32)), 0), min(math.ceil(turns(1)), c.rope - 1)
        ramp = ((p - low) / (high - low)).clamp(0, 1)
        f = f / factor * ramp + f * (1 - ramp)
    angle = torch.arange(length, device=device, dtype=torch.float32)[:, None, None] * f
    return angle.cos(), angle.sin()


def yarn_scale(factor):
    return (0.1 * math.log(factor) + 1) ** 2 if factor > 1 else 1.0


class Model:
    def __init__(self, config, device):
        self.c, self.device = config, device
        self.weights = init(config, device)
        self.bias = torch.zeros(config.layers, config.experts + config.zero_experts, device=device)
        self.pattern = '0' * config.attentions
        self.alphas = None
        self.load = None
        self.middle = None
        self.tables = {}

    def cast(self):
        """The weights as the forward pass uses them, by attention or layer."""
        dtype = torch.bfloat16 if self.device == 'cuda' else torch.float32
        cast = {name: w if name == 'router' else w.to(dtype) for name, w in self.weights.items()}
        return {name: w if name in ('embed', 'head', 'norm') else w.unbind(0) for name, w in cast.items()}

    def attend(self, i, q, k, v, shape, scale):
        B, T = shape
        q, k, v = (x.view(B, T, self.c.heads, -1).transpose(1, 2) for x in (q, k, v))
        if self.alphas is not None:
            alpha = self.alphas[i].clamp(0, 1).to(q.dtype)
            o = alpha * full_attention(q, k, v, scale) + (1 - alpha) * streaming_attention(q, k, v, scale)
        else:
            o = (streaming_attention if self.pattern[i] == '1' else full_attention)(q, k, v, scale)
        return o[..., :self.c.v].transpose(1, 2).reshape(B * T, -1)

    def hidden(self, ids, factor=1.0, w=None):
        """Hidden states [tokens, hidden] before the last norm, of ids [sequences, T]."""
        c, (B, T) = self.c, ids.shape
        w = w or self.cast()
        if (T, B, factor) not in self.tables:
            cos, sin = rope_table(c, T, factor, self.device)
            self.tables[T, B, factor] = cos.repeat(B, 1, 1), sin.repeat(B, 1, 1)
        cos, sin = self.tables[T, B, factor]
        scale = (c.nope + c.rope) ** -0.5 * yarn_scale(factor)
        x = F.embedding(ids.flatten(), w['embed'])
        loads = []
        for layer in range(c.layers):
            for half in (0, 1):
                i = 2 * layer + half
                parts = [w[name][i] for name in ('in_norm', 'q_a', 'q_norm', 'q_b', 'kv_a', 'kv_norm', 'kv_b')]
                q, k, v = project(x, cos, sin, *parts, c)
                o = self.attend(i, q, k, v, (B, T), scale)
                parts = [w[name][i] for name in ('o', 'post_norm', 'gate_up', 'down')]
                if half == 0:
                    experts = [w['router'][layer], self.bias[layer], w['expert_gate_up'][layer], w['expert_down'][layer]]
                    x, m, load = first_half(x, o, *parts, *experts, c)
                    loads.append(load)
                else:
                    x = second_half(x, o, m, *parts, c)
            if layer == c.layers // 2 - 1:
                self.middle = x
        self.load = torch.stack(loads).detach()
        return x

    def losses(self, ids, factor=1.0, inputs=None):
        """Of ids [sequences, T + 1]: loss and right [sequences, T] of predicting each next token (of `inputs`)."""
        w = self.cast()
        x = self.hidden((ids[:, :-1] if inputs is None else inputs).contiguous(), factor, w)
        loss, right = losses(x, w['norm'], w['head'], ids[:, 1:].reshape(-1), self.c)
        shape = (len(ids), -1)
        return loss.view(shape), right.view(shape)

    def stop_losses(self, stops, most=4096):
        """
        Of stops [sequences, T], after losses(): what the hidden states in the middle of the model lose when
        the head reads stops from them, and whether it read the right ones, at up to `most` places [most];
        these places in the flat batch, and which of them are real, 0 or 1.
        """
        real, places = (stops.flatten() > 0).float().topk(min(most, stops.numel()))
        logits = F.linear(rms(self.middle[places].float(), self.weights['norm'], self.c.eps), self.weights['head'])
        targets = stops.flatten()[places]
        return F.cross_entropy(logits, targets, reduction='none'), logits.argmax(-1) == targets, places, real

    def balance(self, step=1e-3):
        """Moves the routing bias towards equal loads of the experts."""
        self.bias += step * torch.sign(self.load.mean(-1, keepdim=True) - self.load)

    def state(self):
        return {**{k: w.detach().clone() for k, w in self.weights.items()}, 'bias': self.bias.clone()}

    def restore(self, state):
        with torch.no_grad():
            for name, w in self.weights.items():
                w.copy_(state[name])
        self.bias.copy_(state['bias'])

"""Muon for the stacked matrices, AdamW for everything else."""

import torch

ADAM = {'embed', 'head', 'norm', 'in_norm', 'post_norm', 'q_norm', 'kv_norm', 'router'}
RATES = {'embed': 5e-3, 'head': 3e-3, 'router': 2e-3}
NORM_RATE = 5e-3


def orthogonal(g, steps=5):
    """Nearest orthogonal matrices [n, rows, columns] by Newton-Schulz, about; in bf16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16() if g.is_cuda else g
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(s, s, s, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


class Optimizer:
    def __init__(self, weights, matrix_rate=0.02, momentum=0.95, decay=0.1):
        self.weights, self.rate, self.momentum, self.decay = weights, matrix_rate, momentum, decay
        self.matrices = {k: w for k, w in weights.items() if k not in ADAM}
        self.buffers = {k: torch.zeros_like(w) for k, w in self.matrices.items()}
        groups = [{'params': [w], 'base': RATES.get(k, NORM_RATE)} for k, w in weights.items() if k in ADAM]
        self.adam = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0,
                                      fused=next(iter(weights.values())).is_cuda)

    @torch.no_grad()
    def step(self, factor):
        """One step with all rates times `factor`; takes the gradients away."""
        for group in self.adam.param_groups:
            group['lr'] = group['base'] * factor
        self.adam.step()
        for name, w in self.matrices.items():
            buffer = self.buffers[name]
            buffer.lerp_(w.grad, 1 - self.momentum)
            update = w.grad.lerp(buffer, self.momentum)
            rows, columns = w.shape[-2:]
            update = orthogonal(update.view(-1, rows, columns)).view(w.shape)
            rate = self.rate * factor
            w.mul_(1 - rate * self.decay).add_(update, alpha=-rate * max(1, rows / columns) ** 0.5)
        for w in self.weights.values():
            w.grad = None

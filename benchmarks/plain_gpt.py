"""The baseline of `train_gpu.py`: the serial GPT in plain torch, written for torch.compile."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from megascale.model.shape import ModelShape


def rotated(x: Tensor, base: float) -> Tensor:
    """Rotary positions of (batch, heads, sequence, size)."""
    size = x.size(-1)
    frequencies = base ** (-torch.arange(0, size, 2, device=x.device) / size)
    angles = torch.arange(x.size(2), device=x.device)[:, None] * frequencies[None, :]
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Block(nn.Module):
    """x' = x + Attn(LN(x)); y = x' + MLP(LN(x'))."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        hidden, wide = shape.hidden_size, shape.ffn_hidden_size
        self.shape = shape
        self.norm, self.mlp_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.proj = nn.Linear(hidden, hidden, bias=False)
        self.fc1, self.fc2 = nn.Linear(hidden, wide, bias=False), nn.Linear(wide, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, sequence, _ = x.shape
        fused = self.qkv(self.norm(x)).view(batch, sequence, 3, self.shape.attention_heads, -1)
        query, key, value = (part.transpose(1, 2) for part in fused.unbind(dim=2))
        query, key = rotated(query, self.shape.rotary_base), rotated(key, self.shape.rotary_base)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        return x + self.fc2(functional.gelu(self.fc1(self.mlp_norm(x))))


class PlainGpt(nn.Module):
    """Mean cross entropy of labels (batch, sequence) after tokens of the same shape; tied embeddings."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.padded_vocab_size, shape.hidden_size)
        nn.init.normal_(self.embedding.weight, std=shape.init_std)
        self.blocks = nn.ModuleList([Block(shape) for _ in range(shape.num_layers)])
        self.norm = nn.LayerNorm(shape.hidden_size)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        logits = functional.linear(self.norm(x), self.embedding.weight)
        return functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())

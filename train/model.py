"""The BitNet b1.58 graph in PyTorch, trained with its quantisers in the loop.

Block for block the graph of bitnet-b1.58-2B-4T: RMSNorm, ternary projections, rotary positions,
grouped-query attention, a norm before each output projection, and relu(gate)^2 * up.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    vocab_size: int = 2048
    hidden_size: int = 384
    intermediate_size: int = 896
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    max_position_embeddings: int = 512
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    ternary: bool = True  # False: the float model it is compared with

    @property
    def head_dim(self):
        return self.hidden_size // self.num_attention_heads


def quantize_weight(w):
    """codes in {-1, 0, 1} and the scale they are multiplied by: the mean of |w|."""
    scale = w.abs().mean().clamp(min=1e-5)
    return (w / scale).round().clamp(-1, 1), scale


def quantize_activation(x):
    """int8 codes (kept as floats) and s, per token: x is about codes / s."""
    s = 127 / x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-5)
    return (x * s).round(), s


def fake_weight(w):
    """The ternary weight going forward, the identity going back (straight-through)."""
    codes, scale = quantize_weight(w)
    return w + (codes * scale - w).detach()


def fake_activation(x):
    codes, s = quantize_activation(x)
    return x + (codes / s - x).detach()


def matrix(n_out, n_in, gain=1.0):
    return nn.Parameter(torch.randn(n_out, n_in) * gain * n_in**-0.5)


class Norm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def rotary_table(config, length):
    half = torch.arange(0, config.head_dim, 2) / config.head_dim
    angles = torch.outer(torch.arange(length), config.rope_theta**-half)
    return angles.cos(), angles.sin()  # (length, head_dim / 2)


def rotate(x, table):  # (batch, heads, length, head_dim): pairs are (j, j + head_dim / 2)
    cos, sin = (t[: x.shape[-2]].to(x.dtype) for t in table)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        hidden, kv = c.hidden_size, c.num_key_value_heads * c.head_dim
        self.input_layernorm = Norm(hidden, c.rms_norm_eps)
        self.q_proj, self.k_proj = matrix(hidden, hidden), matrix(kv, hidden)
        self.v_proj = matrix(kv, hidden)
        self.attn_sub_norm = Norm(hidden, c.rms_norm_eps)
        self.o_proj = matrix(hidden, hidden, 0.2)
        self.post_attention_layernorm = Norm(hidden, c.rms_norm_eps)
        self.gate_proj = matrix(c.intermediate_size, hidden)
        self.up_proj = matrix(c.intermediate_size, hidden)
        self.ffn_sub_norm = Norm(c.intermediate_size, c.rms_norm_eps)
        self.down_proj = matrix(hidden, c.intermediate_size, 0.2)

    def linear(self, x, *weights, dtype):
        """Matrices that share an input are one product; each keeps its own scale."""
        if self.config.ternary:
            x, weights = fake_activation(x), [fake_weight(w) for w in weights]
        sizes = [w.shape[0] for w in weights]
        return F.linear(x.to(dtype), torch.cat(list(weights)).to(dtype)).split(sizes, dim=-1)

    def forward(self, x, table, dtype):
        x = x + self.attention(self.input_layernorm(x), table, dtype)
        return x + self.feed_forward(self.post_attention_layernorm(x), dtype)

    def attention(self, x, table, dtype):
        c = self.config
        batch, length, _ = x.shape
        groups, per_group = c.num_key_value_heads, c.num_attention_heads // c.num_key_value_heads
        q, k, v = (
            t.view(batch, length, -1, c.head_dim).transpose(1, 2)
            for t in self.linear(x, self.q_proj, self.k_proj, self.v_proj, dtype=dtype)
        )
        q = rotate(q, table).reshape(batch * groups, per_group * length, c.head_dim)
        k = rotate(k, table).reshape(batch * groups, length, c.head_dim)
        v = v.reshape(batch * groups, length, c.head_dim)
        scores = (q @ k.transpose(-1, -2)).view(-1, per_group, length, length).float()
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = (scores * c.head_dim**-0.5).masked_fill(future, float("-inf")).softmax(-1)
        x = weights.to(dtype).view(batch * groups, per_group * length, length) @ v
        x = x.view(batch, -1, length, c.head_dim).transpose(1, 2).reshape(batch, length, -1)
        return self.linear(self.attn_sub_norm(x.float()), self.o_proj, dtype=dtype)[0].float()

    def feed_forward(self, x, dtype):
        gate, up = self.linear(x, self.gate_proj, self.up_proj, dtype=dtype)
        x = F.relu(gate.float()).square() * up.float()
        return self.linear(self.ffn_sub_norm(x), self.down_proj, dtype=dtype)[0].float()


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=config.hidden_size**-0.5)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.table = rotary_table(config, config.max_position_embeddings)

    def forward(self, ids, dtype=torch.float32):
        """Logits, (batch, length, vocab); dtype is that of the matrix products."""
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, self.table, dtype)
        return F.linear(self.norm(x).to(dtype), self.embed_tokens.weight.to(dtype)).float()

    def loss(self, ids, targets, dtype=torch.float32):
        return F.cross_entropy(self(ids, dtype).flatten(0, 1), targets.flatten())

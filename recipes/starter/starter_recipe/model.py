"""The text tower in torch, with LoRA on every linear layer and the multi-vector projector.

Parameter names are those of the checkpoint (older naming), so that a state dict is what goes to disk. Inputs are
padded on the right and attention is causal, so no attention mask is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator

MATRYOSHKA_DIMS = (32, 64, 128, 256)
TASKS = ("retrieval", "text-matching", "code")
PROJECTOR = "multi_vector_projector"
_MAX_POSITIONS = 4096


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the model."""

    vocabulary: int = 24064
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    intermediate: int = 768
    epsilon: float = 1e-6
    theta: float = 1e6
    multi_vector: int = 64
    rank: int = 8


class Linear(nn.Linear):
    """A linear layer that adds B @ A to its weight while an adapter is set (alpha = rank, so the scale is 1)."""

    adapter: tuple[Tensor, Tensor] | None = None

    def forward(self, states: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        weight = self.weight if self.adapter is None else self.weight + self.adapter[1] @ self.adapter[0]
        return functional.linear(states, weight, self.bias)


class Norm(nn.Module):
    """RMS norm with a learned scale."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, states: Tensor) -> Tensor:
        """Normalise the last axis."""
        normed: Tensor = functional.rms_norm(states, (states.shape[-1],), self.weight, self.epsilon)
        return normed


def rotate(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Apply rotary positions, halves paired: (B, H, T, D)."""
    first, second = states.chunk(2, -1)
    return states * cosine + torch.cat((-second, first), -1) * sine


class Attention(nn.Module):
    """Causal grouped-query attention."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        wide, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = Linear(shape.hidden, wide)
        self.k_proj = Linear(shape.hidden, narrow)
        self.v_proj = Linear(shape.hidden, narrow)
        self.o_proj = Linear(wide, shape.hidden, bias=False)

    def forward(self, states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Map (B, T, hidden) to (B, T, hidden)."""
        shape, (batch, length, _) = self.shape, states.shape

        def split(flat: Tensor) -> Tensor:
            return flat.view(batch, length, -1, shape.head_dim).transpose(1, 2)

        groups = shape.heads // shape.kv_heads
        query = rotate(split(self.q_proj(states)), cosine, sine)
        key = rotate(split(self.k_proj(states)), cosine, sine).repeat_interleave(groups, 1)
        value = split(self.v_proj(states)).repeat_interleave(groups, 1)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        output: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        return output


class FeedForward(nn.Module):
    """Gated feed-forward layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """Map (B, T, hidden) to (B, T, hidden)."""
        output: Tensor = self.down_proj(functional.silu(self.gate_proj(states)) * self.up_proj(states))
        return output


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = Norm(shape.hidden, shape.epsilon)
        self.post_attention_layernorm = Norm(shape.hidden, shape.epsilon)

    def forward(self, states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Map (B, T, hidden) to (B, T, hidden)."""
        states = states + self.self_attn(self.input_layernorm(states), cosine, sine)
        output: Tensor = states + self.mlp(self.post_attention_layernorm(states))
        return output


class Tower(nn.Module):
    """Embeddings, layers and the final norm."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList([Layer(shape) for _ in range(shape.layers)])
        self.norm = Norm(shape.hidden, shape.epsilon)
        frequencies = shape.theta ** -(torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
        angles = torch.outer(torch.arange(_MAX_POSITIONS).float(), frequencies).repeat(1, 2)
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids (B, T) to final-norm states (B, T, hidden)."""
        states = self.embed_tokens(ids)
        cosine, sine = self.cosine[: ids.shape[1]], self.sine[: ids.shape[1]]
        for layer in self.layers:
            states = layer(states, cosine, sine)
        output: Tensor = self.norm(states)
        return output


class Embedder(nn.Module):
    """The tower, mean pooling, and the multi-vector projector."""

    def __init__(self, shape: Shape | None = None, *, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.shape = shape or Shape()
        self.model = Tower(self.shape)
        self.multi_vector_projector = Linear(self.shape.hidden, self.shape.multi_vector)
        self._initialise()

    def _initialise(self) -> None:
        """Start as a bag of tokens: the layers' output projections are zero, their inputs random."""
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "bias")):
                nn.init.zeros_(parameter)
            elif "_proj" in name:
                nn.init.normal_(parameter, std=0.8 / self.shape.hidden**0.5)
        nn.init.orthogonal_(self.multi_vector_projector.weight)

    def hidden(self, ids: Tensor) -> Tensor:
        """Map token ids (B, T) to token states (B, T, hidden)."""
        states: Tensor = self.model(ids)
        return states

    def linears(self) -> Iterator[tuple[str, Linear]]:
        """Yield the layers that an adapter covers."""
        return ((name, module) for name, module in self.named_modules() if isinstance(module, Linear))

    def set_adapter(self, adapter: dict[str, Tensor] | None) -> None:
        """Activate an adapter ("NAME:A" (r, in) and "NAME:B" (out, r) for each linear layer), or none."""
        for name, module in self.linears():
            module.adapter = None if adapter is None else (adapter[f"{name}:A"], adapter[f"{name}:B"])

    def new_adapter(self, seed: int) -> dict[str, Tensor]:
        """Return an adapter that changes nothing yet: A random, B zero."""
        generator = torch.Generator().manual_seed(seed)
        adapter = {}
        for name, module in self.linears():
            scale = module.in_features**-0.5
            adapter[f"{name}:A"] = torch.randn(self.shape.rank, module.in_features, generator=generator) * scale
            adapter[f"{name}:B"] = torch.zeros(module.out_features, self.shape.rank)
        return adapter


def pool(states: Tensor, mask: Tensor) -> Tensor:
    """Average the real tokens: (B, T, D), (B, T) -> (B, D)."""
    return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

"""Tokens: attention in its forms, embeddings, norms and experts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.patterns.pattern import Patterns

TOKENS = Patterns()
pattern = TOKENS.add


@pattern(
    "5 8",
    """
    qkv:head 3 head qkv.weight:0 qkv.bias:0 proj.weight:1
    qkv 4 neuron qkv.weight:0 qkv.bias:0 proj.weight:1
    """,
    fixed="""
    3 unbind qkv.weight:0 qkv.bias:0
    """,
)
class FusedQkv(nn.Module):
    """One layer for queries, keys and values: 3 x heads x head_dim."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 36), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(n, t, 12))


@pattern(
    "5 8",
    """
    q:head 3 head q.weight:0 q.bias:0 k.weight:0 k.bias:0 v.weight:0 v.bias:0 proj.weight:1
    q 4 neuron q.weight:0 q.bias:0 k.weight:0 k.bias:0
    v 5 neuron v.weight:0 v.bias:0 proj.weight:1
    """,
)
class SeparateQkv(nn.Module):
    """Three layers and the products written out; values have a width of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(8, 15)
        self.proj = nn.Linear(15, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, _ = x.shape
        q, k, v = (f(x).view(n, t, 3, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = ((q @ k.transpose(-2, -1)) * 4**-0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, t, 15))


@pattern(
    "5 8",
    """
    q:head 3 head q.weight:0 q.bias:0 k.weight:0 k.bias:0 v.weight:0 v.bias:0 proj.weight:1
    q 2 head q.weight:0 q.bias:0 proj.weight:1
    q:2 4 neuron q.weight:0 q.bias:0 k.weight:0 k.bias:0
    v 4 neuron v.weight:0 v.bias:0 proj.weight:1
    """,
)
class GroupedQuery(nn.Module):
    """GQA: each head of keys and values serves two heads of queries."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 24), nn.Linear(8, 12), nn.Linear(8, 12)
        self.proj = nn.Linear(24, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, _ = x.shape
        q = self.q(x).view(n, t, 6, 4).transpose(1, 2)
        k, v = (f(x).view(n, t, 3, 4).transpose(1, 2) for f in (self.k, self.v))
        k, v = (a[:, :, None].expand(n, 3, 2, t, 4).reshape(n, 6, t, 4) for a in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(n, t, 24))


@pattern(
    "5 12",
    """
    stem 12 neuron stem.weight:0 stem.bias:0 head.weight:1 attention.in_proj_weight:1
        attention.out_proj.weight:0 attention.out_proj.bias:0
    attention.in_proj_weight:head 3 head attention.in_proj_weight:0 attention.in_proj_bias:0
        attention.out_proj.weight:1
    attention.in_proj_weight 4 neuron attention.in_proj_weight:0 attention.in_proj_bias:0
        attention.out_proj.weight:1
    """,
)
class TorchAttention(nn.Module):
    """PyTorch's own attention module between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(12, 12), nn.Linear(12, 4)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y, _ = self.attention(x, x, x, need_weights=False)
        return self.head(x + y)


@pattern(
    "5 12",
    """
    stem 12 neuron stem.weight:0 stem.bias:0 head.weight:1 layer.self_attn.in_proj_weight:1
        layer.self_attn.out_proj.weight:0 layer.self_attn.out_proj.bias:0 layer.linear1.weight:1
        layer.linear2.weight:0 layer.linear2.bias:0 layer.norm1.weight:0 layer.norm1.bias:0
        layer.norm2.weight:0 layer.norm2.bias:0
    layer.self_attn.in_proj_weight:head 3 head layer.self_attn.in_proj_weight:0
        layer.self_attn.in_proj_bias:0 layer.self_attn.out_proj.weight:1
    layer.self_attn.in_proj_weight 4 neuron layer.self_attn.in_proj_weight:0
        layer.self_attn.in_proj_bias:0 layer.self_attn.out_proj.weight:1
    layer.linear1 20 neuron layer.linear1.weight:0 layer.linear1.bias:0 layer.linear2.weight:1
    """,
)
class TorchEncoderLayer(nn.Module):
    """PyTorch's own encoder layer: attention, two norms, a wide middle, two shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(12, 12), nn.Linear(12, 4)
        self.layer = nn.TransformerEncoderLayer(12, 3, 20, dropout=0.0, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.stem(x)))


@pattern(
    "6 8",
    """
    qkv:head 3 head table:1 qkv.weight:0 qkv.bias:0 proj.weight:1
    qkv 4 neuron qkv.weight:0 qkv.bias:0 proj.weight:1
    """,
    fixed="""
    11 index table:0
    3 unbind qkv.weight:0 qkv.bias:0
    """,
)
class RelativeBias(nn.Module):
    """Swin: a table of biases, one column a head, indexed by the distance of two tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 36), nn.Linear(12, 8)
        self.table = nn.Parameter(torch.randn(11, 3))
        place = torch.arange(6)
        self.register_buffer("distance", (place[:, None] - place + 5).flatten())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, 3, 4).permute(2, 0, 3, 1, 4)
        bias = self.table[self.distance].view(t, t, 3).permute(2, 0, 1)
        weights = (q * 0.5 @ k.transpose(-2, -1) + bias).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, t, 12))


@pattern(
    "3 8 8",
    """
    patch 8 channel token:2 position:2 patch.weight:0 patch.bias:0 head.weight:1 norm.weight:0
        norm.bias:0
    """,
    fixed="""
    5 add position:1
    """,
)
class ClassToken(nn.Module):
    """ViT: patches as tokens, one more in front, a vector added to each, the first read out."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 5, 8))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(x)[:, 0])


class RMS(nn.Module):
    """RMSNorm written out, as Llama has it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


@pattern(
    "5 6",
    """
    stem 8 neuron stem.weight:0 stem.bias:0 head.weight:1 norm1.weight:0 norm2.weight:0
        gate.weight:1 up.weight:1 down.weight:0 down.bias:0
    gate 12 neuron gate.weight:0 gate.bias:0 up.weight:0 up.bias:0 down.weight:1
    """,
)
class RMSNorm(nn.Module):
    """Written out and PyTorch's own, with the gated layer that follows them in Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 4)
        self.norm1, self.norm2 = RMS(8), nn.RMSNorm(8)
        self.gate, self.up, self.down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.norm1(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.head(self.norm2(x))


@pattern(
    "i11: 5",
    """
    down 8 neuron words.weight:1 up.weight:1 down.weight:0 down.bias:0
    up 12 neuron up.weight:0 up.bias:0 down.weight:1
    """,
    fixed="""
    11 embedding words.weight:0
    """,
)
class TiedEmbedding(nn.Module):
    """One table of words, read at the input and again as the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.head.weight = self.words.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        return self.head(x + self.down(self.up(x).relu()))


@pattern(
    "5 6",
    """
    stem 8 channel up:1 down:2 stem.weight:0 stem.bias:0 head.weight:1 router.weight:1
    up 10 channel up:2 down:1
    """,
    fixed="""
    3 softmax up:0 down:0 router.weight:0 router.bias:0
    """,
)
class MixtureOfExperts(nn.Module):
    """Every expert weighed by a router; the experts' weights lie in one tensor each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 4)
        self.router = nn.Linear(8, 3)
        self.up = nn.Parameter(torch.randn(3, 8, 10))
        self.down = nn.Parameter(torch.randn(3, 10, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        share = self.router(x).softmax(-1)
        y = torch.einsum(
            "bte,bted->btd",
            share,
            torch.einsum(
                "bteh,ehd->bted", torch.einsum("btd,edh->bteh", x, self.up).relu(), self.down
            ),
        )
        return self.head(x + y)


@pattern(
    "5 6",
    """
    stem 8 neuron stem.weight:0 stem.bias:0 head.weight:1 router.weight:1 experts.0.0.weight:1
        experts.0.2.weight:0 experts.0.2.bias:0 experts.1.0.weight:1 experts.1.2.weight:0
        experts.1.2.bias:0 experts.2.0.weight:1 experts.2.2.weight:0 experts.2.2.bias:0
    experts.0.0 10 neuron experts.0.0.weight:0 experts.0.0.bias:0 experts.0.2.weight:1
    experts.1.0 10 neuron experts.1.0.weight:0 experts.1.0.bias:0 experts.1.2.weight:1
    experts.2.0 10 neuron experts.2.0.weight:0 experts.2.0.bias:0 experts.2.2.weight:1
    """,
    fixed="""
    3 softmax router.weight:0 router.bias:0
    """,
)
class TopExperts(nn.Module):
    """The best two experts of each token; all run, and a mask takes the others' part away."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 4)
        self.router = nn.Linear(8, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 10), nn.GELU(), nn.Linear(10, 8)) for _ in range(3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        best, which = self.router(x).softmax(-1).topk(2, -1)
        share = torch.zeros(*x.shape[:2], 3, dtype=x.dtype, device=x.device).scatter(
            -1, which, best
        )
        y = sum(share[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))
        return self.head(x + y)

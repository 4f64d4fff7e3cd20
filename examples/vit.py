"""ViT-B/16: attention heads are a width like any other.

    nestify inspect examples/vit.py
    nestify plan examples/vit.py --target cpu --out out/vit

The query, key and value of all heads come out of one matrix here (``qkv``), as in most fast code.
Its 2304 rows are three times 12 heads of 64: ``inspect`` shows that nestify reads this from the
``view`` that takes them apart, so that

- the number of heads of each layer is a group (rows of ``qkv`` in three places, columns of
  ``out``);
- the width of a head is a group too; narrower heads keep the scale of the full ones, 1 /
  sqrt(64), and so compute what those would with the cut channels silent;
- the hidden width of each MLP is a group;
- the embedding, added to by all layers, is one group through the whole network. LayerNorm
  normalises over it: the smaller network uses its own statistics.

The network is that of Dosovitskiy et al., "An Image is Worth 16x16 Words" (2020), size B, patches
of 16: 86,567,656 parameters. torch's FLOP counter sees no attention on a CPU; nestify counts it
by formula. The weights are random: nothing is downloaded.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection for query, key and value."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same shape."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (batch, heads, tokens, head width)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """Attention, then an MLP on each token; each is added to its input."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches as tokens, one more token to gather the class, blocks, a linear classifier."""

    def __init__(
        self,
        *,
        image: int = 224,
        patch: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        classes: int = 1000,
    ):
        super().__init__()
        tokens = (image // patch) ** 2 + 1
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 3, image, image) to logits (batch, classes)."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.norm(self.blocks(x + self.position))
        return self.classifier(x[:, 0])


def model() -> nn.Module:
    """The model to plan, the same at each call."""
    torch.manual_seed(0)
    return VisionTransformer()


def example_inputs() -> tuple[Tensor, ...]:
    """Two images, for tracing and for the fidelity score."""
    return (torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)),)

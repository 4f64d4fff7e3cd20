"""Nested networks to extract from, and what an extracted one must equal."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import nestify

RECIPE = "fn3-channel{where=all}+fn3-neuron{where=all}+fn3-head{where=all}"


class Block(nn.Module):
    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 8, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.short = nn.Conv2d(8, 8, 1, stride) if stride > 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.short is None else self.short(x)))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.layers = nn.Sequential(Block(12, 1), Block(16, 2))
        self.drop, self.fc = nn.Dropout(0.2), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers(self.stem(x)).mean((2, 3))
        return self.fc(self.drop(x))


class Attention(nn.Module):
    """Heads and their width are written into the code, as in most vision transformers."""

    def __init__(self, scale: bool = True) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, 3, 4).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c))
        return self.head(x.mean(1))


def resnet() -> nestify.NestedModel:
    torch.manual_seed(0)
    model = ResNet()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
            nn.init.uniform_(module.running_mean)
    return nestify.transform(model.eval(), RECIPE, (torch.randn(2, 3, 8, 8),))


def attention() -> nestify.NestedModel:
    torch.manual_seed(0)
    return nestify.transform(Attention().eval(), RECIPE, (torch.randn(2, 6, 12),))


def assert_same_as_nested(
    nested: nestify.NestedModel, slim: nn.Module, subnet: nestify.Subnet
) -> None:
    x = torch.randn(3, *nested.example_inputs[0].shape[1:])
    with nested.activate(subnet), torch.no_grad():
        torch.testing.assert_close(slim(x), nested.eval()(x), rtol=1e-5, atol=1e-6)

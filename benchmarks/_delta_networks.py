"""The networks whose rounds deltas are measured on."""

import torch
from torch import Tensor, nn
from torch.nn import functional


def mobile_net() -> nn.Module:
    """Return MobileNetV2's plan for one grey channel and ten classes: 2.2 million parameters."""
    layers: list[nn.Module] = [_convolution(1, 32, 3, 1)]
    width = 32
    for factor, wide, repeats, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 1),
        (6, 320, 1, 1),
    ):
        for at in range(repeats):
            layers.append(_Inverted(width, wide, stride if at == 0 else 1, factor))
            width = wide
    layers += [_convolution(width, 1280, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(1280, 10))


def transformer(letters: int, context: int, width: int = 256, blocks: int = 4) -> nn.Module:
    """Return a causal transformer over characters; its input are their codes as floats."""
    return _Transformer(letters, context, width, blocks)


def _convolution(
    inward: int, outward: int, size: int, stride: int, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inward, outward, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outward),
        nn.ReLU6(),
    )


class _Inverted(nn.Module):
    """An inverted residual."""

    def __init__(self, inward: int, outward: int, stride: int, factor: int) -> None:
        super().__init__()
        inside = inward * factor
        self.is_residual = stride == 1 and inward == outward
        self.body = nn.Sequential(
            _convolution(inward, inside, 1, 1),
            _convolution(inside, inside, 3, stride, inside),
            nn.Conv2d(inside, outward, 1, bias=False),
            nn.BatchNorm2d(outward),
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.body(x)
        return x + found if self.is_residual else found


class _Block(nn.Module):
    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        length, width = x.shape[1], x.shape[2]
        parts = self.mixed(self.before(x)).chunk(3, -1)
        query, key, value = (
            one.reshape(-1, length, self.heads, width // self.heads).transpose(1, 2)
            for one in parts
        )
        ahead = torch.full((length, length), -30.0).triu(1)
        weights = (query @ key.transpose(-2, -1) / (width // self.heads) ** 0.5 + ahead).softmax(-1)
        x = x + self.out((weights @ value).transpose(1, 2).reshape(-1, length, width))
        found: Tensor = x + self.down(functional.gelu(self.up(self.between(x))))
        return found


class _Transformer(nn.Module):
    def __init__(self, letters: int, context: int, width: int, blocks: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(letters, width)
        self.places = nn.Parameter(torch.randn(context, width) * 0.02)
        self.blocks = nn.Sequential(*[_Block(width) for _ in range(blocks)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, letters)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.norm(self.blocks(self.embedding(x.long()) + self.places)))
        return found

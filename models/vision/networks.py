"""Five small image classifiers for 3x32x32 pictures, one for each style of network the quantizer must handle.

Every network takes raw pixel values (0..255, float32) and normalises them itself, so that uint8 arrays feed the
exported graph by a lossless cast. The output is `logits` [batch, classes].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Normalize(nn.Module):
    """(x - mean) / std for raw pixels; a layer, so that it is part of the exported graph."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([123.7, 116.3, 124.5]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([67.1, 66.3, 67.4]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def conv_bn(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = None
) -> nn.Sequential:
    """Convolution without bias, batch normalisation and, where given, an activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    if act is not None:
        layers.append(act(inplace=True))
    return nn.Sequential(*layers)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_bn(inputs, outputs, 3, stride, act=nn.ReLU)
        self.conv2 = conv_bn(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class ResNet(nn.Sequential):
    """A 14-layer residual network (He et al., 2015): stem, three stages of two basic blocks, linear head."""

    def __init__(self, classes: int) -> None:
        super().__init__(
            Normalize(),
            conv_bn(3, 24, 3, act=nn.ReLU),
            BasicBlock(24, 32, 2),
            BasicBlock(32, 32, 1),
            BasicBlock(32, 64, 2),
            BasicBlock(64, 64, 1),
            BasicBlock(64, 128, 2),
            BasicBlock(128, 128, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(128, classes),
        )


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the picture-wide channel means."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(F.silu(self.reduce(F.adaptive_avg_pool2d(x, 1))))
        return x * gate.sigmoid()


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, (squeeze-and-excite), project 1x1 without activation, shortcut where shapes agree."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, expand: int, kernel: int, act: type[nn.Module], squeeze: bool
    ) -> None:
        super().__init__()
        wide = inputs * expand
        layers: list[nn.Module] = [
            conv_bn(inputs, wide, 1, act=act),
            conv_bn(wide, wide, kernel, stride, groups=wide, act=act),
        ]
        if squeeze:
            layers.append(SqueezeExcite(wide, max(8, inputs // 4)))
        layers.append(conv_bn(wide, outputs, 1))
        self.body = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Sequential):
    """MobileNetV2 (Sandler et al., 2018): inverted residuals with 3x3 depthwise convolutions and ReLU6."""

    def __init__(self, classes: int) -> None:
        def block(inputs: int, outputs: int, stride: int, expand: int) -> InvertedResidual:
            return InvertedResidual(inputs, outputs, stride, expand, 3, nn.ReLU6, squeeze=False)

        super().__init__(
            Normalize(),
            conv_bn(3, 24, 3, 2, act=nn.ReLU6),
            block(24, 24, 1, 3),
            block(24, 48, 2, 4),
            block(48, 48, 1, 4),
            block(48, 48, 1, 4),
            block(48, 96, 2, 4),
            block(96, 96, 1, 4),
            block(96, 96, 1, 4),
            conv_bn(96, 256, 1, act=nn.ReLU6),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(256, classes),
        )


class EfficientNet(nn.Sequential):
    """EfficientNet (Tan and Le, 2019): MBConv blocks with SiLU, squeeze-and-excite and some 5x5 kernels."""

    def __init__(self, classes: int) -> None:
        def block(inputs: int, outputs: int, stride: int, expand: int, kernel: int) -> InvertedResidual:
            return InvertedResidual(inputs, outputs, stride, expand, kernel, nn.SiLU, squeeze=True)

        super().__init__(
            Normalize(),
            conv_bn(3, 24, 3, 2, act=nn.SiLU),
            block(24, 24, 1, 3, 3),
            block(24, 48, 2, 4, 5),
            block(48, 48, 1, 4, 5),
            block(48, 96, 2, 4, 3),
            block(96, 96, 1, 4, 5),
            block(96, 96, 1, 4, 3),
            conv_bn(96, 256, 1, act=nn.SiLU),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(256, classes),
        )


class Attention(nn.Module):
    """Multi-head self-attention written with plain matrix products, so that every exporter shows them."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        tokens, dim = x.shape[1], x.shape[2]
        qkv = self.qkv(x).reshape(-1, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        scores = query @ key.transpose(-2, -1) * (dim // self.heads) ** -0.5
        mixed = scores.softmax(-1) @ value
        return self.out(mixed.transpose(1, 2).reshape(-1, tokens, dim))


class TransformerBlock(nn.Module):
    """Pre-norm attention and a GELU feed-forward layer, both residual."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """A hybrid ViT (Dosovitskiy et al., 2020, section 3.1): patches from the start of a ResNet, then a transformer.

    The first layers of `ResNet` turn each 4x4 patch and its surroundings into one of 64 tokens; the head reads the
    mean token. They are there to be copied from the trained ResNet and kept fixed: with a patch convolution learnt
    from scratch the transformer is still guessing after the few minutes it is given on one core.
    """

    def __init__(self, classes: int, dim: int = 128, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(*list(ResNet(classes))[:5])
        self.embed = nn.Linear(64, dim)
        self.position = nn.Parameter(torch.randn(1, 64, dim) * 0.02)
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(self.stem(x).flatten(2).transpose(1, 2)) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of an NCHW tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, then LayerNorm, Linear, GELU, Linear and layer scale with the channels last; residual."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.pointwise = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.scale = nn.Parameter(torch.full((dim,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.scale * self.pointwise(self.depthwise(x).permute(0, 2, 3, 1))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Sequential):
    """ConvNeXt (Liu et al., 2022): convolutional stem, three stages of blocks, LayerNorm before each reduction."""

    def __init__(self, classes: int) -> None:
        super().__init__(
            Normalize(),
            nn.Conv2d(3, 48, 4, 2, 1),
            LayerNorm2d(48),
            ConvNeXtBlock(48),
            LayerNorm2d(48),
            nn.Conv2d(48, 96, 2, 2),
            ConvNeXtBlock(96),
            ConvNeXtBlock(96),
            LayerNorm2d(96),
            nn.Conv2d(96, 192, 2, 2),
            ConvNeXtBlock(192),
            ConvNeXtBlock(192),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.LayerNorm(192),
            nn.Linear(192, classes),
        )


NETWORKS: dict[str, type[nn.Module]] = {
    "resnet": ResNet,
    "mobilenet_v2": MobileNetV2,
    "efficientnet": EfficientNet,
    "vit": VisionTransformer,
    "convnext": ConvNeXt,
}

"""MobileNetV3-Large in torch, which transformers has no configuration for.

Howard et al., Searching for MobileNetV3 (ICCV 2019), table 1: HardSwish, squeeze and excite with HardSigmoid, and
depthwise convolutions whose channels 16 does not always divide.
"""

from __future__ import annotations

import torch
from torch import nn

# Kernel, expanded channels, channels out, squeeze and excite, HardSwish, stride.
BLOCKS = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)
FIRST, LAST, HIDDEN = 16, 960, 1280


def convolution(cin: int, cout: int, kernel: int, stride: int = 1, group: int = 1) -> list[nn.Module]:
    """Without a bias, and with its normalisation."""
    return [
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=group, bias=False),
        nn.BatchNorm2d(cout, eps=1e-3),
    ]


class Excite(nn.Module):
    """Squeeze and excite: every channel times a factor that the means of all channels give it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        few = max(8, (channels // 4 + 4) // 8 * 8)
        layers = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, few, 1), nn.ReLU(), nn.Conv2d(few, channels, 1)]
        self.factors = nn.Sequential(*layers, nn.Hardsigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] to the same."""
        return x * self.factors(x)


class Block(nn.Module):
    """Expand, depthwise, excite, project; added to what came in where the shape stays."""

    def __init__(self, cin: int, row: tuple[int, int, int, bool, bool, int]) -> None:
        super().__init__()
        kernel, wide, cout, excited, swish, stride = row
        activation = nn.Hardswish if swish else nn.ReLU
        layers = [*convolution(cin, wide, 1), activation()] if wide != cin else []
        layers += [*convolution(wide, wide, kernel, stride, wide), activation()]
        layers += [Excite(wide)] if excited else []
        self.layers = nn.Sequential(*layers, *convolution(wide, cout, 1))
        self.residual = stride == 1 and cin == cout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] to [N, C_out, H / stride, W / stride]."""
        y: torch.Tensor = self.layers(x)
        return x + y if self.residual else y


class MobileNetV3(nn.Module):
    """`pixel_values: [N, 3, H, W]` to `logits: [N, labels]`."""

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        widths = [FIRST, *(row[2] for row in BLOCKS)]
        self.body = nn.Sequential(
            *convolution(3, FIRST, 3, 2),
            nn.Hardswish(),
            *(Block(cin, row) for cin, row in zip(widths, BLOCKS, strict=False)),
            *convolution(widths[-1], LAST, 1),
            nn.Hardswish(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(LAST, HIDDEN),
            nn.Hardswish(),
        )
        self.classifier = nn.Linear(HIDDEN, num_labels)

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """The logits under their name, as transformers' models return them."""
        return {"logits": self.classifier(self.body(pixel_values))}

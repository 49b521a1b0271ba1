"""The two keyword networks: a depthwise-separable CNN and a two-layer bidirectional LSTM.

Both take the 0..255 log-mel codes of models/data/make_speech.py as float32 [batch, frames, mels] and normalise them
inside the graph, so that a caller needs no preprocessing and a quantizer sees a real input range.
"""

from __future__ import annotations

from torch import Tensor, nn

CLASSES = 35
MELS = 40
CODE_STD = 32.0


def normalise(codes: Tensor) -> Tensor:
    """Take each mel's mean over time away and scale: microphone, level and steady noise mostly cancel."""
    return (codes - codes.mean(1, keepdim=True)) / CODE_STD


class Separable(nn.Sequential):
    """Depthwise 3x3 and pointwise 1x1 convolution, each with BatchNorm and ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, inputs, 3, stride=stride, padding=1, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )


class KeywordSpotter(nn.Module):
    """DS-CNN: a strided stem, six separable blocks, a global average and a linear head.

    The depthwise kernels with their widely differing ranges per channel are what per-tensor quantization is bad at.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, (5, 5), stride=(2, 2), padding=(2, 2), bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.blocks = nn.Sequential(
            Separable(width, 2 * width, 2),
            Separable(2 * width, 2 * width, 1),
            Separable(2 * width, 2 * width, 1),
            Separable(2 * width, 2 * width, 1),
            Separable(2 * width, 3 * width, 2),
            Separable(3 * width, 3 * width, 1),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(3 * width, CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        """features float32 [batch, frames, mels] in 0..255; logits [batch, CLASSES]."""
        x = normalise(features).unsqueeze(1)
        x = self.pool(self.blocks(self.stem(x))).flatten(1)
        return self.head(self.dropout(x))


class Recurrent(nn.Module):
    """A one-dimensional convolution over time, two bidirectional LSTM layers, the mean over time and a linear head."""

    def __init__(self, width: int = 96, hidden: int = 112) -> None:
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv1d(MELS, width, 5, stride=2, padding=2, bias=False), nn.BatchNorm1d(width), nn.ReLU()
        )
        self.lstm = nn.LSTM(width, hidden, num_layers=2, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(2 * hidden, CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        """features float32 [batch, frames, mels] in 0..255; logits [batch, CLASSES]."""
        x = self.front(normalise(features).transpose(1, 2)).transpose(1, 2)
        x = self.lstm(x)[0].mean(1)
        return self.head(self.dropout(x))

"""Random small graphs of linear operators, arithmetic, padding and pooling: ``prepare`` keeps every output."""

import random

import numpy as np
import pytest
from graph_helpers import check, make, node

OPERATORS = ("Conv", "ConvTranspose", "BatchNormalization", "Arithmetic", "Arithmetic", "Pad", "Plain", "Pool", "Join")
WIDE = (
    "Wide",
    "Wide",
    "Depthwise",
    "Depthwise",
    "Swish",
    "Plain",
    "Arithmetic",
    "Join",
    "Excite",
    "Conv",
    "Pool",
    "Slice",
)
DEEP_ROUNDING = 1e-4  # ten layers, each with sums in another order


class Builder:
    """Grows a graph node by node, keeping the shape of every value."""

    def __init__(self, seed, operators=OPERATORS):
        self.operators = operators
        self.random = random.Random(seed)
        self.rng = np.random.default_rng(seed)
        self.constants, self.nodes = {}, []
        self.shapes = {"x": (2, 4, 6, 6)}

    def constant(self, array):
        array = np.asarray(array)
        name = f"k{len(self.constants)}"
        self.constants[name] = array.astype(np.float32) if array.dtype.kind == "f" else array
        return name

    def grow(self):
        source = self.random.choice(list(self.shapes)[-3:])
        shape = self.shapes[source]
        output = f"t{len(self.nodes)}"
        kind = self.random.choice(self.operators)
        grown = getattr(self, f"_{kind.lower()}")(source, shape, output)
        if grown is not None:
            self.shapes[output] = grown

    def _conv(self, source, shape, output):
        n, c, h, w = shape
        groups, channels, pad = self.random.choice([1, 2]), self.random.choice([2, 4]), self.random.choice([0, 1])
        if min(h, w) + 2 * pad < 3:
            return None
        inputs = [source, self.constant(self.rng.standard_normal((channels, c // groups, 3, 3)) * 0.4)]
        if self.random.random() < 0.5:
            inputs.append(self.constant(self.rng.standard_normal(channels)))
        self.nodes.append(node("Conv", " ".join(inputs), output, group=groups, pads=[pad] * 4))
        return (n, channels, h + 2 * pad - 2, w + 2 * pad - 2)

    def _convtranspose(self, source, shape, output):
        n, c, h, w = shape
        groups, channels = self.random.choice([1, 2]), self.random.choice([2, 4])
        weight = self.constant(self.rng.standard_normal((c, channels // groups, 2, 2)) * 0.4)
        self.nodes.append(node("ConvTranspose", f"{source} {weight}", output, group=groups))
        return (n, channels, h + 1, w + 1)

    def _batchnormalization(self, source, shape, output):
        parts = [self.constant(self.rng.standard_normal(shape[1])) for _ in range(3)]
        variance = self.constant(self.rng.random(shape[1]) + 0.3)
        self.nodes.append(node("BatchNormalization", " ".join([source, *parts, variance]), output))
        return shape

    def _arithmetic(self, source, shape, output):
        size = self.random.choice([(), (1,), (shape[1], 1, 1), (1, shape[1], 1, 1), (shape[3],)])
        inputs = [source, self.constant(self.rng.random(size) + 0.5)]
        op = self.random.choice(["Add", "Sub", "Mul", "Div", "Swapped"])
        self.nodes.append(
            node("Sub", " ".join(inputs[::-1]), output) if op == "Swapped" else node(op, " ".join(inputs), output)
        )
        return shape

    def _pad(self, source, shape, output):
        n, c, h, w = shape
        top, left, bottom, right = (self.random.randint(0, 1) for _ in range(4))
        self.nodes.append(
            node("Pad", f"{source} {self.constant(np.array([0, 0, top, left, 0, 0, bottom, right]))}", output)
        )
        return (n, c, h + top + bottom, w + left + right)

    def _plain(self, source, shape, output):
        self.nodes.append(node(self.random.choice(["Relu", "Identity", "Dropout"]), source, output))
        return shape

    def _pool(self, source, shape, output):
        n, c, h, w = shape
        pad = self.random.choice([0, 1])
        if min(h, w) < 3:
            return None
        op = self.random.choice(["MaxPool", "AveragePool"])
        self.nodes.append(node(op, source, output, kernel_shape=[3, 3], pads=[pad] * 4))
        return (n, c, h + 2 * pad - 2, w + 2 * pad - 2)

    def _join(self, source, shape, output):
        other = self.random.choice([name for name, known in self.shapes.items() if known == shape])
        self.nodes.append(node("Add", f"{source} {other}", output))
        return shape

    def _wide(self, source, shape, output):
        weight = self.constant(self.rng.standard_normal((40, shape[1], 1, 1)) * 0.3)
        self.nodes.append(node("Conv", f"{source} {weight} {self.constant(self.rng.standard_normal(40))}", output))
        return (shape[0], 40, *shape[2:])

    def _depthwise(self, source, shape, output):
        weight = self.constant(self.rng.standard_normal((shape[1], 1, 3, 3)) * 0.4)
        self.nodes.append(node("Conv", f"{source} {weight}", output, group=shape[1], pads=[1] * 4))
        return shape

    def _swish(self, source, shape, output):
        ends = [self.constant(np.array(v, np.float32)) for v in (3.0, 0.0, 6.0)]
        self.nodes.append(node("Add", f"{source} {ends[0]}", f"{output}_a"))
        self.nodes.append(node("Clip", f"{output}_a {ends[1]} {ends[2]}", f"{output}_c"))
        self.nodes.append(node("Mul", f"{source} {output}_c", f"{output}_m"))
        self.nodes.append(node("Div", f"{output}_m {ends[2]}", output))
        return shape

    def _excite(self, source, shape, output):
        weight = self.constant(self.rng.standard_normal((shape[1], shape[1], 1, 1)) * 0.2)
        self.nodes.append(node("GlobalAveragePool", source, f"{output}_p"))
        self.nodes.append(node("Conv", f"{output}_p {weight}", f"{output}_w"))
        self.nodes.append(node(self.random.choice(["Sigmoid", "HardSigmoid"]), f"{output}_w", f"{output}_g"))
        self.nodes.append(node("Mul", f"{output}_g {source}", output))
        return shape

    def close(self):
        """Wide tensors that nothing reads are mixed into few channels."""
        read = {name for n in self.nodes for name in n.input}
        for name, shape in list(self.shapes.items()):
            if shape[1] == 40 and name not in read:
                weight = self.constant(self.rng.standard_normal((3, 40, 1, 1)) * 0.2)
                self.nodes.append(node("Conv", f"{name} {weight}", f"{name}_end"))
                self.shapes[f"{name}_end"] = (shape[0], 3, *shape[2:])

    def _slice(self, source, shape, output):
        stop = self.random.choice([shape[1], shape[1], 2, 2**31 - 1])
        ends = [self.constant(np.array([v])) for v in (0, stop, 1)]
        self.nodes.append(node("Slice", " ".join([source, *ends]), output))
        return (shape[0], min(stop, shape[1]), *shape[2:])


@pytest.mark.parametrize("operators", [OPERATORS, WIDE], ids=["mixed", "wide"])
@pytest.mark.parametrize("seed", range(60))
def test_random_graphs_compute_the_same(seed, operators):
    builder = Builder(seed, operators)
    for _ in range(builder.random.randint(3, 12)):
        builder.grow()
    builder.close()
    read = {name for n in builder.nodes for name in n.input}
    outputs = [name for name in builder.shapes if name != "x" and (name not in read or builder.random.random() < 0.1)]
    if not outputs:
        pytest.skip("nothing grew")
    shape = builder.random.choice([("N", 4, "H", "W"), (2, 4, 6, 6)])
    proto = make(builder.nodes, {"x": shape}, outputs, builder.constants)
    check(proto, {"x": builder.rng.standard_normal((2, 4, 6, 6)).astype(np.float32)}, tolerance=DEEP_ROUNDING)

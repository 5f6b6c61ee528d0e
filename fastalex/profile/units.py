"""The rows of a profile: what runs as one op, its own input, and what it must compute and move.

For `fastalex.profile.measure`. A row is one run of `FusedSequential`, with the ReLUs and dropouts
that follow it: they go element by element, and a kernel or a compiler can do them on the way.

    FLOPs   of convolutions and matrix products: 2 * outputs * weights of one output, forward; the
            same again backward for the weights' gradient, and for the input's where one is needed.
    Bytes   each of these once, in the step's precision (x, y: input, output; W: weights, biases):
            with weights     forward  x + W + y     backward  dy + x + dW, and W + dx where needed
            normalization    forward  x + y         backward  dy + x + dx
            pool and others  forward  x + y         backward  dy + dx
            loss             forward  x             backward  x + dx
            optimizer        20 a parameter: its weight and velocity in float32, read and written,
                             and the gradient; in half precision that, and the half weight written
            What backward needs as bits (masks, places of maxima) is left out, so it is a limit.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from fastalex.model import AlexNet, LocalResponseNorm
from fastalex.model.dropout import KeyedDropout
from fastalex.model.fused import FusedSequential
from fastalex.model.layers import SpatialResponseNorm

OPTIMIZER_BYTES = 20

_KINDS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.Dropout: "dropout",
    KeyedDropout: "dropout",
    SpatialResponseNorm: "spatial_norm",
    nn.LocalResponseNorm: "norm",
    nn.BatchNorm2d: "norm",
    nn.MaxPool2d: "pool",
}
_ELEMENTWISE = (nn.ReLU, nn.Dropout, KeyedDropout)
_NORMS = (SpatialResponseNorm, LocalResponseNorm, nn.BatchNorm2d)


@dataclass(frozen=True)
class Cost:
    flops: int
    moved: int
    """Bytes."""


@dataclass(frozen=True)
class Unit:
    """`run` on `input` makes what the next unit is given; `input` has a gradient if that has."""

    name: str
    run: Callable[[Tensor], Tensor]
    input: Tensor
    parameters: tuple[nn.Parameter, ...]
    costs: dict[str, Cost]
    """By pass: forward, backward."""


@dataclass
class _Row:
    """A unit in the making."""

    modules: list[nn.Module]
    ops: list[Callable[[Tensor], Tensor]]
    input: Tensor

    def run(self, x: Tensor) -> Tensor:
        for op in self.ops:
            x = op(x)
        return x


def units(
    model: AlexNet, images: Tensor, labels: Tensor, label_smoothing: float, itemsize: int
) -> Iterator[Unit]:
    """The units of a training step but for the optimizer, in the order of the forward pass.

    Runs the network once, in the mode and under the autocast in force.

    Args:
        images, labels: (B, 3, S, S) and (B,), on the model's device.
        itemsize: bytes of a value in the step's precision.
    """
    names, x = module_names(model), images
    for part, between in ((model.features, [model.avgpool, nn.Flatten(1)]), (model.classifier, [])):
        rows = _rows(part, x)
        x = rows[-1].run(rows[-1].input).detach()
        if between:
            rows.append(_Row(between, [between[0], between[1]], x))
            x = rows[-1].run(x).detach()
        outputs = [*(row.input for row in rows[1:]), x]
        for row, y in zip(rows, outputs, strict=True):
            name = "avgpool+flatten" if row.modules is between else _name(row.modules, names)
            first = part is model.features and row is rows[0]
            yield _unit(name, row, y, first, itemsize)
    logits = x.requires_grad_()
    moved = itemsize * x.numel()
    yield Unit(
        "loss",
        lambda x: F.cross_entropy(x, labels, label_smoothing=label_smoothing),
        logits,
        (),
        {"forward": Cost(0, moved), "backward": Cost(0, 2 * moved)},
    )


def module_names(model: AlexNet) -> dict[nn.Module, str]:
    """conv1 ... fc8 as in `named_layers`; the others by their kind and the layer before: norm1."""
    names, number = {module: name for name, module in model.named_layers()}, ""
    for module in [*model.features, *model.classifier]:
        if module in names:
            number = names[module][-1]
        else:
            names[module] = _kind(module) + number
    return names


def _kind(module: nn.Module) -> str:
    kinds = [kind for type_, kind in _KINDS.items() if isinstance(module, type_)]
    return kinds[0] if kinds else type(module).__name__.lower()


def _rows(part: nn.Sequential, x: Tensor) -> list[_Row]:
    assert isinstance(part, FusedSequential)
    modules, rows = list(part), list[_Row]()
    for numbers, op, given in part.runs(x):
        own = [modules[number] for number in numbers]
        if rows and all(isinstance(module, _ELEMENTWISE) for module in own):
            rows[-1].modules += own
            rows[-1].ops.append(op)
        else:
            rows.append(_Row(own, [op], given.detach()))
    return rows


def _name(modules: list[nn.Module], names: dict[nn.Module, str]) -> str:
    """A ReLU or dropout behind something else goes without its number."""
    first, *others = modules
    rest = [_kind(m) if isinstance(m, _ELEMENTWISE) else names[m] for m in others]
    return "+".join([names[first], *rest])


def _unit(name: str, row: _Row, y: Tensor, first: bool, itemsize: int) -> Unit:
    parameters = tuple(p for module in row.modules for p in module.parameters())
    x, y_size = row.input.numel(), y.numel()
    weights = sum(p.numel() for p in parameters)
    matrices = [m for m in row.modules if isinstance(m, nn.Conv2d | nn.Linear)]
    flops = sum(2 * y_size * m.weight[0].numel() for m in matrices)
    forward, backward = x + weights + y_size, y_size + weights
    if matrices or any(isinstance(m, _NORMS) for m in row.modules):
        backward += x
    if not first:
        backward += x + (weights if matrices else 0)
    costs = {
        "forward": Cost(flops, itemsize * forward),
        "backward": Cost(flops if first else 2 * flops, itemsize * backward),
    }
    return Unit(name, row.run, row.input.detach().requires_grad_(not first), parameters, costs)


def optimizer_cost(parameters: int) -> Cost:
    return Cost(0, OPTIMIZER_BYTES * parameters)

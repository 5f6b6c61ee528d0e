"""The gate before any timing: does a provider compute what the plain float32 network computes?

The reference is the stock network in float32 on the same weights, images and labels, dropout off. A
training step is judged by its loss and by what it does to every parameter: without decay and
velocity, W before less W after is the rate times the gradient, whatever made it and whoever applied
it. An inference is judged by its logits. An error is the root mean square of the difference over
that of what is right, tensor by tensor.

In float32 it may be TOLERANCE. In half precision near-ties of a pool's maximum fall the other way
and send a gradient elsewhere, the more the deeper: no one number fits. There a tensor may be FACTOR
times as far off as plain PyTorch under autocast is, and FLOOR more (a normalization that keeps its
sums in bfloat16 needs it; the loss does not), but never more than CEILING: a gradient of zeros is
1, one of the wrong sign 2.
"""

import math
from typing import Any

from torch import Tensor

TOLERANCE = 0.02
"""One image's one window whose two largest are equal but for the last bit comes to .005."""
FACTOR, FLOOR, LOSS_FLOOR, CEILING = 2.0, 0.05, 0.01, 0.7


class GateError(Exception):
    """A provider that computes something else; says what and by how much."""


def relative_error(got: Tensor, right: Tensor) -> float:
    """Root mean square of the difference over that of `right`; infinite where it is no number."""
    right = right.detach().float()
    if got.shape != right.shape:
        return math.inf
    difference = got.detach().float() - right
    error = float(difference.norm() / right.norm().clamp(min=1e-30))
    return error if math.isfinite(error) else math.inf


def errors(got: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, float]:
    return {name: relative_error(got[name], right[name]) for name in right}


def limits(names: dict[str, float], half: bool, of_plain: dict[str, float]) -> dict[str, float]:
    """The largest errors that pass.

    Args:
        names: the tensors, as `errors` has them.
        half: the provider computes in half precision.
        of_plain: what plain PyTorch under autocast errs here; empty where it was not run.
    """
    if not half:
        return dict.fromkeys(names, TOLERANCE)
    floors = {name: LOSS_FLOOR if name == "loss" else FLOOR for name in names}
    return {
        name: min(CEILING, floors[name] + FACTOR * of_plain[name]) if name in of_plain else CEILING
        for name in names
    }


def check(found: dict[str, float], half: bool, of_plain: dict[str, float]) -> float:
    """The largest of the errors `found`.

    Raises:
        GateError: one is above its limit.
    """
    allowed = limits(found, half, of_plain)
    worst = max(found, key=lambda name: found[name] / allowed[name])
    if not found[worst] <= allowed[worst]:
        raise GateError(
            f"{worst} is {found[worst]:.1%} off plain float32, of which {allowed[worst]:.1%} may be"
        )
    return max(found.values())


def outcome(running: Any) -> dict[str, Tensor]:
    """The loss of one step on the gate's terms, and what it took off every parameter.

    Args:
        running: a `_step.Running`.
    """
    layers = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
    names = [f"{layer}'s {kind} gradient" for layer in layers for kind in ("weight", "bias")]
    before = running.weights()
    loss = running.step().detach().clone()
    changes = zip(names, before, running.weights(), strict=True)
    return {"loss": loss} | {name: old - new for name, old, new in changes}

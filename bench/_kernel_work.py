"""What a kernel benchmark runs: one op at one shape, by several providers, one pass at a time.

A provider is a function of the op's operands. A pass is the forward one, as in training, or one
that makes gradients, with the forward pass before it left out of the time. A work says how far a
provider's results are from plain float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fastalex import kernels

Function = Callable[..., Any]
Prepared = tuple[Callable[[], Any], Callable[..., object]]
"""Makes ready, untimed; is timed, on what the first returned."""

OURS = ("triton", "auto")


@dataclass(frozen=True)
class Pass:
    """What one pass must move and compute, however it is done."""

    moved: int
    """Bytes: each operand and result once."""
    flops: int = 0
    wrt: tuple[int, ...] = ()
    """Operands that have a gradient, and in a backward pass get it."""
    backward: bool = False


class Work(Protocol):
    passes: dict[str, Pass]

    def names(self, which: str) -> list[str]:
        """The providers of a pass."""
        ...

    def prepare(self, provider: str, which: str) -> Prepared: ...
    def error(self, provider: str, which: str) -> float: ...


@dataclass
class Op:
    """A function of tensors, with gradients."""

    operands: list[Tensor]
    providers: dict[str, Function]
    default_layout: tuple[str, ...]
    """Providers whose operands are not in channels_last."""
    passes: dict[str, Pass]
    reference: Function
    """Of a provider's output and the operands in float32: what the output should be."""
    forward_only: tuple[str, ...] = ()

    def names(self, which: str) -> list[str]:
        left_out = self.forward_only if self.passes[which].backward else ()
        return [name for name in self.providers if name not in left_out]

    def prepare(self, provider: str, which: str) -> Prepared:
        leaves, run = self._leaves(which, provider), self.providers[provider]
        if not self.passes[which].backward:
            return (lambda: None), (lambda _: run(*leaves))
        wrt = [leaves[i] for i in self.passes[which].wrt]
        dy = _seeded_like(run(*leaves))
        return (lambda: run(*leaves)), (lambda y: torch.autograd.grad(y, wrt, dy))

    def error(self, provider: str, which: str) -> float:
        """The largest of output's and gradients' root mean square errors, relative to their own."""
        leaves = self._leaves(which, provider)
        got = self.providers[provider](*leaves)
        plain = [_plain(leaf) for leaf in leaves]
        expected = self.reference(got.detach(), *plain)
        pairs = [(got, expected)]
        if self.passes[which].backward:
            wrt, dy = self.passes[which].wrt, _seeded_like(got)
            ours = torch.autograd.grad(got, [leaves[i] for i in wrt], dy)
            theirs = torch.autograd.grad(expected, [plain[i] for i in wrt], dy.float())
            pairs += zip(ours, theirs, strict=True)
        return max(relative_error(a, b) for a, b in pairs)

    def _leaves(self, which: str, provider: str) -> list[Tensor]:
        wrt, operands = self.passes[which].wrt, self.operands
        if provider in self.default_layout:
            operands = [x.contiguous() for x in operands]
        return [x.detach().requires_grad_(i in wrt) for i, x in enumerate(operands)]


@dataclass
class Step:
    """An update in place of lists of tensors, of which the first is what matters."""

    operands: list[list[Tensor]]
    providers: dict[str, Function]
    passes: dict[str, Pass]
    reference: Function
    """Of the operands: what the first list should become."""

    def names(self, which: str) -> list[str]:
        return list(self.providers)

    def prepare(self, provider: str, which: str) -> Prepared:
        run = self.providers[provider]
        return (lambda: None), (lambda _: run(*self.operands))

    def error(self, provider: str, which: str) -> float:
        """As an Op's, of the change that the step makes."""
        own = [[x.clone() for x in each] for each in self.operands]
        expected = self.reference(*own)
        self.providers[provider](*own)
        changes = zip(own[0], self.operands[0], expected, strict=True)
        return max(relative_error(new - old, right - old) for new, old, right in changes)


def within(mode: str, function: Function) -> Function:
    def run(*operands: Any) -> Any:
        with kernels.use(mode):
            return function(*operands)

    return run


def autocast(function: Function) -> Function:
    def run(*operands: Any) -> Any:
        with torch.autocast("cuda", torch.bfloat16):
            return function(*operands)

    return run


def compiled(function: Function) -> Function:
    """Compiled for these shapes when it is first called; what was compiled before is dropped."""
    made: list[Function] = []

    def run(*operands: Any) -> Any:
        if not made:
            torch.compiler.reset()
            made.append(torch.compile(function, fullgraph=True, dynamic=False))
        return made[0](*operands)

    return run


def ours(function: Function, on_gpu: bool) -> dict[str, Function]:
    return {mode: within(mode, function) for mode in (OURS if on_gpu else OURS[1:])}


def size(*tensors: Tensor | Sequence[Tensor]) -> int:
    """Bytes."""
    return sum(x.numel() * x.element_size() if isinstance(x, Tensor) else size(*x) for x in tensors)


def relative_error(got: Tensor, expected: Tensor) -> float:
    difference = (got.detach().float() - expected.detach().float()).norm()
    return float(difference / expected.detach().float().norm().clamp(min=1e-30))


def _plain(leaf: Tensor) -> Tensor:
    x = leaf.detach().float() if leaf.is_floating_point() else leaf
    return x.requires_grad_(leaf.requires_grad)


def _seeded_like(y: Tensor) -> Tensor:
    generator = torch.Generator(y.device).manual_seed(1)
    return torch.empty_like(y).normal_(generator=generator)

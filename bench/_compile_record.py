"""What the ops of fastalex.kernels launch, written down instead of run; no GPU is needed.

For compile_kernels.py. The public ops are called on tensors without memory (`_compile_fake`), while
the launcher writes each launch down and the choice takes each Triton candidate in its turn. Nothing
is listed by hand, so that no kernel, tiling or constant is forgotten or out of date.
"""

import contextlib
import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import triton
from _compile_fake import Target, pretended
from triton.tools.tensor_descriptor import TensorDescriptor

from fastalex import kernels
from fastalex.kernels import _launch


@dataclass(frozen=True)
class Pointer:
    """A tensor as a kernel's argument: what Triton's compiler asks of one."""

    dtype: torch.dtype
    offset: int
    size: int

    def data_ptr(self) -> int:
        """Allocations start at multiples of 512 bytes, so the offset alone decides alignment."""
        return self.offset

    def ptr_range(self) -> int:
        return self.size


@dataclass(frozen=True)
class Launch:
    """One `kernel[grid](*arguments, **keywords)` of an op."""

    module: str
    kernel: str
    op: str
    direction: str
    candidate: str
    """The choice that led here; "" where the op has none to make."""
    tiling: str
    """The candidate's, for a kernel of matrix products; the others do not depend on it."""
    case: str
    """What was run, in `dtype`."""
    dtype: torch.dtype
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def function(self) -> triton.JITFunction:
        return getattr(importlib.import_module(self.module), self.kernel)


@dataclass(frozen=True)
class Case:
    """Calls of public ops, to be made on tensors without memory."""

    name: str
    dtype: torch.dtype
    call: Callable[[], object]


def defined_kernels(package: ModuleType = kernels) -> set[tuple[str, str]]:
    """(module, name) of every @triton.jit function of the package whose name ends in _kernel."""
    return {
        (module.__name__, value.fn.__name__)
        for module in _modules(package)
        for value in vars(module).values()
        if isinstance(value, triton.JITFunction)
        and value.fn.__name__.endswith("_kernel")
        and value.fn.__module__ == module.__name__
    }


def _modules(package: ModuleType) -> list[ModuleType]:
    names = [m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return [importlib.import_module(name) for name in names]


def record(target: Target, cases: Iterable[Case], package: ModuleType = kernels) -> list[Launch]:
    """Every launch that `cases` makes on `target`, with every candidate of every choice."""
    recorder = _Recorder()
    with pretended(target), recorder.installed(package), _launch.use("triton"):
        for case in cases:
            try:
                recorder.run(case)
            except Exception as error:
                error.add_note(f"while recording {case.name} in {case.dtype} on {target.name}")
                raise
    return recorder.launches


class _Pick(str):
    """A candidate's name that knows which choice it is the answer to."""

    choice: tuple[str, str, str]


class _Recorder:
    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.case = Case("", torch.float32, lambda: None)
        self.turn = self.turns = 1

    def run(self, case: Case) -> None:
        """Once for each candidate: the first run says how many there are."""
        self.case, self.turn, self.turns = case, 1, 1
        while self.turn <= self.turns:
            case.call()
            self.turn += 1

    def choose(self, op, direction, mode, candidates, trial, operands, settings=()) -> str:
        self.turns = max(self.turns, len(candidates) - 1)
        pick = _Pick(candidates[min(self.turn, len(candidates) - 1)])
        pick.choice = (op, direction, str(pick))
        return pick

    def launch(self, kernel: triton.JITFunction, *args: Any, **kwargs: Any) -> None:
        arguments = tuple(map(_argument, args))
        keywords = {key: _argument(value) for key, value in kwargs.items()}
        choice = _choice_in_force()
        what = (kernel.fn.__module__, kernel.fn.__name__, *choice)
        tiling = choice[2].removeprefix("triton").strip() if "tl.dot(" in kernel.src else ""
        case = (self.case.name, self.case.dtype)
        self.launches.append(Launch(*what, tiling, *case, arguments, keywords))

    @contextlib.contextmanager
    def installed(self, package: ModuleType) -> Iterator[None]:
        """In the place of every op's `choose`, and of the launcher."""

        def by_grid(launcher: Any, grid: object) -> Callable[..., None]:
            return lambda *args, **kwargs: self.launch(launcher.kernel, *args, **kwargs)

        with contextlib.ExitStack() as stack:
            for module in _modules(package):
                if hasattr(module, "choose"):
                    stack.enter_context(mock.patch.object(module, "choose", self.choose))
            stack.enter_context(mock.patch.object(_launch._Launcher, "__getitem__", by_grid))
            yield


def _choice_in_force() -> tuple[str, str, str]:
    """Of the nearest caller that holds a pick: an op may choose twice before its first launch."""
    frame = inspect.currentframe()
    while frame:
        for value in frame.f_locals.values():
            if isinstance(value, _Pick):
                return value.choice
        frame = frame.f_back
    return "", "", ""


def _argument(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        offset = value.storage_offset() * value.element_size()
        return Pointer(value.dtype, offset, value.untyped_storage().size())
    if isinstance(value, TensorDescriptor):
        shape, strides = list(map(int, value.shape)), list(map(int, value.strides))
        return dataclasses.replace(value, base=_argument(value.base), shape=shape, strides=strides)
    return value

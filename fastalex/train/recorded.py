"""A function that works on the same memory every time, run as one CUDA graph.

For `fastalex.train.step`: a whole step is some hundred kernels, and at small batches the host takes
longer to launch them than the GPU to run them. A recorded step is one launch. It repeats the
kernels and addresses of the call that was recorded, nothing else: whatever changes from step to
step (images, learning rates, the dropout's key) has to lie in tensors, and nothing in it may wait
for the device.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

WARM_UP = 3
"""Calls before the first recording: they compile, choose kernels and allocate what stays."""


class Recorded:
    """`function` of tensors on a GPU, of which it must return one; a replay's result is a new
    tensor, everything else that it writes is overwritten by the next.

    There is a graph for each set of arguments, told apart by their addresses. All share their
    memory: of two replays the second may overwrite what the first has left. Where it cannot be
    recorded there is a warning, once, and `function` is called as it is.
    """

    def __init__(self, function: Callable[..., Tensor], device: torch.device) -> None:
        self._function = function
        self._stream = torch.cuda.Stream(device)
        self._graphs: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool: Any = None
        self._to_warm_up = WARM_UP
        self._gave_up = False

    def __call__(self, *arguments: Tensor) -> Tensor:
        if self._to_warm_up or self._gave_up:
            self._to_warm_up = max(0, self._to_warm_up - 1)
            return self._aside(arguments)
        key = tuple(argument.data_ptr() for argument in arguments)
        if key not in self._graphs and not self._record(key, arguments):
            return self._aside(arguments)
        graph, result = self._graphs[key]
        graph.replay()
        return result.clone()

    def _aside(self, arguments: tuple[Tensor, ...]) -> Tensor:
        """On the stream that will be recorded: autograd's nodes remember theirs."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = self._function(*arguments)
        current.wait_stream(self._stream)
        return result

    def _record(self, key: tuple[int, ...], arguments: tuple[Tensor, ...]) -> bool:
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self._stream.device)
        try:
            with (
                _own_workspaces(),
                torch.cuda.graph(
                    graph,
                    pool=self._pool,
                    stream=self._stream,
                    capture_error_mode="thread_local",  # the decoder's threads may allocate
                ),
            ):
                result = self._function(*arguments)
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # a capture that fails at its end leaves its own
            self._gave_up = True
            print(
                "warning: the step cannot be recorded as a CUDA graph and goes on without, slower "
                f"at small batches: {' '.join(str(error).split())[:300]}",
                file=sys.stderr,
            )
            return False
        self._pool = graph.pool()
        self._graphs[key] = graph, result
        return True


@contextlib.contextmanager
def _own_workspaces() -> Iterator[None]:
    """cuBLAS asks for its workspaces anew, within and after: a graph that knew the ordinary ones
    would write to them when others, such as torch.compile's CUDA graphs, have given them back."""
    clear = torch._C._cuda_clearCublasWorkspaces
    torch.cuda.synchronize()
    clear()
    try:
        yield
    finally:
        clear()

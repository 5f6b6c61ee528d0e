"""Streams, events and graphs of torch.cuda for CPU tensors, for tests of what orders and records.

Streams and events keep vector clocks: each act on a stream ticks its own, waiting merges the
other's, so that one act is behind another if its clock has seen it. What is captured is noted op by
op, with the very tensors, and undone at the end, since a capture computes nothing; a replay makes
the same ops into the same tensors. What a real capture refuses is refused: reading a number.
"""

import contextlib
from collections import Counter
from itertools import count

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

_names = count()


class Stream:
    def __init__(self, device=None):
        self.device, self.name, self.clock = device, next(_names), Counter()

    def act(self):
        """Something is queued here; returns its time."""
        self.clock[self.name] += 1
        return self.name, self.clock[self.name]

    def has_seen(self, act):
        name, time = act
        return self.clock[name] >= time

    def wait_stream(self, other):
        self.clock |= other.clock

    def wait_event(self, event):
        self.clock |= event.clock


class Event:
    def __init__(self):
        self.clock = Counter()

    def record(self, stream):
        self.clock = Counter(stream.clock)


class Streams:
    """The current stream, beside the classes; in the place of the functions of torch.cuda."""

    def __init__(self, monkeypatch):
        self.main = self.current = Stream()
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", self.capture)
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        monkeypatch.setattr(
            torch.cuda, "set_stream", lambda stream: setattr(self, "current", stream)
        )
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        self.read_by = []  # (address, stream) that the allocator was told of
        monkeypatch.setattr(
            torch.Tensor, "record_stream", lambda x, s: self.read_by.append((x.data_ptr(), s))
        )
        self.cleared = []  # how many captures there had been
        monkeypatch.setattr(
            torch._C, "_cuda_clearCublasWorkspaces",
            lambda: self.cleared.append(Graph.captures), raising=False,
        )  # fmt: skip

    @contextlib.contextmanager
    def on(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def capture(self, graph, pool=None, stream=None, capture_error_mode="global"):
        """One that fails at its end leaves its stream current, as torch's does."""
        assert capture_error_mode == "thread_local"
        assert stream is not None
        assert (pool is None) == (Graph.captures == 0), "graphs of one step share their memory"
        Graph.captures += 1
        before, self.current = self.current, stream
        noting = _Noting(graph)
        with noting:
            yield
        self.current = before
        with torch.no_grad():
            noting.undo()


class Graph:
    captures = 0

    def __init__(self):
        self.calls, self.replays = [], 0

    def pool(self):
        return (0, 1)

    def replay(self):
        self.replays += 1
        with torch._C._AutoDispatchBelowAutograd():  # memory alone, as a GPU knows it
            for function, args, kwargs, results in self.calls:
                again = tree_flatten(function(*args, **kwargs))[0]
                for old, new in zip(results, again, strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


_REFUSED = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.lift_fresh.default)


class _Noting(TorchDispatchMode):
    def __init__(self, graph):
        super().__init__()
        self.graph, self.before = graph, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in _REFUSED:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        arguments = function._schema.arguments
        given = {a.name: value for a, value in zip(arguments, args, strict=False)} | kwargs
        for argument in arguments:
            says_so = argument.alias_info is not None and argument.alias_info.is_write
            if says_so or argument.name in ("running_mean", "running_var"):  # which do not
                for tensor in filter(torch.is_tensor, tree_flatten(given.get(argument.name))[0]):
                    key = tensor.untyped_storage().data_ptr()
                    self.before.setdefault(key, (tensor, tensor.clone()))
        results = function(*args, **kwargs)
        self.graph.calls.append((function, args, kwargs, tree_flatten(results)[0]))
        return results

    def undo(self):
        for tensor, before in self.before.values():
            tensor.copy_(before)

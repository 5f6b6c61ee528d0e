"""Who answers a batch: `AlexNet.eval()` in every usual way, and stock PyTorch in every usual way.

Under torch.inference_mode, on the same images. For bench_inference.py. "cast" is the whole model in
bfloat16; autocast casts the weights anew at each call.
"""

import functools
from typing import Any

import torch
from _machine import DEVICE, GPU
from _peers import TowerNorm, TunedTowerNorm, peer_of
from _settings import Setting
from _step import Provider, fresh
from torch import Tensor, nn

from fastalex.train.device import arithmetic

DROPOUT = 0.5
"""The paper's network halves the outputs of fc6 and fc7 at test; a part of its inference."""


class Answering:
    """A network that answers one batch.

    Args:
        ours: `fastalex.AlexNet`, else the stock network.
        precision: fp32; bf16 (autocast); or cast.
        graph: the call is captured as one CUDA graph, the images copied into it each time.
    """

    def __init__(
        self, setting: Setting, *, ours: bool, precision: str,
        layout: torch.memory_format = torch.channels_last,
        norm: Any = TowerNorm, compile: dict[str, Any] | None = None, graph: bool = False,
    ) -> None:  # fmt: skip
        model: nn.Module = fresh(setting, DROPOUT).to(DEVICE).eval()
        model = model if ours else peer_of(model, norm)  # pyright: ignore[reportArgumentType]
        model = model.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
        self.images = setting.images().contiguous(memory_format=layout)
        if precision == "cast":
            model, self.images = model.bfloat16(), self.images.bfloat16()
        self._precision = "bf16" if precision == "bf16" else "fp32"
        mode = (compile or {}).get("mode")
        self._marks_steps = GPU and mode in ("reduce-overhead", "max-autotune")
        self._model: Any = model
        if compile is not None:
            self._model = torch.compile(model, fullgraph=True, dynamic=False, **compile)
        self._graph = self._capture() if graph else None

    def step(self) -> Tensor:
        """The (batch, classes) logits."""
        if self._graph is None:
            return self._answer(self.images)
        self._buffer.copy_(self.images)
        self._graph.replay()
        return self._logits

    def _answer(self, images: Tensor) -> Tensor:
        if self._marks_steps:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.inference_mode(), arithmetic(DEVICE, self._precision):  # pyright: ignore
            return self._model(images)

    def _capture(self) -> torch.cuda.CUDAGraph:
        self._buffer, stream = self.images.clone(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._answer(self._buffer)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._logits = self._answer(self._buffer)
        return graph


PLAIN = "eager" if GPU else "eager-bf16"
"""The provider whose error in half precision is the measure of the others'."""


def providers(setting: Setting) -> dict[str, Provider]:
    """In the order in which they are built."""
    return _on_a_gpu() if GPU else _on_a_cpu(setting)


def _provider(says: str, **options: Any) -> Provider:
    mode = (options.get("compile") or {}).get("mode")
    return Provider(
        says,
        functools.partial(Answering, **options),
        ours=options["ours"],
        half=options["precision"] != "fp32",
        compiled="compile" in options,
        slow=mode == "max-autotune",
    )


def _on_a_gpu() -> dict[str, Provider]:
    own = {"ours": True, "precision": "cast"}
    peer = {"ours": False, "precision": "cast", "norm": TunedTowerNorm}
    quick = {"mode": "reduce-overhead"}
    return {
        "eager": _provider("autocast", ours=False, precision="bf16"),
        "fastalex": _provider("autocast", ours=True, precision="bf16"),
        "fastalex-cast": _provider("the model in bfloat16", **own),
        "fastalex-graph": _provider("in bfloat16, one CUDA graph", **own, graph=True),
        "eager-cast": _provider("the model in bfloat16", **peer),
        "graph": _provider("in bfloat16, one CUDA graph", **peer, graph=True),
        "compile": _provider("in bfloat16, torch.compile", **peer, compile={}),
        "fastalex-compile": _provider("in bfloat16, reduce-overhead", **own, compile=quick),
        "reduce-overhead": _provider("in bfloat16, torch.compile", **peer, compile=quick),
        "max-autotune": _provider(
            "in bfloat16, torch.compile", **peer, compile={"mode": "max-autotune"}
        ),
    }


def _on_a_cpu(setting: Setting) -> dict[str, Provider]:
    own, peer, default = {"ours": True}, {"ours": False}, torch.contiguous_format
    tuned, by_hand = {**peer, "norm": TunedTowerNorm}, "the LRN tuned by hand"
    precision = setting.config.precision
    found = {
        "eager-bf16": _provider("bf16 autocast, channels_last", **peer, precision="bf16"),
        "fastalex": _provider(f"{precision}, channels_last", **own, precision=precision),
        "fastalex-cast": _provider("the model in bfloat16", **own, precision="cast"),
        "fastalex-fp32": _provider("fp32, channels_last", **own, precision="fp32"),
        "eager": _provider("fp32, default layout", **peer, precision="fp32", layout=default),
        "eager-channels-last": _provider("fp32, channels_last", **peer, precision="fp32"),
        "eager-lrn": _provider(f"fp32, {by_hand}", **tuned, precision="fp32"),
        "eager-cast": _provider(f"the model in bfloat16, {by_hand}", **tuned, precision="cast"),
        "compile": _provider(f"compiled, fp32, {by_hand}", **tuned, precision="fp32", compile={}),
        "compile-cast": _provider(
            f"compiled, in bfloat16, {by_hand}", **tuned, precision="cast", compile={}
        ),
    }
    if precision == "fp32":  # where the CPU does not multiply bf16
        for name in ("eager-bf16", "fastalex-cast", "fastalex-fp32", "eager-cast", "compile-cast"):
            del found[name]
    if setting.network != "demo":
        found = {n: p for n, p in found.items() if not n.startswith("compile")}
    if setting.network == "torchvision":
        del found["eager-lrn"]
    return found


def reference(setting: Setting) -> dict[str, Tensor]:
    """The logits of the plain network in float32."""
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        layout = torch.contiguous_format
        return outcome(Answering(setting, ours=False, precision="fp32", layout=layout))
    finally:
        torch.backends.cudnn.allow_tf32 = tf32


def outcome(answering: Answering) -> dict[str, Tensor]:
    return {"logits": answering.step().clone()}

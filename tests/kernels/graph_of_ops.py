"""Prints, as JSON, what torch.compile makes of every op on a GPU: {"traced": {op: [[kernel, out]]}}

For test_graph.py, in a process of its own without TRITON_INTERPRET. The tensors are fake ones on a
GPU that need not be there. "out" are the arguments that the tracer found a kernel to write to;
a call of anything but a Triton kernel stands there with null.
"""

import json
import sys
from pathlib import Path

import torch
import triton
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
from torch._library.triton import get_triton_kernels_for_op
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx

import fastalex.kernels  # noqa: F401 - registers the ops

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from _compile_fake import TARGETS, pretended

MEMORY_ONLY = ("empty", "new_empty", "empty_like", "getitem", "view", "permute")
CONV = ([1, 1], [2, 2], [1, 1], 2)
NORM = (1e-4, 0.75, 2.0, 2, True)
op = torch.ops.fastalex


class Driver:
    """What the tracer asks of a GPU's driver."""

    def get_current_target(self):
        return TARGETS["sm_90"].gpu

    def get_active_torch_device(self):
        return torch.device("cuda", 0)


def empty(*shape, dtype=torch.bfloat16):
    x = torch.empty(shape, device="cuda", dtype=dtype)
    return x.to(memory_format=torch.channels_last) if len(shape) == 4 else x


def cases():
    x, w, bias, y = empty(8, 96, 27, 27), empty(256, 48, 5, 5), empty(256), empty(8, 256, 27, 27)
    pooled, places = empty(8, 256, 13, 13), empty(8, 256, 13, 13, dtype=torch.int8)
    key, place = empty(2, dtype=torch.int64), [4096, 1, 2, 0]
    pixels = torch.empty(8, 32, 32, 3, device="cuda", dtype=torch.uint8)
    mean, lr = empty(3, dtype=torch.float32), empty(1, dtype=torch.float32)
    weight = empty(64, 64, dtype=torch.float32)
    pool = [3, 3, 2, 2, 0, 0]
    yield "conv2d_relu", lambda x, w, b: op.conv2d_relu(x, w, b, *CONV, "triton"), (x, w, bias)
    yield (
        "conv2d_relu_backward",
        lambda *o: op.conv2d_relu_backward(*o, *CONV, [True] * 3, "triton"),
        (y, y, x, w),
    )
    yield "local_response_norm", lambda x: op.local_response_norm(x, *NORM, "triton"), (x,)
    yield (
        "local_response_norm_backward",
        lambda dy, x: op.local_response_norm_backward(dy, x, *NORM, "triton"),
        (x, x),
    )
    yield "max_pool2d", lambda x: op.max_pool2d(x, pool, True, True, "triton"), (y,)
    yield (
        "max_pool2d_backward",
        lambda *o: op.max_pool2d_backward(*o, [8, 256, 27, 27], True, pool),
        (pooled, places, None),
    )
    yield (
        "local_response_norm_max_pool2d",
        lambda x: op.local_response_norm_max_pool2d(x, *NORM, True, "triton"),
        (y,),
    )
    yield (
        "local_response_norm_max_pool2d_backward",
        lambda *o: op.local_response_norm_max_pool2d_backward(*o, *NORM),
        (pooled, y, places),
    )
    yield (
        "dropout",
        lambda x, k: op.dropout(x, k, 0.5, True, True, place, "triton"),
        (x, key),
    )
    yield (
        "dropout_backward",
        lambda x, rows, k: [
            op.dropout_backward(*o, k, 0.5, True, place, "triton") for o in ((x, x), (rows, None))
        ],
        (x, empty(8, 4096), key),
    )
    yield (
        "momentum_sgd_",
        lambda w, v, g, c, lr: op.momentum_sgd_([w], [v], [g], [c], lr, 0.9, 5e-4, "triton"),
        (weight, weight.clone(), weight.clone(), weight.bfloat16(), lr),
    )
    yield (
        "images",
        lambda x, m: op.images(x, m, None, None, None, 1.0, torch.bfloat16, 4, [2, 2], "triton"),
        (pixels, mean),
    )


def called(node):
    """[kernel, what it writes to], or [op, None]."""
    if "triton_kernel_wrapper" in str(node.target):
        kernel = kernel_side_table.get_kernel(node.kwargs["kernel_idx"])
        return [kernel.fn.__name__, list(node.kwargs["tensors_to_clone"])]
    return [str(node.target), None]


def main():
    triton.runtime.driver.set_active(Driver())
    found: dict[str, list] = {}
    with pretended(TARGETS["sm_90"]):
        for name, call, operands in cases():
            graph = make_fx(dispatch_functionalize(call))(*operands).graph
            nodes = [n for n in graph.nodes if n.op == "call_function"]
            found[name] = [called(n) for n in nodes if not is_memory_only(n)]
    scanned = {
        name: [k.fn.__name__ for k in get_triton_kernels_for_op(f"fastalex::{name}")]
        for name in found
    }
    print(json.dumps({"traced": found, "scanned": scanned}))


def is_memory_only(node):
    name = getattr(node.target, "_opname", getattr(node.target, "__name__", ""))
    return name.split(".")[0] in MEMORY_ONLY


if __name__ == "__main__":
    main()

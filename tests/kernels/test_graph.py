"""Under torch.compile on a GPU every op is its Triton kernels, which write to nothing but outputs.

What the tracer finds a kernel to write to, it copies first: an input among them would cost a pass
over memory, and be wrong where it is not copied back. graph_of_ops.py traces; no GPU is needed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXPECTED = {
    "conv2d_relu": {"_conv2d_kernel": ["y_ptr"]},
    "conv2d_relu_backward": {
        "_conv2d_kernel": ["y_ptr"],
        "_conv2d_weight_bwd_kernel": ["parts_ptr"],
        "_conv2d_sum_kernel": ["dw_ptr", "db_ptr"],
    },
    "local_response_norm": {"local_response_norm_fwd_kernel": ["y_ptr"]},
    "local_response_norm_backward": {"local_response_norm_bwd_kernel": ["dx_ptr"]},
    "max_pool2d": {"max_pool2d_fwd_kernel": ["y_ptr", "places_ptr"]},
    "max_pool2d_backward": {"max_pool2d_bwd_kernel": ["dx_ptr"]},
    "local_response_norm_max_pool2d": {"response_pool_fwd_kernel": ["y_ptr", "places_ptr"]},
    "local_response_norm_max_pool2d_backward": {"response_pool_bwd_kernel": ["dx_ptr"]},
    "dropout": {"_dropout_fwd_kernel": ["y_ptr"]},
    "dropout_backward": {"_dropout_bwd_kernel": ["dx_ptr"]},
    "momentum_sgd_": {"_momentum_sgd_kernel": ["w_ptr", "v_ptr", "c_ptr"]},
    "images": {"_images_kernel": ["y_ptr"]},
}


@pytest.fixture(scope="module")
def found():
    script = Path(__file__).with_name("graph_of_ops.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(script.parents[2])
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_op_is_left_out(found):
    assert found["traced"].keys() == EXPECTED.keys()


@pytest.mark.parametrize("op", EXPECTED)
def test_an_op_is_its_kernels(op, found):
    assert dict(found["traced"][op]).keys() == EXPECTED[op].keys()
    for kernel, written in found["traced"][op]:
        assert written == EXPECTED[op][kernel]


@pytest.mark.parametrize("op", EXPECTED)
def test_an_edited_kernel_is_compiled_anew(op, found):
    """Its text is part of torch's key, which it is only if it stands before its op."""
    assert EXPECTED[op].keys() <= set(found["scanned"][op])

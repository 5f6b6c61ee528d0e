"""What `import fastalex` gives, and what it must not drag in."""

import subprocess
import sys

import torch

import fastalex

HEAVY = [
    "nvidia.dali",
    "PIL",
    "simplejpeg",
    "tyro",
    "tqdm",
    "tensorboard",
    "matplotlib",
    "safetensors",
    "sklearn",
]


def test_exports():
    assert fastalex.__all__ == [
        "AlexNet",
        "FusedSequential",
        "__version__",
        "accelerate",
        "kernels",
    ]
    assert issubclass(fastalex.AlexNet, torch.nn.Module)
    assert issubclass(fastalex.FusedSequential, torch.nn.Sequential)
    assert callable(fastalex.accelerate)
    assert fastalex.kernels.__all__ == [
        "Report",
        "conv2d_relu",
        "images",
        "keyed_dropout",
        "local_response_norm",
        "local_response_norm_max_pool2d",
        "max_pool2d",
        "momentum_sgd_",
        "relu_dropout",
        "report",
        "use",
    ]


def test_import_needs_torch_triton_and_numpy_only():
    """Beyond what these bring themselves (tqdm, where it is installed)."""
    script = f"""
import sys, torch, triton
torch_brings = set(sys.modules)
import fastalex
fastalex.AlexNet(width=0.01)
print(*[m for m in {HEAVY} if m in sys.modules and m not in torch_brings])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_import_works_without_triton():
    """As on a Mac."""
    script = (
        "import sys; sys.modules['triton'] = None; import fastalex; fastalex.AlexNet(width=.01)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""fastalex: AlexNet (Krizhevsky, Sutskever, Hinton 2012) for PyTorch.

`AlexNet`, `FusedSequential`, `accelerate` and `kernels` are what other projects import. They are
loaded when first asked for, so that what needs no network, such as the workers of fastalex-prepare,
does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fastalex.version import __version__

if TYPE_CHECKING:
    from fastalex import kernels
    from fastalex.model import AlexNet, FusedSequential, accelerate

__all__ = ["AlexNet", "FusedSequential", "__version__", "accelerate", "kernels"]


def __getattr__(name: str) -> Any:
    if name in ("AlexNet", "FusedSequential", "accelerate"):
        return getattr(importlib.import_module("fastalex.model"), name)
    if name == "kernels":
        return importlib.import_module("fastalex.kernels")
    raise AttributeError(f"module 'fastalex' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__file__", "__name__", "__path__"]

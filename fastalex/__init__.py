"""fastalex: AlexNet (Krizhevsky, Sutskever, Hinton 2012) for PyTorch."""

from fastalex import kernels
from fastalex.model import AlexNet

__version__ = "0.1.0"

__all__ = ["AlexNet", "__version__", "kernels"]

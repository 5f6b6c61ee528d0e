"""fastalex: AlexNet (Krizhevsky, Sutskever, Hinton 2012) for PyTorch."""

__version__ = "0.1.0"

"""Kernels with the faults that bench/compile_kernels.py is there to find."""

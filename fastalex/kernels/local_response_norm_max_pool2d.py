"""Local response normalization, then overlapping max-pooling (Krizhevsky et al. 2012, section 3).

    y = max_pool2d(local_response_norm(x))        the formulas stand in these two ops' own files

Shapes  x: (B, C, H, W) -> y: (B, C, H', W').
"""

import torch

from fastalex.kernels.local_response_norm import local_response_norm
from fastalex.kernels.max_pool2d import max_pool2d


def local_response_norm_max_pool2d(
    input: torch.Tensor,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None,
    *,
    groups: int = 1,
) -> torch.Tensor:
    """`max_pool2d(local_response_norm(input, size, alpha, beta, k), kernel_size, stride)`.

    Args:
        input: (B, C, H, W); float16, bfloat16, float32 or float64.
        size, alpha, beta, k, groups: as in `local_response_norm`.
        kernel_size, stride: as in `max_pool2d`; without padding.
    Returns: (B, C, H', W'), in dtype and layout of `input`.
    Raises: what the two ops raise. A 3-D `input` means what each of the two takes it for: channels
        stand second for the normalization, first for the pool.
    """
    normalized = local_response_norm(input, size, alpha, beta, k, groups=groups)
    return max_pool2d(normalized, kernel_size, stride)

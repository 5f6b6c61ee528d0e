"""The ops: convolution + ReLU, local response normalization by groups, max-pooling.

For anyone, with any network: nothing here knows AlexNet. Each op has the name, arguments, defaults
and semantics of the torch function it stands for, or of the torch functions it joins, in order.
All of them compute with ATen, on any device, and work under autograd, autocast and torch.compile.
"""

from fastalex.kernels.conv2d_relu import conv2d_relu
from fastalex.kernels.local_response_norm import local_response_norm
from fastalex.kernels.local_response_norm_max_pool2d import local_response_norm_max_pool2d
from fastalex.kernels.max_pool2d import max_pool2d

__all__ = ["conv2d_relu", "local_response_norm", "local_response_norm_max_pool2d", "max_pool2d"]

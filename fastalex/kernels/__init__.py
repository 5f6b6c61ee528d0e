"""The ops: convolution + ReLU, local response normalization by groups, max-pooling, and more.

For anyone, with any network: nothing here knows AlexNet. Each op has the name, arguments, defaults
and semantics of the torch function it stands for, or of the torch functions it joins, in order.
On a GPU they run as Triton kernels or torch's own, whichever was measured to be quicker (`use`,
`report`); on a CPU they compute with ATen. All work under autograd, autocast and torch.compile.
"""

from fastalex.kernels._choice import Report, report
from fastalex.kernels._launch import use
from fastalex.kernels.conv2d_relu import conv2d_relu
from fastalex.kernels.images import images
from fastalex.kernels.keyed_dropout import keyed_dropout
from fastalex.kernels.local_response_norm import local_response_norm
from fastalex.kernels.local_response_norm_max_pool2d import local_response_norm_max_pool2d
from fastalex.kernels.max_pool2d import max_pool2d
from fastalex.kernels.relu_dropout import relu_dropout
from fastalex.kernels.sgd import momentum_sgd_

__all__ = [
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

"""bfloat16 working weights: what the network computes with, beside the float32 weights it learns.

For `fastalex.train.parallel`. Under autocast each step casts every weight to bfloat16 and every
gradient back. Here convolutions and linear layers hold bfloat16 parameters, their gradients come
in bfloat16, and the optimizer, which keeps the float32 masters, writes the next step's working
weights in the same pass (`fastalex.kernels.momentum_sgd_`, `copies`): the same numbers, fewer
passes over the weights. Batch norm stays in float32, as under autocast.
"""

from torch import Tensor, nn


def halve(model: nn.Module) -> dict[nn.Parameter, Tensor]:
    """Round the convolutions' and linear layers' parameters to bfloat16, in place.

    Returns: by parameter, its master: the float32 values before, in the same layout.
    """
    masters = {
        parameter: parameter.detach()
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
        for parameter in layer.parameters(recurse=False)
    }
    for parameter, master in masters.items():
        parameter.data = master.bfloat16()
    return masters

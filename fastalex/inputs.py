"""What numbers a network expects at its input.

A fact of the network (its variant states it) that the data pipeline must meet; it stands here,
below both, because `fastalex.model` and `fastalex.data` do not know each other.
"""

from dataclasses import dataclass
from typing import Literal

STORED_SIDE = 256
"""Side of the square images that a prepared dataset stores, in pixels (paper, section 2)."""

Mean = Literal["image", "center", "channel"]
"""What is subtracted from a window of the 256 x 256 image:

`image`    the training set's mean image, at the same window (the paper; Caffe);
`center`   the mean image's centre window, wherever the window is (the 2012 code, cuda-convnet2);
`channel`  the mean colour (torchvision).
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputFormat:
    """Images as a network wants them: (B, 3, size, size), (pixel - mean) / std, pixel 0..255."""

    size: int = 224
    """Side of the square window, in pixels."""
    mean: Mean = "image"
    std: float = 1.0
    """Divides the mean-free pixels; 1 keeps the paper's 0..255 scale."""
    color: Literal["RGB", "BGR"] = "RGB"

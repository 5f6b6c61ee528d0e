"""How a convolution's work is cut into tiles: which tilings are tried, and the shape of a tile.

For the matrix kernels beside this file. A tile covers `m` output pixels (or, in the weight
gradient, `m` columns) and `n` channels and takes `k` products at a step. Its pixels are a box of
(images, rows, columns), each a power of two: with a pixel of many images, the usual box in
training, every pixel of a tile lies the same way to the border, and 13 columns waste nothing.
"""

import re
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastalex.kernels._triton import triton

INTERPRETERS_MULTIPROCESSORS = 4
INTERPRETERS_SHARED = 99 * 1024


class Tile(NamedTuple):
    form: str
    m: int
    n: int
    k: int

    @property
    def name(self) -> str:
        return f"{self.form} {self.m}x{self.n}x{self.k}"

    def warps(self, masked: bool = False) -> int:
        """Four where that leaves a thread registers enough for its share of sums and mask."""
        return 8 if masked or self.m * self.n >= 128 * 128 or self.m == 256 else 4

    def stages(self, x: Tensor, masked: int = 0, tail: int = 0) -> int:
        """Steps in flight: as many as fit, up to three, with which two programs share a Hopper
        multiprocessor, or to four where steps are short or registers leave room for one program.

        `masked`: a side of the tile whose operand comes with a mask of its own size, or 0.
        `tail`: products that a step takes besides, in a second, smaller pair of operands.
        """
        products = self.k + tail
        step = ((self.m + self.n) * products + masked * self.k) * x.element_size()
        most = 4 if self.m * self.n > 128 * 128 or self.k < 64 else 3
        return max(2, min(most, _shared(x) // step))


def named(candidate: str) -> Tile:
    """The tile that a candidate's name spells: "tma 128x64x32"."""
    found = re.fullmatch(r"(triton|tma) (\d+)x(\d+)x(\d+)", candidate)
    assert found, candidate
    form, *sides = found.groups()
    return Tile(form, *map(int, sides))


class Box(NamedTuple):
    """Images, rows and columns of a tile, and how many such boxes cover the maps."""

    images: int
    rows: int
    columns: int
    count: int


def box(images: int, rows: int, columns: int, size: int) -> Box:
    """The box of `size` pixels that covers the maps with the fewest; of equals, most images."""
    depth, height, width = _sides(known(images), known(rows), known(columns), size)
    count = _cdiv(images, depth) * _cdiv(rows, height) * _cdiv(columns, width)
    return Box(depth, height, width, count)


@lru_cache(maxsize=1024)
def _sides(images: int, rows: int, columns: int, size: int) -> tuple[int, int, int]:
    found = []
    width = 1
    while width <= size:
        height = 1
        while width * height <= size:
            depth = size // (width * height)
            count = _cdiv(images, depth) * _cdiv(rows, height) * _cdiv(columns, width)
            found.append((count, -depth, height, width))
            height *= 2
        width *= 2
    _, depth, height, width = min(found)
    return -depth, height, width


def known(size: int) -> int:
    """A size that torch.compile leaves open: the one it met first. Only speed depends on it."""
    return size if isinstance(size, int) else size.node.hint or 1


def splits(x: Tensor, tiles: int, steps: int) -> tuple[int, int]:
    """(parts, steps in each) of a sum of `steps`, for about two waves of programs in all."""
    parts = max(1, min(known(steps), 2 * _multiprocessors(x) // tiles))
    parts = _cdiv(known(steps), _cdiv(known(steps), parts))
    return parts, _cdiv(steps, parts)


def has_descriptors(*operands: Tensor) -> bool:
    """Descriptors are hardware's (Hopper and later), or the interpreter's; they want 16 bytes."""
    if not all(map(_is_aligned, operands)):
        return False
    device = operands[0].device
    if device.type != "cuda":
        return True
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


def _is_aligned(x: Tensor) -> bool:
    """To 16 bytes, as far as is known: a traced tensor has an offset, but no address."""
    if x.storage_offset() * x.element_size() % 16:
        return False
    return type(x) not in (Tensor, torch.nn.Parameter) or x.data_ptr() % 16 == 0


def _products_from_registers(x: Tensor) -> bool:
    """NVIDIA's matrix units but for those of Hopper and the large Blackwells."""
    if not x.is_cuda or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(x.device)[0] not in (9, 10)


def _multiprocessors(x: Tensor) -> int:
    if not x.is_cuda:
        return INTERPRETERS_MULTIPROCESSORS
    return torch.cuda.get_device_properties(x.device).multi_processor_count


def _shared(x: Tensor) -> int:
    if not x.is_cuda:
        return INTERPRETERS_SHARED
    properties = torch.cuda.get_device_properties(x.device)
    if torch.version.hip is not None:
        return properties.shared_memory_per_block
    return properties.shared_memory_per_block_optin


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def tilings(columns: int, sums: int, x: Tensor, precision: str) -> tuple[str, ...]:
    """Tiles worth trying for pixels x `columns`, each a sum of `sums` products; the default first.

    Few: each costs a new user seconds of compilation. Without matrix units wide tiles would spill,
    and where these take their operands from registers, steps of 64 products.
    """
    k = _power_of_2(sums, 16, 32 if _products_from_registers(x) else 64)
    if x.dtype == torch.float32:
        m = 64 if precision == "ieee" else 128
        return (f"triton {m}x{_power_of_2(columns, 16, m)}x{min(k, 32)}",)
    n = _power_of_2(columns, 16, 128)
    second = () if n < 128 else (f"triton 128x64x{k}",) if columns > 96 else (f"triton 256x32x{k}",)
    return (f"triton 128x{n}x{k}", *second)


def box_tilings(images: int, columns: int, block: int, dtype: torch.dtype) -> tuple[str, ...]:
    """The same for boxes of images brought by descriptors, `block` products at a step."""
    if dtype == torch.float32 or known(images) < 96:
        return ()
    n = _power_of_2(columns, 16, 128)
    if columns % 256 == 0:
        return (f"tma 128x128x{block}", f"tma 128x256x{block}")
    if columns % n == 0 or n < 64:
        return (f"tma 128x{n}x{block}",)
    return (f"tma 128x{n}x{block}", f"tma 128x{64 if columns % 64 == 0 else 32}x{block}")


def weight_box_tilings(
    images: int, channels: int, columns: int, dtype: torch.dtype
) -> tuple[str, ...]:
    """The same for the weight gradient: channels of a tap x `columns`, 64 images at a step."""
    if dtype == torch.float32 or known(images) < 48:
        return ()
    m = 128 if channels % 128 == 0 else 64
    n = _power_of_2(columns, 16, 128)
    if m == 128 and columns % 256 == 0:
        return (f"tma 128x{n}x64", "tma 128x256x64")
    return (f"tma {m}x{n}x64",)


def channel_block(channels: int) -> int:
    """Channels in a step's box: a tap's are such boxes, or one and a smaller one. 0 if neither."""
    for block in (64, 32, 16):
        rest = channels % block
        if channels >= block and (rest == 0 or (channels < 2 * block and rest in (16, 32))):
            return block
    return 0


def _power_of_2(n: int, low: int, high: int) -> int:
    """The least power of two not below `n`, within bounds."""
    return min(max(triton.next_power_of_2(n), low), high)

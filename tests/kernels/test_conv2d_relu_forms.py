"""Every candidate of every pass: the tilings by pointers and by descriptors."""

import pytest
import torch
import torch.nn.functional as F

from fastalex.kernels import _conv2d_ops  # noqa: F401 - registers the ops
from fastalex.kernels._conv2d_kernels import Window
from fastalex.kernels._conv2d_passes import candidates
from fastalex.kernels._conv2d_tiling import Tile, box, channel_block, named, splits

PASSES = {
    "forward": [],
    "input gradient": [True, False, False],
    "weight gradient": [False, True, True],
}
CASES = {  # x, weight, padding, groups; enough images for boxes of them
    "48_channels_in_groups": ((100, 96, 3, 2), (32, 48, 3, 3), (1, 1), 2),
    "48_channels_wide": ((130, 48, 1, 2), (40, 48, 1, 5), (0, 2), 1),
    "96_channels": ((96, 96, 1, 2), (96, 96, 1, 2), (0, 1), 1),
    "192_channels": ((97, 192, 2, 1), (32, 192, 3, 1), (1, 0), 1),
    "256_channels": ((96, 256, 1, 2), (256, 256, 1, 1), (0, 0), 1),
    "16_channels_in_3_groups": ((128, 48, 3, 2), (72, 16, 2, 3), (0, 1), 3),
    "one_pixel": ((128, 64, 1, 1), (16, 64, 1, 1), (0, 0), 1),
    "more_padding_than_kernel": ((128, 64, 1, 1), (16, 64, 1, 1), (1, 2), 1),
    "few_images": ((3, 24, 3, 5), (130, 24, 3, 2), (1, 1), 1),
}
INF = float("inf")


def window(w, padding):
    return Window(tuple(w.shape[2:]), (1, 1), padding, (1, 1))


def run(direction, x, w, b, dy, y, padding, groups, name):
    """The tensors that a pass computes."""
    arguments = ([1, 1], list(padding), [1, 1], groups)
    if direction == "forward":
        return [torch.ops.fastalex.conv2d_relu(x, w, b, *arguments, name)]
    mask = PASSES[direction]
    found = torch.ops.fastalex.conv2d_relu_backward(dy, y, x, w, *arguments, mask, name)
    assert all(t.numel() == 0 for t, asked in zip(found, mask, strict=True) if not asked)
    return [t for t, asked in zip(found, mask, strict=True) if asked]


def expected(direction, x, w, b, dy, padding, groups):
    leaves = [t.detach().cpu().double().requires_grad_() for t in (x, w, b)]
    y = F.relu(F.conv2d(*leaves, 1, padding, 1, groups))
    if direction == "forward":
        return [y.detach()]
    wanted = [t for t, asked in zip(leaves, PASSES[direction], strict=True) if asked]
    return list(torch.autograd.grad(y, wanted, dy.cpu().double()))


def operands(case, device, dtype):
    shape, weight, padding, groups = CASES[case]
    x, w, b = (torch.randn(s).to(device, dtype) for s in (shape, weight, weight[:1]))
    y = F.relu(F.conv2d(x.double(), w.double(), b.double(), 1, padding, 1, groups)).to(dtype)
    return x, w, b, torch.randn_like(y), y, padding, groups


@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("case", CASES)
def test_every_candidate(case, direction, device):
    """In float16, which the interpreter sums in float32, too; one case twice, to the bit."""
    x, w, b, dy, y, padding, groups = operands(case, device, torch.float16)
    exact = expected(direction, x, w, b, dy, padding, groups)
    names = candidates(x, w, window(w, padding), groups, direction)[1:]
    summed = w.shape[0] // groups if direction == "input gradient" else w.shape[1]
    by_boxes = len(x) > 95 and (direction == "weight gradient" or channel_block(summed) > 0)
    assert any(name.startswith("tma") for name in names) == by_boxes
    for name in names:
        got = run(direction, x, w, b, dy, y, padding, groups, name)
        for one, two in zip(exact, got, strict=True):
            assert two.isfinite().all(), name
            error = (two.cpu().double() - one).abs().max()
            assert error <= torch.finfo(torch.float16).eps * one.abs().max(), (name, error)
        if case == "16_channels_in_3_groups":
            again = run(direction, x, w, b, dy, y, padding, groups, name)
            assert all(map(torch.equal, got, again)), name


@pytest.mark.parametrize("direction", PASSES)
def test_infinity_stays_in_its_group_and_pixel(direction, device):
    """Boxes hold no channel of a neighbour: an infinity beside one makes no NaN of its zeros."""
    x, w, b, dy, y, padding, groups = operands("48_channels_in_groups", device, torch.float16)
    x[3, 48:, 1, 1] = dy[5, 16:, 1, 0] = INF
    exact = expected(direction, x, w, b, dy, padding, groups)
    for name in candidates(x, w, window(w, padding), groups, direction)[1:]:
        got = run(direction, x, w, b, dy, y, padding, groups, name)
        for one, two in zip(exact, got, strict=True):
            first = one.chunk(2, dim=1 if direction != "weight gradient" else 0)[0]
            firsts = two.chunk(2, dim=1 if direction != "weight gradient" else 0)[0]
            assert firsts.isfinite().all(), name
            torch.testing.assert_close(firsts.cpu().double(), first, rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize("storage_offset", [1, 8])
def test_descriptors_want_16_bytes(storage_offset, device):
    x = torch.randn(100 * 64 + 8, device=device).half()
    x = x.as_strided((100, 64, 1, 1), (64, 1, 64, 64), storage_offset)
    w = torch.randn(16, 64, 1, 1, device=device).half()
    names = candidates(x, w, window(w, (0, 0)), 1, "forward")
    assert any(name.startswith("tma") for name in names) == (storage_offset == 8)


def test_descriptors_want_16_bytes_of_the_gradient_too():
    """The offset tells of a view; the address, of memory that came from elsewhere."""
    x, w = torch.randn(100, 64, 1, 1).half(), torch.randn(16, 64, 1, 1).half()
    memory = bytearray(100 * 16 * 2 + 32)
    base = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % 16

    def at(offset):
        """Offset 0 of the storage, `offset` bytes from an address that 16 divides."""
        flat = torch.frombuffer(memory, dtype=torch.float16, count=1600, offset=base + offset)
        assert flat.storage_offset() == 0
        return flat.view(100, 16, 1, 1)

    view = torch.randn(1601).half()[1:].view(100, 16, 1, 1)
    for direction in ("input gradient", "weight gradient"):
        for dy, aligned in ((at(0), True), (at(2), False), (view, False)):
            names = candidates(x, w, window(w, (0, 0)), 1, direction, dy)
            assert any(name.startswith("tma") for name in names) == aligned
            with torch._subclasses.FakeTensorMode() as fake:
                traced = [fake.from_tensor(t) for t in (x, w, dy)]
                names = candidates(*traced[:2], window(w, (0, 0)), 1, direction, traced[2])
            assert any(name.startswith("tma") for name in names) == (dy is not view)


@pytest.mark.parametrize("size", [16, 64, 128])
@pytest.mark.parametrize("maps", [(1, 13, 13), (128, 13, 13), (130, 2, 3), (7, 1, 200)], ids=str)
def test_boxes_cover_the_maps_with_the_fewest(maps, size):
    cut = box(*maps, size)
    sides = (cut.images, cut.rows, cut.columns)
    assert cut.images * cut.rows * cut.columns == size
    covered = [-(-n // side) * side for n, side in zip(maps, sides, strict=True)]
    assert cut.count * size == covered[0] * covered[1] * covered[2]
    if maps[0] % size == 0:
        assert cut.images == size


@pytest.mark.parametrize(("tiles", "steps"), [(1, 1), (6, 5000), (20, 3), (400, 100)])
def test_parts_cover_the_steps_and_none_is_empty(tiles, steps):
    parts, each = splits(torch.empty(0), tiles, steps)
    assert (parts - 1) * each < steps <= parts * each
    assert parts == 1 or parts * tiles <= 2 * 4


def test_channel_blocks():
    blocks = {channels: channel_block(channels) for channels in (3, 16, 24, 48, 64, 96, 192, 384)}
    assert blocks == {3: 0, 16: 16, 24: 0, 48: 32, 64: 64, 96: 64, 192: 64, 384: 64}


def test_a_candidates_name_spells_its_tile():
    assert named("tma 128x256x64") == Tile("tma", 128, 256, 64)
    assert named("tma 128x256x64").name == "tma 128x256x64"

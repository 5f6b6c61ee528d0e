"""images: plain torch in float64, the data pipeline's own numbers, torch's convolution."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastalex.inputs import InputFormat
from fastalex.kernels import use
from fastalex.kernels.images import _images, images

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(2, 7, 9, 3), (1, 1, 1, 3), (9, 8, 12, 3), (2, 2, 401, 3)]
LARGER = (4, 6)
"""By how much the mean image exceeds the images."""


def operands(shape, device):
    """Pixels, a mean image, lighting, corners, flips."""
    b, h, w, _ = shape
    x = torch.randint(0, 256, shape, dtype=torch.uint8)
    mean = 120 + 20 * torch.randn(h + LARGER[0], w + LARGER[1], 3)
    corner = torch.stack([torch.randint(0, 1 + most, (b,)) for most in LARGER], 1)
    flip = torch.arange(b) % 2 == 1
    return [t.to(device) for t in (x, mean, 3 * torch.randn(b, 3), corner, flip)]


def by_hand(x, means, lighting=None, flip=None, std=1.0, s=1, padding=(0, 0)):
    """Float64; `means` is of x's shape or broadcasts to it."""
    y = x.double() - means.double()
    if flip is not None:
        y = torch.stack([one.flip(1) if mirrored else one for one, mirrored in zip(y, flip)])  # noqa: B905
    y = (y if lighting is None else y + lighting.double()[:, None, None]) / std
    y = y.permute(0, 3, 1, 2)
    y = F.pad(y, 2 * padding)
    y = F.pad(y, (0, -y.shape[3] % s, 0, -y.shape[2] % s))
    blocks = [y[:, :, i::s, j::s] for i in range(s) for j in range(s)]
    return torch.cat(blocks, 1)


def windows(mean, corner, shape):
    _, h, w, _ = shape
    return torch.stack([mean[t : t + h, c : c + w] for t, c in corner.tolist()])


def check(got, exact, dtype):
    assert got.dtype == dtype
    assert got.shape == exact.shape
    assert got.is_contiguous(memory_format=torch.channels_last)
    rounded = exact.to(dtype).double()
    floor = torch.finfo(dtype).eps * exact.abs().max() + 4 * torch.finfo(torch.float32).eps * 255
    assert (got.double() - exact).abs().max() <= 2 * (rounded - exact).abs().max() + floor


@pytest.fixture(params=["triton", "auto"], autouse=True)
def mode(request):
    with use(request.param):
        yield request.param


@pytest.mark.parametrize("s", [1, 2, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mean_image_at_each_window(shape, dtype, s, device):
    x, mean, lighting, corner, flip = operands(shape, device)
    options = {"dtype": dtype, "space_to_depth": s}
    got = images(x, mean, lighting, corner=corner, flip=flip, std=1.7, **options)
    check(got, by_hand(x, windows(mean, corner, shape), lighting, flip, 1.7, s), dtype)


@pytest.mark.parametrize("s", [1, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mean_image_at_its_centre_and_mean_colour(shape, s, device):
    x, mean, lighting, *_ = operands(shape, device)
    center = mean[2 : 2 + shape[1], 3 : 3 + shape[2]]
    options = {"space_to_depth": s}
    check(images(x, mean, **options), by_hand(x, center, s=s), torch.float32)
    same_size = images(x, center, lighting, **options)
    check(same_size, by_hand(x, center, lighting, s=s), torch.float32)
    color = mean[0, 0]
    check(images(x, color, lighting, **options), by_hand(x, color, lighting, s=s), torch.float32)


def test_integers_are_exact(device):
    """Row offset, column offset, colour: the order of the channels, element by element."""
    x = torch.arange(2 * 6 * 5 * 3, device=device).reshape(2, 6, 5, 3).to(torch.uint8)
    y = images(x, torch.zeros(3, device=device), dtype=torch.bfloat16, space_to_depth=4)
    assert y.shape == (2, 48, 2, 2)
    for i, j, c in ((0, 0, 0), (0, 1, 2), (1, 0, 1), (3, 0, 0), (1, 3, 2)):
        assert y[1, (i * 4 + j) * 3 + c, 0, 0] == x[1, i, j, c]
    assert y[0, (1 * 4 + 0) * 3 + 2, 1, 1] == x[0, 5, 4, 2]
    beyond = [(i * 4 + j) * 3 + c for i in range(4) for j in range(4) for c in range(3) if j > 0]
    assert (y[:, beyond, :, 1] == 0).all()


def test_space_to_depth_turns_a_strided_convolution_into_a_dense_one(device):
    x = torch.randint(0, 256, (2, 23, 27, 3), dtype=torch.uint8, device=device)
    mean, w = torch.full((3,), 120.0, device=device), torch.randn(5, 3, 11, 11, device=device)
    expected = F.conv2d(images(x, mean), w, stride=4)
    folded = F.pad(w, (0, 1, 0, 1)).reshape(5, 3, 3, 4, 3, 4).permute(0, 3, 5, 1, 2, 4)
    got = F.conv2d(images(x, mean, space_to_depth=4), folded.reshape(5, 48, 3, 3))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(("s", "padding"), [(4, (2, 2)), (4, (0, 3)), (1, (1, 2)), (3, (4, 0))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2]], ids=str)
def test_padding_into_memory_that_is_there(shape, dtype, s, padding, device):
    x, mean, lighting, corner, flip = operands(shape, device)
    expected = by_hand(x, windows(mean, corner, shape), lighting, flip, 1.7, s, padding)
    operand = {"corner": corner, "flip": flip, "std": 1.7, "space_to_depth": s, "padding": padding}
    got = images(x, mean, lighting, **operand, dtype=dtype)
    check(got, expected, dtype)
    out = torch.full_like(got, torch.nan)
    assert images(x, mean, lighting, **operand, out=out) is out
    assert torch.equal(out, got)


def test_padding_is_that_of_the_convolution(device):
    x = torch.randint(0, 256, (2, 24, 28, 3), dtype=torch.uint8, device=device)
    mean, w = torch.full((3,), 120.0, device=device), torch.randn(5, 3, 11, 11, device=device)
    expected = F.conv2d(images(x, mean), w, stride=4, padding=2)
    folded = F.pad(w, (0, 1, 0, 1)).reshape(5, 3, 3, 4, 3, 4).permute(0, 3, 5, 1, 2, 4)
    got = F.conv2d(images(x, mean, space_to_depth=4, padding=(2, 2)), folded.reshape(5, 48, 3, 3))
    got = got[:, :, : expected.shape[2], : expected.shape[3]]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-2)


def test_layouts_and_dtypes_of_the_operands(device):
    x, mean, lighting, corner, flip = operands((2, 6, 7, 3), device)
    expected = images(x, mean, lighting, corner=corner, flip=flip)
    planar = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    got = images(
        planar,
        mean.double().transpose(0, 1).contiguous().transpose(0, 1),
        lighting.T.contiguous().T.double(),
        corner=corner.int(),
        flip=flip.int(),
    )
    assert torch.equal(got, expected)
    again = images(x, mean, lighting, corner=corner, flip=flip)
    assert torch.equal(again, expected)


def test_an_image_beyond_the_mean_is_nan(device):
    x, mean, *_ = operands((9, 4, 5, 3), device)
    corners = [[0, 0], [-1, 0], [0, -1], [LARGER[0] + 1, 0], [0, LARGER[1] + 1]]
    corners += [[2**31 - 1, 0], [0, 2**31 - 3], [2**32, 0], list(LARGER)]
    missing = images(x, mean, corner=torch.tensor(corners, device=device)).isnan()
    for i, expected in enumerate((False, *[True] * 7, False)):
        assert (missing[i] == expected).all(), i


def test_float64_and_no_images(device):
    x, mean, lighting, *_ = operands((2, 4, 5, 3), device)
    got = images(x, mean, lighting, dtype=torch.float64)
    assert torch.equal(got, images(x, mean, lighting).double())
    assert images(x[:0], mean, space_to_depth=4).shape == (0, 48, 1, 2)


FORMATS = {
    "image": InputFormat(size=48),
    "center": InputFormat(size=48, mean="center", color="BGR"),
    "channel": InputFormat(size=48, mean="channel", std=58.0),
}


@pytest.mark.parametrize("mode", ["triton"], indirect=True)
@pytest.mark.parametrize("kind", FORMATS)
def test_the_data_pipelines_numbers(kind, prepared: Path, device):
    """DALI's batch from the very pixels it decoded: with a mean of nothing it hands them over."""
    from fastalex.data import Dataset
    from fastalex.data._requests import mean_plane, train_requests
    from fastalex.data.pipeline import train_batches

    dataset, format = Dataset.open(prepared), FORMATS[kind]
    how = {"batch_size": 8, "seed": 5}
    (batch,) = islice(train_batches(dataset, format, device="cpu", **how), 1)
    requests = train_requests(
        dataset, format, **how, epoch=0, step=0, lighting=lambda epoch: 0.1,
        lighting_shrink=False, flip=True, rank=0, world_size=1,
    )  # fmt: skip
    request = next(requests)
    pixels = np.stack([_decode(dataset, *at) for at in zip(request.ids, request.corner)])  # noqa: B905
    if format.color == "BGR":
        pixels = pixels[..., ::-1]
    mean, lighting = torch.from_numpy(mean_plane(dataset, format)), -request.offset
    if kind == "channel":  # offset is mean less lighting
        mean = torch.from_numpy(dataset.mean_image.mean((0, 1), dtype=np.float64)).float()
        lighting = mean.numpy() - request.offset
    corner = torch.from_numpy(request.corner).to(device) if kind == "image" else None
    got = images(
        torch.from_numpy(np.ascontiguousarray(pixels)).to(device), mean.to(device),
        torch.from_numpy(lighting).to(device), corner=corner,
        flip=torch.from_numpy(request.flip).to(device), std=format.std,
    )  # fmt: skip
    assert request.flip.any()
    # to the bit, but for the mean colour less the lighting, which DALI is given as one number
    atol = 1e-6 if kind == "channel" else 0
    torch.testing.assert_close(got.cpu(), batch.images, rtol=0, atol=atol)


def _decode(dataset, image_id, corner):
    import simplejpeg

    image = simplejpeg.decode_jpeg(dataset.train.read(int(image_id)))
    top, left = corner
    return image[top : top + 48, left : left + 48]


def test_refuses(device):
    x, mean, lighting, corner, flip = operands((2, 4, 5, 3), device)
    with pytest.raises(TypeError, match=r"`input` must be uint8 .* torch\.float32"):
        images(x.float(), mean)
    with pytest.raises(TypeError, match="floating point"):
        images(x, mean, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"\(B, H, W, 3\), got \(2, 3, 4, 5\)"):
        images(x.permute(0, 3, 1, 2), mean)
    with pytest.raises(ValueError, match=r"`mean` must be .* H' >= 4 and W' >= 5, got \(3, 5, 3\)"):
        images(x, mean[:3, :5])
    for name, value in (("lighting", lighting[:1]), ("corner", corner[:, :1]), ("flip", flip[:1])):
        with pytest.raises(ValueError, match=f"`{name}` must be of shape"):
            images(x, mean, **{name: value})
    with pytest.raises(ValueError, match="`std` must be above 0"):
        images(x, mean, std=0.0)
    for wrong in ({"padding": 2}, {"padding": (1.0, 2)}, {"space_to_depth": 2.0}):
        with pytest.raises(TypeError, match="`padding` a pair of them"):
            images(x, mean, **wrong)
    with pytest.raises(ValueError, match="`padding` not negative"):
        images(x, mean, padding=(0, -1))
    for out in (torch.empty(2, 3, 4, 5), torch.empty(2, 4, 6, 3).permute(0, 3, 1, 2)):
        with pytest.raises(ValueError, match=r"`out` must be \(2, 3, 4, 5\) in channels_last"):
            images(x, mean, out=out.to(device))
    with pytest.raises(ValueError, match="one device"):
        images(x, mean.to("meta"))


@pytest.mark.parametrize("mode", ["auto"], indirect=True)
@pytest.mark.parametrize("s", [1, 4])
def test_opcheck_and_compile(s, device):
    x, mean, lighting, corner, flip = operands((2, 5, 6, 3), device)
    for given in ((x, mean, lighting, corner, flip), (x, mean[0, 0], None, None, None)):
        arguments = (*given, 2.0, torch.bfloat16, s, [2, 1], "auto")
        torch.library.opcheck(_images, arguments)
        torch.compiler.reset()
        compiled = torch.compile(
            lambda *arguments: _images(*arguments), fullgraph=True, backend="aot_eager"
        )
        assert torch.equal(compiled(*arguments), _images(*arguments))

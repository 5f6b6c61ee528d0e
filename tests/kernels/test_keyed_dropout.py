"""keyed_dropout: Philox's mask by place, the same however rows and units are cut, in every form."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastalex.kernels import _dropout, keyed_dropout, use
from fastalex.kernels._dropout import _philox

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SEED, STEP = 0x1234_5678_9ABC_DEF0, 5


def philox4x32(counter, key, rounds):
    """Salmon et al. 2011, figure 3, on Python's integers."""
    low = 2**32 - 1
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(rounds):
        by_c0, by_c2 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = by_c2 >> 32 ^ c1 ^ k0, by_c2 & low, by_c0 >> 32 ^ c3 ^ k1, by_c0 & low
        k0, k1 = k0 + 0x9E3779B9 & low, k1 + 0xBB67AE85 & low
    return [c0, c1, c2, c3]


def by_the_definition(shape, p, seed, step, layer, first_row, first_unit):
    low, rows, units = 2**32 - 1, *shape
    key = seed & low, seed >> 32 & low

    def word(row, unit):
        return philox4x32((row // 4, unit, step & low, layer), key, 7)[row % 4]

    return torch.tensor([
        [word(first_row + r, first_unit + u) >= p * 2**32 for u in range(units)]
        for r in range(rows)
    ])  # fmt: skip


def key_on(device, seed=SEED, step=STEP):
    return torch.tensor([seed, step], device=device)


def mask(shape, p, device, seed=SEED, step=STEP, **place):
    """What survives."""
    ones = torch.ones(shape, device=device)
    return keyed_dropout(ones, key_on(device, seed, step), p, inverted=False, **place) == 1


def both_ways(x, key, p=0.3, dy=None, **options):
    """Output, and the gradient for `dy`, else for ones."""
    leaf = x.detach().requires_grad_()
    y = keyed_dropout(leaf, key, p, **options)
    return y.detach(), torch.autograd.grad(y, leaf, torch.ones_like(y) if dy is None else dy)[0]


LOW = 0xFFFFFFFF
PI = 0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344
VECTORS = {  # Random123's kat_vectors: rounds, counter, key, words
    "7 zeros": (7, (0, 0, 0, 0), (0, 0), "5f6fb709 0d893f64 4f121f81 4f730a48"),
    "7 ones": (7, (LOW,) * 4, (LOW,) * 2, "5207ddc2 45165e59 4d8ee751 8c52f662"),
    "7 pi": (7, PI, (0xA4093822, 0x299F31D0), "4dfccaba 190a87f0 c47362ba b6b5242a"),
    "10 zeros": (10, (0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    "10 ones": (10, (LOW,) * 4, (LOW,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    "10 pi": (10, PI, (0xA4093822, 0x299F31D0), "d16cfe09 94fdcceb 5001e420 24126ea1"),
}


@pytest.mark.parametrize(("rounds", "counter", "key", "words"), VECTORS.values(), ids=VECTORS)
def test_its_authors_words(rounds, counter, key, words, monkeypatch):
    """By the reference of these tests, and by torch's integers."""
    monkeypatch.setattr(_dropout, "ROUNDS", rounds)
    expected = [int(word, 16) for word in words.split()]
    assert philox4x32(counter, key, rounds) == expected
    seed = key[0] | key[1] << 32
    as_int64 = seed - 2**64 if seed >= 2**63 else seed
    got = _philox([torch.tensor([c]) for c in counter], torch.tensor(as_int64))
    assert [int(word) for word in got] == expected


@pytest.mark.parametrize(
    ("seed", "step", "layer", "first_row", "first_unit", "p"),
    [
        (SEED, 0, 0, 0, 0, 0.5),
        (SEED, 2**32 + 7, 1, 6, 0, 0.1),
        (-3, 2**31 + 1, 2**31 - 1, 1, 4090, 0.7),
        (2**63 - 1, 3, 2, 2**31 - 3, 2**31 - 1, 0.999),
    ],
)
@pytest.mark.usefixtures("implementation")
def test_the_mask_is_as_defined(seed, step, layer, first_row, first_unit, p, device):
    place = {"layer": layer, "first_row": first_row, "first_unit": first_unit}
    expected = by_the_definition((9, 13), p, seed, step, layer, first_row, first_unit)
    assert torch.equal(mask((9, 13), p, device, seed, step, **place).cpu(), expected)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("relu", [True, False])
def test_a_part_is_a_slice_of_the_whole(relu, device):
    """Cut within a group of four rows and at its edge, within a block of units and at its edge."""
    x, key = torch.randn(11, 1100, device=device), key_on(device)
    dy = torch.randn_like(x)
    options = {"relu": relu, "layer": 1}
    whole = both_ways(x, key, dy=dy, **options)
    for first, behind in [(0, 3), (3, 8), (8, 11), (5, 6)]:
        for left, right in [(0, 1024), (1024, 1100), (7, 1093)]:
            cut = (slice(first, behind), slice(left, right))
            place = {"first_row": first, "first_unit": left}
            got = both_ways(x[cut], key, dy=dy[cut], **options, **place)
            assert torch.equal(got[0], whole[0][cut])
            assert torch.equal(got[1], whole[1][cut])


@pytest.mark.parametrize("inverted", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("mode", ["aten", "triton"])
def test_forward_and_gradient(mode, dtype, relu, inverted, device):
    """Products with the mask in float32 (float64), rounded once."""
    x, dy = (torch.randn(2, 6, 5, 7, device=device).to(dtype) for _ in range(2))
    wide = dtype if dtype == torch.float64 else torch.float32
    kept = by_the_definition((6, 35), 0.3, SEED, STEP, 2, 2, 3).view(6, 5, 7).to(device)
    factors = kept * torch.tensor(1 / 0.7 if inverted else 1.0, dtype=wide, device=device)
    place = {"layer": 2, "first_row": 2, "first_unit": 3}
    with use(mode):
        options = {"relu": relu, "inverted": inverted, **place}
        y, dx = both_ways(x[0], key_on(device), dy=dy[0], **options)
    assert y.dtype == dx.dtype == dtype
    cut = F.relu(x[0]) if relu else x[0]
    expected = torch.where((x[0] <= 0) & relu, 0, dy[0].to(wide) * factors)
    near = {"rtol": torch.finfo(dtype).eps, "atol": 0}
    torch.testing.assert_close(y, (cut.to(wide) * factors).to(dtype), **near)
    torch.testing.assert_close(dx, expected.to(dtype), **near)
    assert torch.equal(y == 0, ~kept | (cut == 0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_implementations_agree_to_the_bit(dtype, device):
    """Not only in the mask. Triton's interpreter cuts off where it should round to bfloat16."""
    if dtype == torch.bfloat16 and device.type == "cpu":
        pytest.skip("no rounding to bfloat16 in the interpreter")
    x, dy = (torch.randn(10, 1030, device=device).to(dtype) for _ in range(2))
    for relu in (True, False):
        found = []
        for mode in ("aten", "triton"):
            with use(mode):
                found.append(both_ways(x, key_on(device), dy=dy, relu=relu, first_row=3))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])


def test_statistics(device):
    """Mean; no correlation with the next unit, row or group, step, layer or seed: six sigma."""
    shape, p = (64, 2048), 0.3
    n, sigma = 64 * 2048, math.sqrt(0.3 * 0.7)
    kept = mask(shape, p, device).double() - (1 - p)
    assert abs(kept.mean()) < 6 * sigma / math.sqrt(n)
    others = {
        "unit": mask(shape, p, device, first_unit=1),
        "row": mask(shape, p, device, first_row=1),
        "group": mask(shape, p, device, first_row=4),
        "step": mask(shape, p, device, step=STEP + 1),
        "layer": mask(shape, p, device, layer=1),
        "seed": mask(shape, p, device, seed=SEED + 1),
        "upper seed": mask(shape, p, device, seed=SEED + 2**32),
    }
    for name, other in others.items():
        correlation = (kept * (other.double() - (1 - p))).mean() / sigma**2
        assert abs(correlation) < 6 / math.sqrt(n), name


@pytest.mark.usefixtures("implementation")
def test_units_are_numbered_by_rows_in_any_layout(laid_out, device):
    x = laid_out(torch.randn(5, 4, 6, 8, device=device)).detach()
    y, dx = both_ways(x, key_on(device), relu=True)
    expected = both_ways(x.contiguous().flatten(1), key_on(device), relu=True)
    assert torch.equal(y.flatten(1), expected[0])
    assert torch.equal(dx.flatten(1), expected[1])
    assert y.is_contiguous()
    dy = laid_out(torch.ones(5, 4, 6, 8, device=device))
    assert torch.equal(both_ways(x, key_on(device), dy=dy, relu=True)[1], dx)


@pytest.mark.usefixtures("implementation")
def test_rows_that_are_columns_in_memory(device):
    """As a weight's: dense, and yet not in the order of the units."""
    x = torch.randn(9, 6, device=device).t()
    y, dx = both_ways(x, key_on(device))
    expected = both_ways(x.contiguous(), key_on(device))
    assert torch.equal(y, expected[0])
    assert torch.equal(dx, expected[1])

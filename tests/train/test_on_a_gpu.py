"""What only a GPU can show of a training step: recorded, it does what it does unrecorded."""

from dataclasses import replace

import pytest
import torch

from fastalex import kernels
from fastalex.data.batch import Changes
from fastalex.train.build import build_model
from fastalex.train.recipes import recipe
from fastalex.train.recorded import WARM_UP
from fastalex.train.schedule import Rates
from fastalex.train.step import TrainStep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

STEPS = WARM_UP + 6


def batch(number):
    """Pixels, labels and changes on the GPU, made on the current stream."""
    generator = torch.Generator("cuda").manual_seed(number)
    pixels = torch.randint(
        0, 256, (16, 224, 224, 3), dtype=torch.uint8, device="cuda", generator=generator
    )
    changes = Changes(
        mean=torch.full((3,), 120.0, device="cuda"),
        lighting=torch.randn(16, 3, device="cuda", generator=generator),
        corner=None,
        flip=torch.arange(16, device="cuda", dtype=torch.int32) % 2,
        std=64.0,
    )
    return pixels, (torch.arange(16, device="cuda") + number) % 10, changes


def train(config, device, recorded):
    """Losses and weights, over changing images, rates and dropout."""
    with kernels.use("triton"):  # the same kernels on both sides
        step = TrainStep(build_model(config, 10).to(device), config, device)
        if not recorded:
            step._recorded = None
        losses = []
        for i in range(STEPS):
            with step.inputs.stream():
                step.inputs.put(*batch(i))
            losses.append(step.run(Rates(0.01 / (1 + i), 0.02, 0.01, 0.02), i)[0])
        graphs = len(step._recorded._graphs) if step._recorded else 0
        return torch.stack(losses).float(), step.weights(), graphs


@pytest.mark.parametrize("variant", ["paper", "torchvision", "batchnorm"])
def test_a_recorded_step_is_the_step(variant):
    device = torch.device("cuda", 0)
    config = replace(recipe("demo", "cuda"), width=0.25, variant=variant, precision="bf16")
    torch.compiler.reset()
    losses, weights, graphs = train(config, device, recorded=True)
    assert graphs == 2
    expected, plain, _ = train(config, device, recorded=False)
    torch.testing.assert_close(losses, expected, rtol=2e-2, atol=2e-2)
    assert len(set(losses.tolist())) == STEPS
    for name, value in plain.items():
        torch.testing.assert_close(weights[name].float(), value.float(), rtol=5e-2, atol=5e-3)


def test_plain_images_and_pixels_train_alike():
    """By torch's copy into blocks, and by the kernel that makes them."""
    device = torch.device("cuda", 0)
    config = replace(recipe("demo", "cuda"), width=0.25, precision="bf16", compile=False)
    by_pixels, by_images = (
        TrainStep(build_model(config, 10).to(device), config, device) for _ in range(2)
    )
    rates = Rates(0.01, 0.02, 0.01, 0.02)
    for i in range(3):
        pixels, labels, changes = batch(i)
        by_pixels.inputs.put(pixels, labels, changes)
        got, _ = by_pixels.run(rates, i)
        expected, _ = by_images(changes.of(pixels), labels, rates, i)
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)

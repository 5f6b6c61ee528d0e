"""Every stage of the pipeline, number by number, against Pillow and NumPy in float64."""

import dataclasses
import io
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from fastalex.data import Dataset
from fastalex.data.pipeline import Batch, eval_batches, train_batches
from fastalex.data.sampler import epoch_draws
from fastalex.data.shards import Split
from fastalex.inputs import InputFormat

SEED, EPOCH = 11, 3


def pixels(split: Split, image_id: int) -> np.ndarray:
    """(256, 256, 3) float64, RGB, decoded by Pillow."""
    return np.asarray(Image.open(io.BytesIO(split.read(image_id))), np.float64)


def expected_train(
    dataset: Dataset, format: InputFormat, image_id: int, lighting: float, shrink: bool, flip: bool
) -> np.ndarray:
    """(3, size, size) float64, one stage a line."""
    draws = epoch_draws(SEED, EPOCH, len(dataset.train), format.size)
    top, left, size = draws.top[image_id], draws.left[image_id], format.size
    centre = (256 - size) // 2
    x = pixels(dataset.train, image_id)[top : top + size, left : left + size]
    mean = dataset.mean_image.astype(np.float64)
    if format.mean == "image":
        x = x - mean[top : top + size, left : left + size]
    elif format.mean == "center":
        x = x - mean[centre : centre + size, centre : centre + size]
    else:
        x = x - mean.mean((0, 1))
    if flip and draws.flip[image_id]:
        x = x[:, ::-1]
    a = draws.normals[image_id] * lighting
    x = x + dataset.eigenvectors @ (a * np.sqrt(dataset.eigenvalues))
    if shrink:
        x = x / (1 + lighting)
    x = x / format.std
    if format.color == "BGR":
        x = x[..., ::-1]
    return x.transpose(2, 0, 1)


FORMATS = [
    InputFormat(size=224),
    InputFormat(size=227, mean="center", std=57.0),
    InputFormat(size=227, mean="image", color="BGR"),
    InputFormat(size=64, mean="channel", std=58.0, color="BGR"),
    InputFormat(size=256, mean="center"),
    InputFormat(size=1, mean="channel"),
]


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize(("lighting", "shrink", "flip"), [(0.1, False, True), (0.2, True, False)])
def test_training_images(
    dataset: Dataset, format: InputFormat, lighting: float, shrink: bool, flip: bool
) -> None:
    batches = train_batches(
        dataset,
        format,
        batch_size=8,
        seed=SEED,
        device="cpu",
        epoch=EPOCH,
        lighting=lambda epoch: lighting if epoch == EPOCH else 0.0,
        lighting_shrink=shrink,
        flip=flip,
    )
    seen: list[int] = []
    for batch in islice(batches, 3):
        for image, label, image_id in zip(batch.images, batch.labels, batch.ids, strict=True):
            assert label == dataset.train.labels[image_id]
            expected = expected_train(dataset, format, image_id, lighting, shrink, flip)
            assert np.abs(image.double().numpy() - expected).max() < 2e-4 / min(format.std, 10)
            seen.append(int(image_id))
    order = epoch_draws(SEED, EPOCH, len(dataset.train), format.size).order
    assert seen == order[:24].tolist()


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("size", [None, 256])
def test_evaluation_images(dataset: Dataset, format: InputFormat, size: int | None) -> None:
    batches = list(eval_batches(dataset, format, batch_size=4, device="cpu", size=size))
    assert [len(batch.ids) for batch in batches] == [4, 4, 3]
    assert np.concatenate([batch.ids for batch in batches]).tolist() == list(range(11))
    side = size or format.size
    at = (256 - side) // 2
    window = np.s_[at : at + side, at : at + side]
    for batch in batches:
        assert batch.images.shape[1:] == (3, side, side)
        assert batch.labels.tolist() == dataset.val.labels[batch.ids].tolist()
        for image, image_id in zip(batch.images, batch.ids, strict=True):
            mean = dataset.mean_image.astype(float)
            mean = mean.mean((0, 1)) if format.mean == "channel" else mean[window]
            expected = (pixels(dataset.val, image_id)[window] - mean) / format.std
            if format.color == "BGR":
                expected = expected[..., ::-1]
            assert np.abs(image.double().numpy() - expected.transpose(2, 0, 1)).max() < 1e-4


def first(dataset: Dataset, format: InputFormat, **options: object) -> Batch:
    options = {"batch_size": 8, "seed": SEED, "device": "cpu"} | options
    return next(train_batches(dataset, format, **options))


def test_lighting_off_adds_nothing(dataset: Dataset) -> None:
    batch = first(dataset, InputFormat(mean="channel"), lighting=lambda epoch: 0.0)
    with_mean = batch.images + torch.tensor(dataset.channel_mean).float()[:, None, None]
    assert (with_mean - with_mean.round()).abs().max() < 1e-4


def test_lighting_is_asked_for_every_epoch(dataset: Dataset) -> None:
    asked: list[int] = []
    batches = train_batches(
        dataset,
        InputFormat(size=8),
        batch_size=20,
        seed=0,
        device="cpu",
        epoch=5,
        lighting=lambda epoch: asked.append(epoch) or 0.0,
    )
    for _ in islice(batches, 5):
        pass
    assert asked[:3] == [5, 6, 7]


CC2_STD = np.array([19.7208, 37.0939, 121.7801])
CC2_VECTORS = np.array([[0.4180, -0.8170, 0.3973], [-0.7126, -0.0235, 0.7012], [-0.5635, -0.5762, -0.5920]]).T  # fmt: skip # noqa: E501


def test_trap_5_lighting_on_0_to_255_has_std_7_4_7_2_7_7(dataset: Dataset) -> None:
    """ImageNet's colour PCA as cuda-convnet2 has it: the square roots, not the eigenvalues."""
    imagenet = dataclasses.replace(dataset, eigenvalues=CC2_STD**2, eigenvectors=CC2_VECTORS)
    options = {"batch_size": 40, "seed": 1, "device": "cpu"}
    format = InputFormat(size=1, mean="channel")
    lit = train_batches(imagenet, format, **options)
    plain = train_batches(imagenet, format, **options, lighting=lambda epoch: 0.0)
    pairs = islice(zip(lit, plain, strict=True), 100)
    noise = torch.cat([a.images - b.images for a, b in pairs])[:, :, 0, 0]
    assert np.allclose(noise.std(0), [7.4, 7.2, 7.7], atol=0.35)  # 4,000 draws: 3% is 3 sigma
    assert np.allclose(noise.mean(0), 0, atol=0.4)


def test_images_have_memory_of_their_own_in_channels_last(dataset: Dataset) -> None:
    batches = train_batches(dataset, InputFormat(), batch_size=8, seed=0, device="cpu")
    batch = next(batches)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert (batch.labels.dtype, batch.ids.dtype) == (torch.int64, np.int64)
    before = batch.images.clone()
    for later in islice(batches, 6):
        later.images.zero_()
    batches.close()
    assert torch.equal(batch.images, before)
    again = first(dataset, InputFormat(), seed=0)
    assert torch.equal(again.images, before)


@pytest.mark.parametrize("format", FORMATS[:4], ids=str)
@pytest.mark.parametrize("shrink", [False, True])
def test_pixels_and_their_changes_are_the_images(dataset, format, shrink):
    how = {"batch_size": 8, "seed": SEED, "epoch": EPOCH, "device": "cpu"}
    how |= {"lighting_shrink": shrink, "lighting": lambda epoch: 0.5}
    (batch,) = islice(train_batches(dataset, format, **how), 1)
    (raw,) = islice(train_batches(dataset, format, **how, pixels=True), 1)
    assert raw.images.dtype == torch.uint8
    assert raw.images.shape == (8, format.size, format.size, 3)
    assert (raw.ids == batch.ids).all()
    assert torch.equal(raw.labels, batch.labels)
    assert batch.changes is None
    # to the bit, but for the mean colour less the lighting, which DALI is given as one number
    torch.testing.assert_close(raw.changes.of(raw.images), batch.images, rtol=1e-6, atol=1e-4)
    assert raw.changes.flip.any()

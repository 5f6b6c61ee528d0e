"""Metrics and ten crops, number by number."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from fastalex.data.pipeline import Batch
from fastalex.errors import UsageError
from fastalex.inputs import InputFormat
from fastalex.train.evaluation import TenCrop, evaluate, mean_log_softmax

CPU = torch.device("cpu")


class Given(nn.Module):
    """Answers with the logits that the images carry in their first row."""

    def __init__(self, classes: int):
        super().__init__()
        self.classes = classes

    def forward(self, images):
        return images[:, 0, 0, : self.classes]


def batch(logits: list[list[float]], labels: list[int]) -> Batch:
    images = torch.zeros(len(labels), 3, 8, 8)
    images[:, 0, 0, : len(logits[0])] = torch.tensor(logits)
    return Batch(images, torch.tensor(labels), np.arange(len(labels)))


def test_loss_and_errors_by_hand():
    first = batch([[5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5]], [0, 0])
    second = batch([[0, 9, 1, 0, 0, 0]], [2])
    got = evaluate(Given(6), [first, second], device=CPU)
    assert got.images == 3
    assert got.top1_error == pytest.approx(2 / 3)
    assert got.top5_error == pytest.approx(1 / 3)
    z = sum(math.exp(i) for i in range(6))
    expected = [math.log(z) - 5, math.log(z) - 0, math.log(math.exp(9) + math.e + 4) - 1]
    assert got.loss == pytest.approx(sum(expected) / 3)


def test_fewer_than_five_classes():
    got = evaluate(Given(3), [batch([[1, 2, 3]], [0])], device=CPU)
    assert (got.top1_error, got.top5_error) == (1.0, 0.0)


def test_no_images_is_an_error():
    with pytest.raises(UsageError, match="no image"):
        evaluate(Given(3), [], device=CPU)


def test_the_model_comes_back_in_the_mode_it_was_in():
    model = Given(3).train()
    seen = []
    model.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    evaluate(model, [batch([[1, 2, 3]], [0])], device=CPU)
    assert seen == [False]
    assert model.training


def test_trap_8_mean_of_softmax_not_softmax_of_mean():
    logits = torch.tensor([[[10.0, 0.0]], [[0.0, 1.0]]])
    got = mean_log_softmax(logits).exp()
    by_hand = (1 / (1 + math.exp(-10)) + 1 / (1 + math.e)) / 2
    assert got[0, 0].item() == pytest.approx(by_hand)
    of_mean = logits.mean(0).softmax(1)[0, 0].item()
    assert abs(of_mean - by_hand) > 0.3


def test_ten_windows_are_the_papers():
    image = torch.arange(256 * 256.0).reshape(1, 1, 256, 256).expand(2, 3, 256, 256)
    views = list(TenCrop(224).windows(image))
    assert len(views) == 10
    corners = [view[0, 0, 0, 0].item() for view in views[::2]]
    assert corners == [0, 32, 32 * 256, 32 * 256 + 32, 16 * 256 + 16]
    for plain, mirrored in zip(views[::2], views[1::2], strict=True):
        assert plain.shape == (2, 3, 224, 224)
        assert torch.equal(plain.flip(-1), mirrored)


@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_center_mean_is_the_same_under_every_window(color):
    """The 2012 code takes the mean image's centre window off wherever the window is."""
    rng = np.random.default_rng(0)
    raw, mean = rng.uniform(0, 255, (2, 256, 256, 3)).astype(np.float32)
    format = InputFormat(size=224, mean="center", std=2.0, color=color)
    planes = slice(None) if color == "RGB" else slice(None, None, -1)
    mean_free = torch.from_numpy(((raw - mean) / 2.0)[..., planes].copy()).permute(2, 0, 1)[None]
    views = list(TenCrop.of(format, mean).windows(mean_free))
    top_left = ((raw[:224, :224] - mean[16:240, 16:240]) / 2.0)[..., planes]
    np.testing.assert_allclose(views[0][0].permute(1, 2, 0), top_left, atol=1e-4)
    np.testing.assert_allclose(views[1][0].permute(1, 2, 0), top_left[:, ::-1], atol=1e-4)

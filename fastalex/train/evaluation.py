"""Top-1 error, top-5 error and loss of a network on labelled images.

Centre window: one prediction an image. Ten crops (paper, section 4.1): the four corners and the
centre of the 256 x 256 image, each also mirrored, and the mean of the ten softmax outputs (not of
the logits).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fastalex.data.pipeline import Batch, eval_batches
from fastalex.data.shards import Dataset
from fastalex.errors import UsageError
from fastalex.inputs import STORED_SIDE, InputFormat
from fastalex.train import checkpoint
from fastalex.train.build import build_model, input_format, load_weights
from fastalex.train.config import Precision
from fastalex.train.device import arithmetic, pick_device
from fastalex.train.distributed import ALONE, World
from fastalex.train.rundir import read_config


@dataclass(frozen=True, slots=True)
class Metrics:
    """Means over `images` images."""

    loss: float
    """Cross-entropy, in nats (of the mean softmax with ten crops)."""
    top1_error: float
    """Share of images whose class is not the first guess."""
    top5_error: float
    """Share of images whose class is not among the first five guesses."""
    images: int


@dataclass(frozen=True, slots=True)
class TenCrop:
    """How to cut ten windows out of a whole mean-free image."""

    side: int
    """Of a window, in pixels."""
    shift: Tensor | None = None
    """(5, 3, side, side), added to the five windows before mirroring: where `InputFormat.mean` is
    "center", it makes up for the mean image's own window having been taken off."""

    @classmethod
    def of(cls, format: InputFormat, mean_image: np.ndarray) -> "TenCrop":
        """For a network's input `format` and the training set's (256, 256, 3) RGB mean image."""
        if format.mean != "center":
            return cls(format.size)
        mean = torch.from_numpy(mean_image).permute(2, 0, 1)
        mean = (mean.flip(0) if format.color == "BGR" else mean) / format.std
        *corners, centre = (_window(mean, place, format.size) for place in _places(format.size))
        return cls(format.size, torch.stack([*corners, centre]) - centre)

    def windows(self, images: Tensor) -> Iterator[Tensor]:
        """(B, 3, 256, 256) -> ten times (B, 3, side, side), each place plain and mirrored."""
        shift = None if self.shift is None else self.shift.to(images.device)
        for i, place in enumerate(_places(self.side)):
            window = _window(images, place, self.side)
            if shift is not None:
                window = window + shift[i]
            for view in (window, window.flip(-1)):
                yield view.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    precision: Precision = "fp32",
    ten_crop: TenCrop | None = None,
    world: World = ALONE,
) -> Metrics:
    """Metrics of `model` (put into eval mode meanwhile) over `batches`.

    Args:
        batches: as `fastalex.data.pipeline.eval_batches` gives them: windows of the network's size,
            or whole 256 x 256 images where `ten_crop` is given.
        world: ranks that each have a part of the images; the metrics are those of all.

    Raises:
        UsageError: no images.
    """
    was_training = model.training
    model.eval()
    total = torch.zeros(4, dtype=torch.float64)
    try:
        for batch in batches:
            views = [batch.images] if ten_crop is None else ten_crop.windows(batch.images)
            with arithmetic(device, precision):
                log_probs = mean_log_softmax(model(view).double() for view in views)
            total += _sums(log_probs, batch.labels).cpu()
    finally:
        model.train(was_training)
    total, count = world.sum(total).split([3, 1])
    if not count:
        raise UsageError("there is no image to evaluate on: the dataset's val half is empty")
    loss, top1, top5 = (total / count).tolist()
    return Metrics(loss=loss, top1_error=top1, top5_error=top5, images=int(count))


def mean_log_softmax(logits: Iterable[Tensor]) -> Tensor:
    """log(mean over views of softmax(logits)); each (B, classes)."""
    stacked = torch.stack([view.log_softmax(1) for view in logits])
    return stacked.logsumexp(0) - np.log(len(stacked))


def evaluate_run(
    run: Path,
    dataset: Dataset,
    *,
    ten_crop: bool = False,
    batch_size: int = 128,
    device: str = "auto",
    precision: Precision | None = None,
) -> Metrics:
    """Metrics of a run's last weights on `dataset.val`.

    The mean image is the one of the run's training set.

    Args:
        run: a run directory.
        precision: left out: the run's own.

    Raises:
        UsageError: `run` is no run directory or has other classes than `dataset`.
        RunError: its checkpoint cannot be read.
    """
    config = read_config(run)
    state = checkpoint.load(run)
    if state is None:
        raise UsageError(f"{run} has no checkpoint yet; go on with: fastalex-train --resume {run}")
    if tuple(state["classes"]) != tuple(dataset.classes):
        raise UsageError(
            f"{dataset.root} has the classes {_few(dataset.classes)}; "
            f"{run} was trained on {_few(state['classes'])}"
        )
    where = pick_device(device)
    model = build_model(replace(config, init_from=None), len(dataset.classes))
    load_weights(model, state["model"], run)
    dataset = replace(dataset, mean_image=state["mean_image"].numpy())
    format = input_format(config)
    return evaluate(
        model.to(where),
        eval_batches(
            dataset,
            format,
            batch_size=batch_size,
            device=where,
            size=STORED_SIDE if ten_crop else None,
        ),
        device=where,
        precision=precision or config.precision,
        ten_crop=TenCrop.of(format, dataset.mean_image) if ten_crop else None,
    )


def _places(side: int) -> list[tuple[int, int]]:
    """Top and left of the five windows of `side`: four corners, then the centre."""
    far, centre = STORED_SIDE - side, (STORED_SIDE - side) // 2
    return [(0, 0), (0, far), (far, 0), (far, far), (centre, centre)]


def _window(images: Tensor, place: tuple[int, int], side: int) -> Tensor:
    top, left = place
    return images[..., top : top + side, left : left + side]


def _sums(log_probs: Tensor, labels: Tensor) -> Tensor:
    """(4,): summed loss, images whose first guess is wrong, images missed by the first five, and
    the number of images."""
    loss = -log_probs.gather(1, labels[:, None]).sum()
    guesses = log_probs.topk(min(5, log_probs.shape[1]), dim=1).indices
    hits = guesses == labels[:, None]
    count = torch.tensor(len(labels), device=loss.device)
    wrong = count - hits[:, :1].sum(), count - hits.sum()
    return torch.stack([loss, *wrong, count]).double()


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f", ... ({len(names)} in all)" if len(names) > 3 else "")

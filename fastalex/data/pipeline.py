"""Batches of augmented images, decoded by NVIDIA DALI. The only module that imports DALI.

For the trainer and the evaluation. Each image goes through, in this order (x: 0..255, RGB or BGR):

    window    x[top : top + size, left : left + size], decoded alone
    mean      x - mean image at the window (`image`), at the centre (`center`), or mean colour
    flip      left to right
    lighting  (x + V (a * sqrt(l))) / shrink,  a ~ N(0, amplitude^2), three an image
    std       x / std

V, l: eigenvectors and eigenvalues of the RGB covariance; shrink is 1 + amplitude in the 2012 code,
else 1 (Krizhevsky et al. 2012, section 4.1; computerhistory/AlexNet-Source-Code). The draws are
those of `fastalex.data.sampler`. DALI reads through `external_source`, so the order is ours, and
works in its own threads while the caller trains.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any

import nvidia.dali.fn as fn
import torch
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.types import Constant, DALIDataType, DALIImageType

from fastalex.data._feed import Damaged, Feed
from fastalex.data._plan import Plan
from fastalex.data._requests import Request, eval_requests, train_requests
from fastalex.data.batch import Batch, Delivery
from fastalex.data.sampler import check_ranks, epoch_draws, steps_per_epoch
from fastalex.data.shards import Dataset
from fastalex.errors import RunError, UsageError
from fastalex.inputs import STORED_SIDE as SIDE
from fastalex.inputs import InputFormat

__all__ = ["Batch", "eval_batches", "steps_per_epoch", "train_batches"]


def train_batches(
    dataset: Dataset,
    format: InputFormat,
    *,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    epoch: int = 0,
    step: int = 0,
    lighting: Callable[[int], float] = lambda epoch: 0.1,
    lighting_shrink: bool = False,
    flip: bool = True,
    rank: int = 0,
    world_size: int = 1,
    skip_bad: int = 0,
    threads: int | None = None,
    pixels: bool = False,
) -> Generator[Batch, None, None]:
    """Endless training batches from `step` of `epoch`, the same bits however they are made.

    Args:
        batch_size: images per step over all ranks; rank r gets the r-th of `world_size` slices.
            The tail of an epoch that is smaller is dropped.
        lighting: standard deviation of the three draws of an epoch, in units of sqrt(l); 0 is off.
        lighting_shrink: divide by 1 + lighting, as the 2012 code does.
        flip: mirror half of the images; False for what has a left and a right, such as digits.
        skip_bad: damaged images to replace by the next sound one, with a warning each; one more
            ends the run. Counted by each rank, from where it started.
        threads: DALI's decoding threads; None shares the cores among the ranks.
        pixels: stop after the window and leave the rest to `Batch.changes`.
    Raises:
        UsageError: at once, for arguments that do not fit.
        RunError: while iterating, at a damaged image, naming it and its shard.
    """
    check_ranks(batch_size, rank, world_size)
    steps = steps_per_epoch(len(dataset.train), batch_size)
    if epoch < 0 or not 0 <= step < steps:
        raise UsageError(f"train_batches: no step {step} of epoch {epoch}; an epoch has {steps}")
    epoch_draws(seed, epoch, 0, format.size)  # checks them
    requests = train_requests(
        dataset,
        format,
        batch_size=batch_size,
        seed=seed,
        epoch=epoch,
        step=step,
        lighting=lighting,
        lighting_shrink=lighting_shrink,
        flip=flip,
        rank=rank,
        world_size=world_size,
    )
    damaged = Damaged(dataset.train, skip_bad, {})
    plan = Plan.of(dataset, format, format.size, batch_size, world_size, device, threads)
    return _batches(replace(plan, pixels=pixels), requests, damaged)


def eval_batches(
    dataset: Dataset,
    format: InputFormat,
    *,
    batch_size: int,
    device: torch.device | str,
    size: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    threads: int | None = None,
) -> Generator[Batch, None, None]:
    """The validation images once, in order of id: their centre window, without lighting.

    Args:
        batch_size: images per step over all ranks. The last batch may be smaller, and a rank may
            have one batch less than another.
        size: side of the window, None for the format's; 256 gives the whole image, with the whole
            mean image subtracted where `format.mean` is `image` or `center`.
    Raises: as `train_batches`.
    """
    check_ranks(batch_size, rank, world_size)
    size = format.size if size is None else size
    epoch_draws(0, 0, 0, size)  # checks it
    requests = eval_requests(
        dataset, format, batch_size=batch_size, size=size, rank=rank, world_size=world_size
    )
    plan = Plan.of(dataset, format, size, batch_size, world_size, device, threads)
    return _batches(plan, requests, Damaged(dataset.val, 0, {}))


def _build(plan: Plan, feed: Feed) -> Pipeline:
    gpu = plan.device.type == "cuda"
    where = "gpu" if gpu else "cpu"
    uint8, int32, float32 = DALIDataType.UINT8, DALIDataType.INT32, DALIDataType.FLOAT
    shape = [plan.size, plan.size]
    pipeline = Pipeline(
        batch_size=plan.batch_size,
        num_threads=plan.threads,
        device_id=plan.device.index,
        prefetch_queue_depth=2,
        exec_dynamic=True,  # what it returned stays ours: nothing to copy
    )
    with pipeline:
        given = 2 if plan.pixels else 5
        jpegs, corner, *rest = fn.external_source(
            source=(lambda: feed()[:2]) if plan.pixels else feed,
            num_outputs=given,
            batch=True,
            dtype=[uint8, int32, int32, float32, float32][:given],
            ndim=[1, 1, 0, 1, 1][:given],
        )
        images = fn.decoders.image_slice(
            jpegs,
            start=corner,
            shape=shape,
            axes=[0, 1],
            device="mixed" if gpu else "cpu",
            output_type=DALIImageType.BGR if plan.color == "BGR" else DALIImageType.RGB,
            jpeg_fancy_upsampling=True,  # on the GPU too
        )
        if not plan.pixels:
            images = _finished(images, plan, where, corner, *rest)
        pipeline.set_outputs(images)
    pipeline.build()
    return pipeline


def _finished(
    images: Any, plan: Plan, where: str, corner: Any, flip: Any, offset: Any, std: Any
) -> Any:
    """DALI's own way from pixels to the network's input."""
    if plan.mean is not None:
        mean: Any = Constant(plan.mean, device=where)
        shape = [plan.size, plan.size]
        start = corner if plan.mean_at_window else [(SIDE - plan.size) // 2] * 2
        images = images - fn.slice(mean, start=start, shape=shape, axes=[0, 1])
    return fn.crop_mirror_normalize(
        fn.reshape(images, layout="HWC"),
        mirror=flip,
        mean=offset,
        std=std,
        dtype=DALIDataType.FLOAT,
        output_layout="HWC",
    )


def _batches(
    plan: Plan, requests: Iterator[Request], damaged: Damaged
) -> Generator[Batch, None, None]:
    """Starts DALI again behind an image that it cannot decode and that may be replaced.

    Errors are raised once DALI is gone: their tracebacks would keep its threads alive.
    """
    delivery = Delivery(plan, damaged.split)
    while True:
        feed = Feed(requests, damaged)
        pipeline, failure = None, ""
        try:
            pipeline = _build(plan, feed)
            while (images := _next_images(pipeline, plan)) is not None:
                batch = feed.pending.popleft()
                yield delivery.batch(images, batch)
        except _DecodeError as error:
            failure = str(error)
        finally:
            feed.close()
            pipeline = None
        if not failure:
            break
        undecodable = feed.undecodable()
        if not undecodable:
            raise RunError(f"DALI failed, and no image is to blame: {failure}")
        for image_id, reason in undecodable.items():
            damaged.add(image_id, reason)
        requests = feed.unread()
    if feed.error is not None:
        raise feed.error


class _DecodeError(Exception):
    """DALI stopped at an image, it does not say which."""


def _next_images(pipeline: Pipeline, plan: Plan) -> torch.Tensor | None:
    # On a GPU in torch's own stream: so the buffer is free again only after its last reader there.
    stream = [torch.cuda.current_stream(plan.device)] if plan.device.type == "cuda" else []
    try:
        (output,) = pipeline.run(*stream)
    except StopIteration:
        return None
    except RuntimeError as error:
        raise _DecodeError(" ".join(str(error).split())[:300]) from error
    return torch.from_dlpack(output.as_tensor())

"""Images a second of each way to feed the network: synthetic, raw pixels, JPEG.

    python -m bench data
    pytest bench/bench_data.py

    synthetic   a batch that is on the device, copied into the step's input
    raw         uint8 pixels from memory through `kernels.images`: window, mean, mirror, light
    jpeg        the training pipeline (DALI), beside Pillow and NumPy doing the same

JPEG: a prepared set of 256 crops of scikit-learn's two photographs, in the page cache, window 224.
Both sides read, check the CRC-32, decode, subtract the mean, flip and light the same windows into a
channels_last batch; DALI decodes the window alone, Pillow the whole image.

On a CPU the clock is the process's CPU time over all its threads, so the figure is images for a
second of one core, whatever else the machine does; on a GPU it is the wall clock's.
"""

import importlib.util
import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from _machine import DEVICE, GPU
from _measure import synchronize
from _session import Session

from fastalex import kernels
from fastalex.inputs import InputFormat

FORMATS = {
    "mean image": InputFormat(),
    "mean colour": InputFormat(mean="channel", std=58.0),
}
BATCH, STEPS, SIDE = (1024, 8, 224) if GPU else (128, 2, 224)
PREPARED = 256
ROUNDS = 15
NEEDED = ("nvidia.dali", "sklearn", "PIL", "simplejpeg")


def clock() -> float:
    synchronize()
    return time.perf_counter() if GPU else time.process_time()


def sampled(call: Callable[[], Any]) -> list[float]:
    """Seconds, round by round, the first two left out."""
    samples = []
    for _ in range(2 + ROUNDS):
        start = clock()
        call()
        samples.append(clock() - start)
    return samples[2:]


@pytest.fixture
def measure(session: Session, benchmark):
    """Times calls that make so many images each and leaves the tier's row.

    One after the other, not in turns: DALI works ahead, in threads, while another's time is taken.
    """

    def run(tier: str, images: int, calls: dict[str, tuple[str, Callable[[], Any]]]) -> None:
        row = {"part": "data", "key": tier, "tier": tier, "images": images, "failed": {}}
        row |= {"clock": "wall" if GPU else "CPU time", "batch": BATCH, "left_out": {}}
        row["providers"] = {
            name: {"says": says, "ours": name == "fastalex", "samples": sampled(call)}
            for name, (says, call) in calls.items()
        }
        benchmark._timer = clock
        benchmark.pedantic(calls["fastalex"][1], rounds=1)
        benchmark.extra_info.update(row)
        session.write(row)
        session.say(f"data: {tier} done")

    return run


@pytest.fixture(autouse=True)
def time_left(request, session: Session) -> None:
    if session.left <= 0:
        leave_out(session, request.node.name, "no time left")


def leave_out(session: Session, tier: str, why: str) -> None:
    row = {"part": "data", "key": tier, "tier": tier, "providers": {}, "failed": {}}
    session.write(row | {"left_out": {"all": why}})
    pytest.skip(why)


def bench_synthetic(measure) -> None:
    source = torch.randn(BATCH, 3, SIDE, SIDE, device=DEVICE)
    source = source.contiguous(memory_format=torch.channels_last)
    target = torch.empty_like(source)

    def copy() -> None:
        for _ in range(STEPS):
            target.copy_(source)

    measure("synthetic", BATCH * STEPS, {"fastalex": ("a copy on the device", copy)})


def bench_raw(measure) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (BATCH, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    pixels = pixels.pin_memory() if GPU else pixels
    mean = torch.full((256, 256, 3), 120.0, device=DEVICE)
    lighting = torch.randn(BATCH, 3, device=DEVICE)
    corner = torch.randint(0, 257 - SIDE, (BATCH, 2), device=DEVICE)
    flip = torch.arange(BATCH, device=DEVICE) % 2
    dtype = torch.bfloat16 if GPU else torch.float32

    def make() -> None:
        for _ in range(STEPS):
            x = pixels.to(DEVICE, non_blocking=True)
            kernels.images(x, mean, lighting, corner=corner, flip=flip, dtype=dtype)

    measure("raw pixels", BATCH * STEPS, {"fastalex": ("kernels.images", make)})


@pytest.fixture(scope="module")
def dataset(session: Session, tmp_path_factory):
    absent = [name for name in NEEDED if not _is_there(name)]
    if absent:
        leave_out(session, "jpeg", f"{', '.join(absent)} not installed")
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from fastalex.data import image_folder, prepare

    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    photos = load_sample_images().images
    for i in range(PREPARED + 16):
        top, left = rng.integers(0, 427 - 300), rng.integers(0, 640 - 400)
        place = root / ("train" if i < PREPARED else "val") / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        crop = photos[i % 2][top : top + 300, left : left + 400]
        Image.fromarray(crop).save(place / f"{i}.jpg", quality=95)
    return prepare(image_folder(root), tmp_path_factory.mktemp("prepared") / "out", workers=1)


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that it would lie in
        return False


JPEG_BATCH = 128


def by_dali(dataset, format: InputFormat) -> Callable[[], None]:
    """A call that makes STEPS batches."""
    from fastalex.data.pipeline import train_batches

    batches = train_batches(dataset, format, batch_size=JPEG_BATCH, seed=0, device=DEVICE)

    def make() -> None:
        for _ in range(STEPS):
            next(batches)

    return make


def by_pillow(dataset, format: InputFormat) -> Callable[[], None]:
    """A call that makes STEPS batches of the first epoch's images."""
    from PIL import Image

    from fastalex.data.sampler import epoch_draws

    size, split = format.size, dataset.train
    draws = epoch_draws(0, 0, len(split), size)
    axes = dataset.eigenvectors * np.sqrt(dataset.eigenvalues)
    noise = (0.1 * draws.normals @ axes.T).astype(np.float32)

    def window(image_id: int) -> np.ndarray:
        top, left = draws.top[image_id], draws.left[image_id]
        at = np.s_[top : top + size, left : left + size]
        image = Image.open(io.BytesIO(split.read(image_id)))
        x = np.asarray(image.crop((left, top, left + size, top + size)), np.float32)
        x -= dataset.mean_image[at] if format.mean == "image" else np.float32(117.0)
        x += noise[image_id]
        x *= np.float32(1 / format.std)
        return x[:, ::-1] if draws.flip[image_id] else x

    def make() -> None:
        for step in range(STEPS):
            start = step * JPEG_BATCH % PREPARED
            ids = draws.order[start : start + JPEG_BATCH]
            torch.from_numpy(np.stack([window(i) for i in ids])).permute(0, 3, 1, 2).to(DEVICE)

    return make


@pytest.mark.parametrize("format", FORMATS)
def bench_jpeg(format: str, dataset, measure) -> None:
    calls = {
        "fastalex": ("fastalex (DALI)", by_dali(dataset, FORMATS[format])),
        "pillow": ("Pillow and NumPy", by_pillow(dataset, FORMATS[format])),
    }
    measure(f"jpeg, {format}", JPEG_BATCH * STEPS, calls)

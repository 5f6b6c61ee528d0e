"""Images a second of the training pipeline, beside the same work by Pillow and NumPy.

A prepared set of 256 crops of scikit-learn's two photographs, in the page cache; batches of 128,
window 224. Both sides read, check the CRC-32, decode, subtract the mean image, flip and light the
same windows into a channels_last batch; DALI decodes the window alone, Pillow the whole image.

On a CPU the clock is the process's CPU time over all its threads, so the figure is images for a
second of one core, whatever else the machine does; on a GPU it is the wall clock's.
"""

import io
import time

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from fastalex.data import image_folder, prepare
from fastalex.data.pipeline import train_batches
from fastalex.data.sampler import epoch_draws
from fastalex.inputs import InputFormat

FORMATS = {
    "mean-image": InputFormat(),
    "mean-color": InputFormat(mean="channel", std=58.0),
}
BATCH, STEPS = 128, 2


def wall_clock():
    torch.cuda.synchronize()
    return time.perf_counter()


CLOCK = wall_clock if torch.cuda.is_available() else time.process_time


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    photos = load_sample_images().images
    for i in range(256 + 16):
        top, left = rng.integers(0, 427 - 300), rng.integers(0, 640 - 400)
        place = root / ("train" if i < 256 else "val") / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        crop = photos[i % 2][top : top + 300, left : left + 400]
        Image.fromarray(crop).save(place / f"{i}.jpg", quality=95)
    return prepare(image_folder(root), tmp_path_factory.mktemp("prepared") / "out", workers=1)


def by_dali(dataset, format, device):
    """A call that makes STEPS batches."""
    batches = train_batches(dataset, format, batch_size=BATCH, seed=0, device=device)

    def make():
        for _ in range(STEPS):
            next(batches)

    return make


def by_pillow(dataset, format, device):
    """A call that makes one epoch's first STEPS batches."""
    size, split = format.size, dataset.train
    draws = epoch_draws(0, 0, len(split), size)
    axes = dataset.eigenvectors * np.sqrt(dataset.eigenvalues)
    noise = (0.1 * draws.normals @ axes.T).astype(np.float32)

    def window(image_id):
        top, left = draws.top[image_id], draws.left[image_id]
        at = np.s_[top : top + size, left : left + size]
        image = Image.open(io.BytesIO(split.read(image_id)))
        x = np.asarray(image.crop((left, top, left + size, top + size)), np.float32)
        x -= dataset.mean_image[at] if format.mean == "image" else np.float32(117.0)
        x += noise[image_id]
        x *= np.float32(1 / format.std)
        return x[:, ::-1] if draws.flip[image_id] else x

    def make():
        for step in range(STEPS):
            ids = draws.order[step * BATCH : (step + 1) * BATCH]
            torch.from_numpy(np.stack([window(i) for i in ids])).permute(0, 3, 1, 2).to(device)

    return make


MAKERS = {"dali": by_dali, "pillow": by_pillow}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.benchmark(timer=CLOCK)
def bench_batches(format, maker, dataset, device, benchmark):
    make = MAKERS[maker](dataset, FORMATS[format], device)
    benchmark.pedantic(make, rounds=15, warmup_rounds=2)
    benchmark.extra_info["images_per_s"] = BATCH * STEPS / benchmark.stats.stats.median

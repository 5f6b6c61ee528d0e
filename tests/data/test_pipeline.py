"""Batches: the same bits however they are made, resume, damage, clean endings."""

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from fastalex.data import Dataset
from fastalex.data.pipeline import Batch, eval_batches, train_batches
from fastalex.data.sampler import epoch_draws
from fastalex.errors import RunError, UsageError
from fastalex.inputs import InputFormat

FORMAT = InputFormat(size=48)
ROOT = Path(__file__).parents[2]


def train(dataset: Dataset, count: int, **options: object) -> list[Batch]:
    options = {"batch_size": 8, "seed": 5, "device": "cpu"} | options
    return list(islice(train_batches(dataset, FORMAT, **options), count))


def images(batches: Iterable[Batch]) -> torch.Tensor:
    return torch.cat([batch.images for batch in batches])


def ids(batches: Iterable[Batch]) -> list[int]:
    return np.concatenate([batch.ids for batch in batches]).tolist()


@pytest.fixture(scope="module")
def two_epochs(dataset: Dataset) -> list[Batch]:
    return train(dataset, 10)


def test_every_epoch_visits_every_image_in_an_order_of_its_own(two_epochs: list[Batch]) -> None:
    one, two = ids(two_epochs[:5]), ids(two_epochs[5:])
    assert sorted(one) == sorted(two) == list(range(40))
    assert one != two


@pytest.mark.parametrize(
    "options", [{"batch_size": 20}, {"batch_size": 1}, {"threads": 3}], ids=str
)
def test_batch_size_and_threads_change_no_bit(
    dataset: Dataset, two_epochs: list[Batch], options: dict[str, int]
) -> None:
    batches = train(dataset, 80 // options.get("batch_size", 8), **options)
    assert ids(batches) == ids(two_epochs)
    assert torch.equal(images(batches), images(two_epochs))


def test_ranks_change_no_bit(dataset: Dataset, two_epochs: list[Batch]) -> None:
    ranks = [train(dataset, 10, rank=rank, world_size=2) for rank in range(2)]
    for whole, *parts in zip(two_epochs, *ranks, strict=True):
        assert ids(parts) == whole.ids.tolist()
        assert torch.equal(images(parts), whole.images)


@pytest.mark.parametrize("at", [1, 4, 5, 7])
def test_resume_is_exact(dataset: Dataset, two_epochs: list[Batch], at: int) -> None:
    batches = train(dataset, 10 - at, epoch=at // 5, step=at % 5)
    assert ids(batches) == ids(two_epochs[at:])
    assert torch.equal(images(batches), images(two_epochs[at:]))


def test_the_tail_smaller_than_a_batch_is_dropped(dataset: Dataset) -> None:
    batches = train(dataset, 3, batch_size=15)
    for epoch, part in ((0, batches[:2]), (1, batches[2:])):
        order = epoch_draws(5, epoch, 40, FORMAT.size).order
        assert ids(part) == order[: 15 * len(part)].tolist()


def test_another_seed_is_another_run(dataset: Dataset, two_epochs: list[Batch]) -> None:
    assert ids(train(dataset, 5, seed=6)) != ids(two_epochs[:5])


@pytest.mark.parametrize(("batch_size", "world_size"), [(4, 2), (6, 3), (22, 2), (12, 4)])
def test_ranks_share_the_evaluation(dataset: Dataset, batch_size: int, world_size: int) -> None:
    whole = images(eval_batches(dataset, FORMAT, batch_size=11, device="cpu"))
    seen: dict[int, torch.Tensor] = {}
    for rank in range(world_size):
        for batch in eval_batches(
            dataset, FORMAT, batch_size=batch_size, device="cpu", rank=rank, world_size=world_size
        ):
            seen.update(zip(batch.ids.tolist(), batch.images, strict=True))
    assert len(seen) == 11
    assert torch.equal(torch.stack([seen[i] for i in range(11)]), whole)


def test_arguments_that_do_not_fit_are_refused_at_once(dataset: Dataset) -> None:
    with pytest.raises(UsageError, match="64 is more than the 40 training images; give 40 or less"):
        train_batches(dataset, FORMAT, batch_size=64, seed=0, device="cpu")
    with pytest.raises(UsageError, match="no step 5 of epoch 0; an epoch has 5"):
        train_batches(dataset, FORMAT, batch_size=8, seed=0, device="cpu", step=5)
    with pytest.raises(UsageError, match="seed"):
        train_batches(dataset, FORMAT, batch_size=8, seed=-1, device="cpu")
    with pytest.raises(UsageError, match="multiple of the 3 ranks"):
        train_batches(dataset, FORMAT, batch_size=8, seed=0, device="cpu", world_size=3)
    with pytest.raises(UsageError, match="257"):
        eval_batches(dataset, FORMAT, batch_size=8, device="cpu", size=257)
    with pytest.raises(UsageError, match=r"rank: must be in 0\.\.0"):
        eval_batches(dataset, FORMAT, batch_size=8, device="cpu", rank=1)


@pytest.fixture
def copy(dataset: Dataset, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset.root, tmp_path / "copy"))


def spoil(root: Path, image_id: int, *, crc: bool) -> None:
    """Overwrites an image's middle; with `crc` the index is made to agree with the damage."""
    import hashlib
    import json
    import zlib

    index = np.load(root / "train.npy")
    row = index[image_id]
    with open(root / "train-00000.tar", "r+b") as shard:
        shard.seek(int(row["offset"]) + (0 if crc else int(row["size"]) // 2))
        shard.write(b"garbage!")
        shard.seek(int(row["offset"]))
        index["crc32"][image_id] = zlib.crc32(shard.read(int(row["size"])))
    if crc:
        np.save(root / "train.npy", index)
        manifest = json.loads((root / "dataset.json").read_text())
        digest = hashlib.sha256((root / "train.npy").read_bytes()).hexdigest()
        manifest["files"]["train.npy"] = digest
        (root / "dataset.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("crc", "reason"), [(False, "not those that were written"), (True, "cannot be decoded")]
)
def test_a_damaged_image_is_named_at_its_batch(
    copy: Path, two_epochs: list[Batch], crc: bool, reason: str
) -> None:
    victim = int(two_epochs[3].ids[2])
    spoil(copy, victim, crc=crc)
    dataset = Dataset.open(copy)
    batches = train_batches(dataset, FORMAT, batch_size=8, seed=5, device="cpu")
    for expected in two_epochs[:3]:
        assert torch.equal(next(batches).images, expected.images)
    with pytest.raises(RunError, match=rf"{reason}") as caught:
        next(batches)
    assert dataset.train.names[victim] in str(caught.value)
    assert "train-00000.tar" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("crc", [False, True])
def test_skip_bad_lets_the_next_sound_image_stand_in(
    copy: Path, two_epochs: list[Batch], crc: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    victims = [int(two_epochs[1].ids[0]), int(two_epochs[3].ids[2])]
    for victim in victims:
        spoil(copy, victim, crc=crc)
    dataset = Dataset.open(copy)
    batches = train(dataset, 10, skip_bad=2)
    stand_in = {v: next(i % 40 for i in range(v + 1, 80) if i % 40 not in victims) for v in victims}
    assert ids(batches) == [stand_in.get(i, i) for i in ids(two_epochs)]
    sound = [i for i, image_id in enumerate(ids(two_epochs)) if image_id not in victims]
    assert torch.equal(images(batches)[sound], images(two_epochs)[sound])
    for batch in batches:
        assert batch.labels.tolist() == dataset.train.labels[batch.ids].tolist()
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    assert all(dataset.train.names[v] in line for v, line in zip(victims, lines, strict=True))
    other_batches = train(dataset, 4, skip_bad=2, batch_size=20)
    assert torch.equal(images(other_batches), images(batches))

    with pytest.raises(RunError, match="train-00000") as caught:
        train(dataset, 10, skip_bad=1)
    assert dataset.train.names[victims[1]] in str(caught.value)


def test_a_damaged_validation_image_is_named(copy: Path) -> None:
    row = np.load(copy / "val.npy")[10]
    with open(copy / "val-00000.tar", "r+b") as shard:
        shard.seek(int(row["offset"]))
        shard.write(b"garbage!")
    batches = eval_batches(Dataset.open(copy), FORMAT, batch_size=4, device="cpu")
    assert len(list(islice(batches, 2))) == 2
    with pytest.raises(RunError, match=r"image val/.*val-00000\.tar"):
        next(batches)


@pytest.mark.parametrize("crc", [False, True])
def test_closing_leaves_no_thread(dataset: Dataset, copy: Path, crc: bool) -> None:
    spoil(copy, 20, crc=crc)
    damaged = Dataset.open(copy)

    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    gc.collect()  # what other tests' tracebacks still hold
    before = threads()
    batches = train_batches(dataset, FORMAT, batch_size=8, seed=0, device="cpu")
    next(batches)
    assert threads() > before
    batches.close()
    assert threads() == before
    with pytest.raises(RunError):
        list(train_batches(damaged, FORMAT, batch_size=8, seed=0, device="cpu"))
    assert threads() == before
    list(eval_batches(dataset, FORMAT, batch_size=8, device="cpu"))
    assert threads() == before


def test_an_abandoned_generator_does_not_hold_up_the_exit(dataset: Dataset) -> None:
    script = (
        "import sys\n"
        "from fastalex.data import Dataset\n"
        "from fastalex.data.pipeline import train_batches\n"
        "from fastalex.inputs import InputFormat\n"
        "dataset = Dataset.open(sys.argv[1])\n"
        "format = InputFormat(size=48)\n"
        "batches = train_batches(dataset, format, batch_size=8, seed=0, device='cpu')\n"
        "print(len(next(batches).ids))\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, dataset.root],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "8\n", "")

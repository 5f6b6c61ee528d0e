"""fastalex-prepare: a folder of pictures -> a prepared dataset, by `fastalex.data.prepare`."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastalex.commands.options import parse
from fastalex.data import Dataset, image_folder, prepare


@dataclass(frozen=True, slots=True)
class PrepareOptions:
    """Prepare a folder of images for training, once.

    SOURCE holds train/CLASS/image.jpg and val/CLASS/image.jpg,

    or CLASS/image.jpg, of which a tenth is set apart for validation.

    A run that was interrupted goes on where it stopped.
    """

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """Folder of images."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder to write; new, empty, or from an interrupted run."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Processes; left out: one for each core, or just one for fewer than 2,000 images."""


def main(argv: list[str]) -> None:
    """Runs the command. Raises `UsageError` and `RunError`."""
    options = parse(PrepareOptions, "fastalex-prepare", argv)
    dataset = prepare(image_folder(options.source), options.out, workers=options.workers)
    print(_summary(dataset))


def _summary(dataset: Dataset) -> str:
    size = sum(path.stat().st_size for path in dataset.root.iterdir())
    rejected = dataset.root / "rejected.csv"
    count = dataset.num_rejected
    return (
        f"{dataset.root}: {len(dataset.train)} training and {len(dataset.val)} validation images "
        f"of {len(dataset.classes)} classes, {size / 1e6:.1f} MB\n"
        f"Files refused: {count}{f'; the reasons are in {rejected}' if count else ''}\n"
        f"Next: fastalex-train --data {shlex.quote(str(dataset.root))}"
    )

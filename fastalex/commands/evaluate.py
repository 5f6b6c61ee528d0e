"""fastalex-evaluate: the error of a trained network on a validation set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastalex.commands.options import parse
from fastalex.data import demo_dataset, open_dataset
from fastalex.train import evaluate_run, read_config
from fastalex.train.config import Precision


@dataclass(frozen=True, kw_only=True)
class Options:
    """Errors and loss of a run's last weights on the validation half of a dataset."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run directory of fastalex-train."""
    data: Path | None = None
    """Prepared dataset or folder of images; left out: what the run was trained on."""
    ten_crop: bool = False
    """Mean of the softmax over four corners and the centre, each also mirrored (the paper's test);
    else the centre window alone."""
    batch_size: int = 128
    """Images at a time; changes speed and memory only."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: the GPU when there is one."""
    precision: Precision | None = None
    """Left out: what the run was trained in."""


def main(argv: list[str]) -> None:
    options = parse(Options, "fastalex-evaluate", argv)
    data = options.data or read_config(options.run).data
    dataset = open_dataset(data) if data is not None else demo_dataset()
    metrics = evaluate_run(
        options.run,
        dataset,
        ten_crop=options.ten_crop,
        batch_size=options.batch_size,
        device=options.device,
        precision=options.precision,
    )
    view = "ten crops" if options.ten_crop else "centre crop"
    print(f"{options.run} on the {metrics.images} validation images of {dataset.root}, {view}:")
    print(f"top-1 error {metrics.top1_error:.2%}")
    print(f"top-5 error {metrics.top5_error:.2%}")
    print(f"loss        {metrics.loss:.4f}")

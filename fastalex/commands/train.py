"""fastalex-train: train a network; without options, the built-in demo."""

import argparse
import dataclasses
import os
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from fastalex.commands import launch, rank
from fastalex.commands.options import parse
from fastalex.data import demo_dataset, open_dataset
from fastalex.data.shards import Dataset
from fastalex.errors import UsageError
from fastalex.figures.curves import draw_curves
from fastalex.train import Metrics, TrainConfig, read_config, recipe, train
from fastalex.train.device import pick_device
from fastalex.train.distributed import ALONE, World, join
from fastalex.train.log import read_log
from fastalex.train.modes import micro_batches, mode_of
from fastalex.train.recipes import RECIPES
from fastalex.train.rundir import check_new, check_resumed


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train AlexNet. Without options: the built-in demo, a few minutes on a CPU.

    --recipe sets the defaults of the other options, and options override them.

    Left out, it is demo, or paper where --data is given. The defaults shown are in force here.

    The run directory gets config.json, log.jsonl, last.pt (the checkpoint that --resume reads),

    model.safetensors (the weights), curves.png and TensorBoard events.
    """

    train: tyro.conf.OmitArgPrefixes[TrainConfig]
    out: Path | None = None
    """Run directory to make; left out: runs/RECIPE-DATE-TIME."""
    resume: Path | None = None
    """Run directory to go on with, under its own config.json; options given here override it."""


def main(argv: list[str]) -> None:
    options = _parse(argv)
    config = options.train
    config.check()
    if options.resume is not None and options.out is not None:
        raise UsageError("--out and --resume exclude each other: a resumed run stays where it is")
    if rank.is_rank():
        return _as_rank(options, argv)
    pick_device(config.device, config.gpus)
    if config.parallel != "auto":
        mode_of(config)
    run = options.resume or options.out or _fresh_run(config)
    if options.resume is not None:
        check_resumed(config, run)
    else:
        check_new(run)  # before hours of preparing
    dataset = _open(config)
    if config.gpus == 1:
        return _train(config, dataset, run, options.resume is not None, ALONE)
    where = [] if options.resume is not None else ["--out", str(run)]
    from fastalex.commands import ranks  # brings torch's launcher, which one process does not need

    ranks.start("train", [*argv, *where], config.gpus)


def _as_rank(options: Options, argv: list[str]) -> None:
    """One of several processes, which `ranks`, torchrun or Slurm has started."""
    config, size = options.train, int(os.environ["WORLD_SIZE"])
    if not any(argument.split("=")[0] == "--gpus" for argument in argv):
        config = dataclasses.replace(config, gpus=size)  # whoever started them has said how many
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) and not (
        options.out or options.resume
    ):
        raise UsageError("torchrun --max-restarts: add --out RUN, where the next attempt finds it")
    with join(pick_device(config.device, config.gpus)) as world:
        run = world.gather(options.resume or options.out or _fresh_run(config))[0]
        again = any(world.gather(again))  # torch counts by machine
        resume = options.resume is not None or (again and (run / "config.json").exists())
        dataset = _open(config) if os.environ.get("LOCAL_RANK", "0") == "0" else None
        world.gather(None)  # one of each machine prepares what is to be prepared
        _train(config, dataset or _open(config), run, resume, world)


def _train(config: TrainConfig, dataset: Dataset, run: Path, resume: bool, world: World) -> None:
    metrics = train(
        config,
        dataset,
        run,
        resume=resume,
        announce=lambda decided, timings: _announce(decided, dataset, run, timings),
        world=world,
        abandon=lambda error: launch.end_rank("train", error),
    )
    if world.main:
        draw_curves(read_log(run), run / "curves.png", title=run.name)
        print(_farewell(config, metrics, run))


def _open(config: TrainConfig) -> Dataset:
    return demo_dataset() if config.data is None else open_dataset(config.data)


def _farewell(config: TrainConfig, metrics: Metrics, run: Path) -> str:
    """What came out, where it is, and what to do next."""
    # Ten crops mirror, which is no test for images that were not to be mirrored.
    test = f"fastalex-evaluate {shlex.quote(str(run))}{' --ten-crop' if config.flip else ''}"
    own = "\n       fastalex-train --data FOLDER_OF_CLASS_FOLDERS --recipe modern"
    return (
        f"done: {1 - metrics.top1_error:.2%} of {metrics.images} validation images right, "
        f"top-5 {1 - metrics.top5_error:.2%}\n"
        f"run directory: {run} (curves.png, log.jsonl, model.safetensors)\n"
        f"next:  {test}{own if config.data is None else ''}"
    )


def _parse(argv: list[str]) -> Options:
    """Two readings: the first finds what sets the defaults, the second takes every option."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--recipe")
    first.add_argument("--data")
    first.add_argument("--resume", type=Path)
    first.add_argument("--device", default="auto")
    try:
        known, _ = first.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from error
    if known.resume is not None:
        started = read_config(known.resume)
    else:
        on_gpu = known.device != "cpu" and torch.cuda.is_available()
        name = known.recipe or ("paper" if known.data else "demo")
        name = name if name in RECIPES else "demo"  # parse() refuses others
        started = recipe(name, "cuda" if on_gpu else "cpu")
    options = parse(Options, "fastalex-train", argv, Options(train=started))
    return dataclasses.replace(options, train=_with_full_paths(options.train))


def _with_full_paths(config: TrainConfig) -> TrainConfig:
    """The config as another working directory would need it."""
    paths = {n: getattr(config, n) for n in ("data", "init_from")}
    return dataclasses.replace(
        config, **{n: p and p.expanduser().resolve() for n, p in paths.items()}
    )


def _fresh_run(config: TrainConfig) -> Path:
    stem = Path("runs") / f"{config.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    tries = (stem if n == 1 else stem.with_name(f"{stem.name}-{n}") for n in range(1, 1000))
    return next(path for path in tries if not path.exists())


def _where(config: TrainConfig) -> str:
    """The devices, and how they share the work."""
    gpu = config.device != "cpu" and torch.cuda.is_available()
    if config.gpus == 1:
        cpu = f"the CPU ({torch.get_num_threads()} threads)"
        return torch.cuda.get_device_name() if gpu else cpu
    mode = mode_of(config)
    count = micro_batches(config, mode)
    parts = f" in {count} micro-batches" if count > 1 else ""
    if gpu:
        return f"{config.gpus} x {torch.cuda.get_device_name()}, {mode}{parts}"
    return (
        f"{config.gpus} processes of the CPU ({torch.get_num_threads()} threads each), "
        f"{mode}{parts}: to try it out, not to be quick"
    )


def _announce(config: TrainConfig, dataset: Dataset, run: Path, timings: str) -> None:
    where = _where(config)
    network = f"variant {config.variant}" + (
        f" at {config.width:g} of its width" if config.width != 1 else ""
    )
    start = f", {config.init} initialisation" if config.init else ""
    compiled = "compiled" if config.compile else "not compiled"
    print(f"{config.recipe}: {network}{start}, {config.precision}, {compiled}, on {where}")
    if timings:
        print(timings)
    if config.recipe == "demo" and config.init == "he":
        print(
            "the demo starts from He's initialisation, since the paper's does not leave chance "
            "level within minutes"
            + (", and without a GPU from a narrower network" if config.width < 1 else "")
        )
    print(
        f"data: {dataset.root}, {len(dataset.train)} training and {len(dataset.val)} validation "
        f"images in {len(dataset.classes)} classes"
    )
    print(f"run directory: {run}", flush=True)

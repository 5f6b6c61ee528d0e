"""fastalex-profile: where the time of a training step goes, by layer, by `fastalex.profile`."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from safetensors.torch import load_file

from fastalex import files
from fastalex.commands.options import parse
from fastalex.errors import RunError, UsageError
from fastalex.model import VARIANTS, AlexNet
from fastalex.profile import profile, table
from fastalex.train import TrainConfig, read_config, recipe
from fastalex.train.build import WEIGHTS, build_model, load_weights
from fastalex.train.config import Precision
from fastalex.train.device import pick_device
from fastalex.train.recipes import RECIPES


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time each layer of a training step, forward and backward, against what the device could do.

    On random images; nothing is trained, and nothing of a run is changed.
    """

    what: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|VARIANT")]
    """Run directory of fastalex-train, or a variant, under the recipe that is made for it."""
    batch_size: int | None = None
    """Images a step; left out: the run's or the recipe's."""
    precision: Precision | None = None
    """Left out: the run's, or what suits the device."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: the GPU when there is one."""
    json: Path | None = None
    """File to keep the numbers in."""


def main(argv: list[str]) -> None:
    options = parse(Options, "fastalex-profile", argv)
    device = pick_device(options.device)
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise UsageError(f"--json {options.json}: there is no such folder; make it first")
    config = _config(options, device)
    config.check()
    if config.gpus > 1:
        print(f"the run had {config.gpus} GPUs; this is the network as one process has it")
        config = dataclasses.replace(config, gpus=1, parallel=None, micro_batches=None)
    model = _model(config, Path(options.what)).to(device)
    try:
        found = profile(config, model, device)
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"--batch-size {config.batch_size}: the GPU has not enough memory; give a smaller one"
        ) from error
    print(table(found))
    if options.json is not None:
        files.write(options.json, (json.dumps(found.to_json(), indent=1) + "\n").encode())


def _config(options: Options, device: torch.device) -> TrainConfig:
    """Of the run or the variant, with what the options change."""
    if options.what in VARIANTS:
        config = _recipe_for(options.what, device)
    elif (Path(options.what) / "config.json").is_file():
        config = read_config(Path(options.what))
    else:
        raise UsageError(
            f"{options.what} is neither a run directory nor a variant; the variants are "
            f"{', '.join(VARIANTS)}"
        )
    given = {"batch_size": options.batch_size, "precision": options.precision}
    chosen = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(config, init_from=None, **chosen)


def _recipe_for(variant: Any, device: torch.device) -> TrainConfig:
    """The recipe of that name, or one that trains that variant; else the paper's."""
    for name in [variant] if variant in RECIPES else RECIPES:
        config = RECIPES[name](device.type)
        if config.variant == variant:
            return config
    return dataclasses.replace(recipe("paper", device.type), variant=variant)


def _model(config: TrainConfig, run: Path) -> AlexNet:
    """With the run's weights; before it has any, and for a variant, as initialised."""
    path = run / WEIGHTS
    variant = str(run) in VARIANTS
    if not variant and not path.is_file():
        print(f"{run} has no weights yet: random ones stand in; times do not depend on them")
    if variant or not path.is_file():
        return build_model(config, 10 if config.recipe == "demo" and config.data is None else 1000)
    try:
        state = load_file(path)
    except Exception as error:  # safetensors has an error type of its own, not an OSError
        raise RunError(f"{path} cannot be read as safetensors: {error}") from error
    model = build_model(config, len(state["classifier.6.bias"]))
    load_weights(model, state, path)
    return model

"""From a TrainConfig to the network, its input format and its starting weights."""

import os
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from fastalex.errors import RunError, UsageError
from fastalex.inputs import InputFormat
from fastalex.model import VARIANTS, AlexNet
from fastalex.train.config import TrainConfig
from fastalex.train.rundir import read_config

WEIGHTS = "model.safetensors"


def build_model(config: TrainConfig, num_classes: int) -> AlexNet:
    """The network `config` names, in channels_last, on the CPU, initialised from `config.seed`.

    The weights are drawn on the CPU whatever the device, so that a seed means the same network
    everywhere.
    """
    torch.manual_seed(config.seed)
    try:
        model = AlexNet(
            num_classes,
            config.dropout,
            variant=config.variant,
            init=config.init,
            width=config.width,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    if config.init_from is not None:
        _start_from(model, config.init_from, config)
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def input_format(config: TrainConfig) -> InputFormat:
    """What the variant expects at its input, with `config.input_std` in force."""
    wanted = VARIANTS[config.variant].input
    return wanted if config.input_std is None else replace(wanted, std=config.input_std)


def load_weights(model: AlexNet, state: dict[str, torch.Tensor], origin: Path) -> None:
    """Load `state` into `model`; a UsageError names the first parameter that does not fit."""
    own = model.state_dict()
    for key in [*own, *state]:
        if key not in own or key not in state or own[key].shape != state[key].shape:
            there = tuple(state[key].shape) if key in state else "nothing"
            here = tuple(own[key].shape) if key in own else "nothing"
            raise UsageError(
                f"{origin} holds another network: it has {there} for {key}, "
                f"variant {model.variant.name} at width {model.width:g} has {here}"
            )
    model.load_state_dict(state)


def _start_from(model: AlexNet, origin: Path, config: TrainConfig) -> None:
    if origin.is_dir():
        theirs = read_config(origin)
        if theirs.variant != config.variant or theirs.width != config.width:
            raise UsageError(
                f"--init-from {origin}: its network is variant {theirs.variant} at width "
                f"{theirs.width:g}, this run's is {config.variant} at {config.width:g}"
            )
        origin = origin / WEIGHTS
    if not origin.is_file():
        raise UsageError(f"--init-from {origin}: no such file")
    try:
        state = load_file(origin)
    except Exception as error:  # safetensors has an error type of its own, not an OSError
        raise RunError(f"--init-from {origin}: cannot be read as safetensors: {error}") from error
    for key in ("classifier.6.weight", "classifier.6.bias"):
        fresh = model.state_dict()[key]
        if key in state and state[key].shape[:1] != fresh.shape[:1]:
            state[key] = fresh
            if os.environ.get("RANK", "0") == "0":
                print(f"{key}: {origin} has another number of classes; left as initialised")
    load_weights(model, state, origin)

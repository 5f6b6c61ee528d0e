"""One training step: forward, loss, backward, update; in one process or as a rank's part of it.

In one process on a GPU it is recorded as one CUDA graph, on inputs that stay in place
(`fastalex.train.recorded`, `staging`).
"""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

from fastalex.kernels import use
from fastalex.model import AlexNet
from fastalex.model.blocks import take_blocks
from fastalex.model.exchange import Group
from fastalex.model.shares import cut_state, join_state
from fastalex.train.build import build_model, input_format, load_weights
from fastalex.train.config import TrainConfig
from fastalex.train.device import DTYPES
from fastalex.train.modes import Mode
from fastalex.train.optimizer import MomentumSGD
from fastalex.train.parallel import share_out
from fastalex.train.recorded import Recorded
from fastalex.train.schedule import Rates
from fastalex.train.staging import Direct, Inputs, Places


class TrainStep:
    """Holds the model (on its device), the optimizer and, for fp16, the loss scaler; its `inputs`
    take batches ahead of the steps.

    Args:
        model: the whole network, the same on all ranks; with towers and hybrid it becomes a share.
        group: the ranks, or None for one process.
    """

    def __init__(
        self,
        model: AlexNet,
        config: TrainConfig,
        device: torch.device,
        group: Group | None = None,
        mode: Mode = "one",
    ) -> None:
        self.config, self.group, self._device = config, group, device
        self._whole: AlexNet | None = None
        # Ranks that hold the same weights must round alike; each would choose by its own timing.
        self._alike = group is not None and device.type == "cuda"
        seed = config.seed - 2**64 if config.seed >= 2**63 else config.seed  # the same 64 bits
        self._key = torch.tensor([seed, 0], dtype=torch.int64, device=device)
        self.network = share_out(model, config, self._key, group, mode)
        self.model = self.network.model
        self.optimizer = MomentumSGD(
            parameter_groups(self.model, config, device),
            momentum=config.momentum,
            masters=self.network.masters,
        )
        scaler = torch.amp.GradScaler if group is None else ShardedGradScaler
        self.scaler = scaler(device.type, enabled=config.precision == "fp16")
        # The scaler wraps `optimizer.step` itself, so in fp16 the update is not compiled.
        compiled = config.compile and not self.scaler.is_enabled()
        self._update = torch.compile(self.optimizer.step) if compiled else self.optimizer.step
        self.inputs, self._rates = self._make_inputs(), None
        self._recorded = self._make_recorded(compiled)

    def __call__(
        self, images: Tensor, labels: Tensor, rates: Rates, step: int
    ) -> tuple[Tensor, Tensor]:
        """Train on (B, 3, S, S) float images and (B,) int64 labels.

        Args:
            step: steps made before; with the seed it decides what dropout drops.

        Returns: the mean loss, and what `Network.loss` says of this rank's health.
        """
        self.inputs.put(images, labels, None)
        return self.run(rates, step)

    def run(self, rates: Rates, step: int) -> tuple[Tensor, Tensor]:
        """Train on the batch that was put into `inputs`; else as a call."""
        if rates != self._rates:
            for group in self.optimizer.param_groups:
                group["lr"].fill_(getattr(rates, group["name"]))
            self._rates = rates
        self._key[1].fill_(step)
        with self.inputs.taken() as (images, labels):
            if self._recorded is None:
                return self._step(images, labels)
            loss, health = self._recorded(images, labels).unbind()
            return loss, health

    def _make_recorded(self, compiled: bool) -> Recorded | None:
        alone_on_a_gpu = self.group is None and self._device.type == "cuda"
        return Recorded(self._numbers, self._device) if compiled and alone_on_a_gpu else None

    def _make_inputs(self) -> Inputs:
        if self._device.type != "cuda":
            return Direct()
        blocks = take_blocks(self.model.features[0], input_format(self.config).size)
        return Places(self._device, DTYPES[self.config.precision], blocks)

    def _numbers(self, images: Tensor, labels: Tensor) -> Tensor:
        return torch.stack([number.float() for number in self._step(images, labels)])

    def _step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        loss, health = self.network.loss(images, labels)
        self.scaler.scale(loss).backward()
        self.network.finish_gradients()
        with use("triton") if self._alike else contextlib.nullcontext():
            if self.scaler.is_enabled():
                self.scaler.step(self.optimizer)
                self.scaler.update()
            else:
                self._update()
        return loss.detach(), health

    def is_finite(self) -> bool:
        """Whether every parameter of this rank is. Waits for the device."""
        norms = [parameter.detach().norm() for parameter in self.model.parameters()]
        return bool(torch.stack(norms).sum().isfinite())

    def weights(self) -> dict[str, Tensor]:
        """The whole network's state_dict; all ranks call it."""
        state = self.model.state_dict()
        for name, parameter in self.model.named_parameters():
            state[name] = self.network.masters.get(parameter, state[name])
        return self._join(state)

    def whole_model(self) -> AlexNet:
        """The network as one process has it, for evaluation; all ranks call it."""
        if not self.network.rows:
            return self.model
        weights = self.weights()
        if self._whole is None:
            config = replace(self.config, init_from=None)
            self._whole = build_model(config, len(weights["classifier.6.bias"])).to(self._device)
        self._whole.load_state_dict(weights)
        return self._whole

    def state_dict(self) -> dict[str, Any]:
        """The state of one process, however the step is shared; all ranks call it."""
        optimizer = self.optimizer.state_dict()
        velocities = self._by_parameter(optimizer["state"], self._join)
        return {
            "model": self.weights(),
            "optimizer": {**optimizer, "state": velocities},
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], origin: Path) -> None:
        """Take over a state_dict, all but the settings of the optimizer's groups, which stay as
        this run's config has them. Into the tensors that are there: a recorded step knows no other.

        Raises:
            UsageError: the state is of another network; names `origin`, where it came from.
        """
        weights = self._cut(state["model"])
        load_weights(self.model, weights, origin)
        for name, parameter in self.model.named_parameters():
            if parameter in self.network.masters:
                self.network.masters[parameter].copy_(weights[name])
        velocities = self._by_parameter(state["optimizer"]["state"], self._cut)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for i, of in velocities.items():
            self.optimizer.velocity(parameters[i]).copy_(of["velocity"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])

    def _join(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return state if self.group is None else join_state(state, self.network.rows, self.group)

    def _cut(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return state if self.group is None else cut_state(state, self.network.rows, self.group)

    def _by_parameter(
        self,
        state: dict[int, dict[str, Tensor]],
        change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    ) -> dict[int, dict[str, Tensor]]:
        """The optimizer's state, whose keys are numbers, changed as what bears the names."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        order = [names[p] for group in self.optimizer.param_groups for p in group["params"]]
        kinds = {kind for of in state.values() for kind in of}
        changed = {
            kind: change({order[i]: of[kind] for i, of in state.items()}) for kind in sorted(kinds)
        }
        return {i: {kind: changed[kind][order[i]] for kind in changed} for i in state}


def parameter_groups(
    model: AlexNet, config: TrainConfig, device: torch.device
) -> list[dict[str, Any]]:
    """The parameters by the rate they take (the fields of `Rates`), each with its decay.

    Batch norm's scales and shifts count as biases. `lr` is a tensor on the device, so that a new
    rate needs no new compilation.
    """
    conv1 = next(module for name, module in model.named_layers() if name == "conv1")
    groups: dict[str, list[nn.Parameter]] = {
        "weights": [], "biases": [], "conv1_weights": [], "conv1_biases": []
    }  # fmt: skip
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            kind = "weights" if parameter.ndim > 1 else "biases"
            groups[f"conv1_{kind}" if module is conv1 else kind].append(parameter)
    return [
        {
            "name": name,
            "params": parameters,
            "lr": torch.zeros((), device=device),
            "weight_decay": (
                config.weight_decay if name.endswith("weights") or config.bias_decay else 0.0
            ),
        }
        for name, parameters in groups.items()
        if parameters
    ]

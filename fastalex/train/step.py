"""One training step: forward, loss, backward, update."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastalex.model import AlexNet
from fastalex.train.build import load_weights
from fastalex.train.config import TrainConfig
from fastalex.train.device import arithmetic
from fastalex.train.optimizer import MomentumSGD
from fastalex.train.schedule import Rates


class TrainStep:
    """Holds the model (on its device), the optimizer and, for fp16, the loss scaler."""

    def __init__(self, model: AlexNet, config: TrainConfig, device: torch.device) -> None:
        self.model, self.config, self.device = model, config, device
        self.optimizer = MomentumSGD(
            parameter_groups(model, config, device), momentum=config.momentum
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        compiled = config.compile
        self._loss = torch.compile(self._forward, fullgraph=True) if compiled else self._forward
        # The scaler wraps `optimizer.step` itself, so in fp16 the update is not compiled.
        compiled = compiled and not self.scaler.is_enabled()
        self._update = torch.compile(self.optimizer.step) if compiled else self.optimizer.step

    def __call__(self, images: Tensor, labels: Tensor, rates: Rates) -> Tensor:
        """Train on (B, 3, S, S) float images and (B,) int64 labels; returns the mean loss."""
        for group in self.optimizer.param_groups:
            group["lr"].fill_(getattr(rates, group["name"]))
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(images, labels)
        self.scaler.scale(loss).backward()
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self._update()
        return loss.detach()

    def is_finite(self) -> bool:
        """Whether every parameter is. Waits for the device."""
        norms = [parameter.detach().norm() for parameter in self.model.parameters()]
        return bool(torch.stack(norms).sum().isfinite())

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], origin: Path) -> None:
        """Take over a state_dict; the settings of the groups stay as this run's config has them.

        Raises:
            UsageError: the state is of another network; names `origin`, where it came from.
        """
        load_weights(self.model, state["model"], origin)
        ours = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, settings in zip(self.optimizer.param_groups, ours, strict=True):
            group.update(settings)
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])

    def _forward(self, images: Tensor, labels: Tensor) -> Tensor:
        with arithmetic(self.device, self.config.precision):
            logits = self.model(images)
            return F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)


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

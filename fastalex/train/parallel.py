"""How a training step is shared among ranks: one process, towers, data or hybrid parallel.

For `fastalex.train.step`. Each way is a `Network`: what this rank trains, the loss of a batch, and
what is left to do to the gradients after the backward. docs/two-gpus.md has what each exchanges.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket  # pyright: ignore[reportPrivateImportUsage]
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from fastalex.model import AlexNet
from fastalex.model.dropout import KeyedDropout, key_dropouts
from fastalex.model.exchange import Group, gather_rows
from fastalex.model.shared_norm import share_norms
from fastalex.model.towers import COMPILE_OPTIONS, Share
from fastalex.train.config import TrainConfig
from fastalex.train.device import arithmetic
from fastalex.train.modes import Mode, micro_batches
from fastalex.train.working_weights import halve

BUCKET_MB = 25
"""DistributedDataParallel's bucket. It never divides a parameter, so at full width the buckets are
fc8 (16 MB in float32), fc7 (67), fc6 (151) and all convolutions (9): the three that matter leave as
soon as each is there, and the convolutions' backward, most of the step, hides them."""


class Network:
    """A way to share a step.

    Args:
        model: the whole network on its device, the same on all ranks; taken over.
        key: (2,) int64 tensor on the device: seed and step of the dropout.
    """

    rows: dict[str, int]
    """`fastalex.model.shares.Rows`: what this rank has only a share of."""
    masters: dict[nn.Parameter, Tensor]
    """Of `fastalex.train.working_weights`: what the optimizer is to update."""

    def __init__(self, model: AlexNet, config: TrainConfig, key: Tensor) -> None:
        self.config, self.device, self.rows = config, key.device, {}
        self.model = key_dropouts(model, key)
        self.masters = {}
        self._run: Callable[..., Any]

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss to go backward from, and a number that is finite unless this rank is to blame.

        Args:
            images, labels: `own_images` of them, this rank's part of the batch.
        """
        return self._run(images, labels)

    def finish_gradients(self) -> None:
        """After the backward: makes each rank's gradients those of the whole batch."""

    def _round_weights(self) -> None:
        """To working weights, once `model` is what this rank trains; fp16's scaler takes none."""
        if self.config.precision == "bf16":
            self.masters = halve(self.model)

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)

    def _compile(self, function: Any, **options: Any) -> Callable[..., Any]:
        if not self.config.compile:
            return function
        return torch.compile(function, fullgraph=True, **options)


class One(Network):
    """One process: the whole network."""

    def __init__(self, model: AlexNet, config: TrainConfig, key: Tensor) -> None:
        super().__init__(model, config, key)
        self._round_weights()
        self._run = self._compile(self._forward)

    def _forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with arithmetic(self.device, self.config.precision):
            loss = self._cross_entropy(self.model(images), labels)
        return loss, loss.detach()


class Data(Network):
    """Every rank the whole network on its slice of the batch; gradients averaged while they come.

    In half precision the gradients travel in bfloat16. Compiled are the convolutional and the fully
    connected part, each for itself: so the gradients of fc6 to fc8, 96 % of all, are there, and on
    their way, before the convolutions' backward begins.
    """

    def __init__(self, model: AlexNet, config: TrainConfig, key: Tensor, group: Group) -> None:
        share_norms(model, group)
        torch._dynamo.config.optimize_ddp = False  # it would divide the two parts by its buckets
        super().__init__(model, config, key)
        self._round_weights()
        for module in self.model.modules():
            if isinstance(module, KeyedDropout):
                module.first_rows = (group.rank * config.batch_size // group.size,)
        self._head = self._compile(self._classify)
        self._features = self._compile(self._convolve)
        self._run = DistributedDataParallel(
            _Calls(self.model, self._in_parts),
            bucket_cap_mb=BUCKET_MB,
            gradient_as_bucket_view=True,
        )
        if config.precision != "fp32":
            self._run.register_comm_hook(group.size, _average_in_bf16)

    def _in_parts(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss = self._head(self._features(images), labels)
        return loss, loss.detach()

    def _convolve(self, images: Tensor) -> Tensor:
        with arithmetic(self.device, self.config.precision):
            return self.model.avgpool(self.model.features(images)).flatten(1)

    def _classify(self, features: Tensor, labels: Tensor) -> Tensor:
        with arithmetic(self.device, self.config.precision):
            return self._cross_entropy(self.model.classifier(features), labels)


class Shared(Network):
    """`towers` and `hybrid`: every rank its share of the network, see `fastalex.model.towers`."""

    def __init__(
        self, model: AlexNet, config: TrainConfig, key: Tensor, group: Group, mode: Mode
    ) -> None:
        super().__init__(model, config, key)
        self.group, self.towers = group, mode == "towers"
        if not self.towers:
            share_norms(model, group)
        self._share = Share(
            self.model, group, towers=self.towers, batch_size=config.batch_size,
            micro_batches=micro_batches(config, mode),
        )  # fmt: skip
        self.rows = self._share.rows
        self._round_weights()
        self._run = self._compile(self._forward, options=COMPILE_OPTIONS)

    def _forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if not self.towers:
            labels = gather_rows(labels, self.group)
        with arithmetic(self.device, self.config.precision):
            logits, health = self._share(images)
            return self._cross_entropy(logits, labels), health

    def finish_gradients(self) -> None:
        """The convolutions that every rank holds: each has the gradient of its own images' part.

        9 MB at full width, in one message. It waits for conv1's backward, the last, in any case.
        """
        whole = [p for n, p in self.model.named_parameters() if n not in self.rows]
        gradients = [p.grad for p in whole if p.grad is not None]
        if not gradients:
            return
        wide = torch.promote_types(gradients[0].dtype, torch.float32)
        flat = torch.cat([gradient.flatten().to(wide) for gradient in gradients])
        dist.all_reduce(flat)
        totals = flat.split([gradient.numel() for gradient in gradients])
        for gradient, total in zip(gradients, totals, strict=True):
            gradient.copy_(total.view_as(gradient))


class _Calls(nn.Module):
    """`function` as the forward of a module that has `model`'s parameters."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self._function = model, function

    def forward(self, *args: Any) -> Any:
        return self._function(*args)


def _average_in_bf16(ranks: int, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """A hook of DistributedDataParallel; torch's own of this name refuses all but NCCL."""
    total = bucket.buffer().to(torch.bfloat16).div_(ranks)
    work: Any = dist.all_reduce(total, async_op=True)
    return work.get_future().then(lambda done: bucket.buffer().copy_(done.value()[0]))


def share_out(
    model: AlexNet, config: TrainConfig, key: Tensor, group: Group | None, mode: Mode
) -> Network:
    """The `Network` of a mode; `group` may be None for one process."""
    if mode == "one" or group is None:
        return One(model, config, key)
    if mode == "data":
        return Data(model, config, key, group)
    return Shared(model, config, key, group, mode)

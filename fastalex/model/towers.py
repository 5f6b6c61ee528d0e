"""One rank's share of an AlexNet, run in micro-batches with the exchanges between ranks.

For `fastalex.train`. Two ways to share a network out, both with the one-process network's numbers:

    towers   as in 2012 (paper, section 3.5): two ranks, each with one tower's convolutions and half
             of fc6, fc7 and fc8, both on the same images. Exchanged: the channels before the
             convolution that sees both towers and before each fully connected layer.
    hybrid   "one weird trick" (Krizhevsky 2014, arXiv 1404.5997): any number of ranks, each with
             all convolutions on images of its own, and its share of fc6, fc7, fc8 on all images.
             Exchanged: the images' features before fc6, then the units.

A network is segments with an exchange before each but the first. The batch goes through in
micro-batches, and the order of the program is the schedule (A, B: segments; 0, 1: micro-batches):

    A0 send A1 send  receive B0 send  receive B1 send ...

so what 0 sent travels while A1 computes, and in the backward, which runs the same order from its
end, likewise. No parameter is held twice but hybrid's convolutions, whose gradients add up.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastalex.model import exchange
from fastalex.model.alexnet import AlexNet
from fastalex.model.dropout import KeyedDropout
from fastalex.model.exchange import Group
from fastalex.model.fused import FusedSequential
from fastalex.model.shares import cut_modules
from fastalex.model.variants import Conv, Dropout, Lrn, Variant

COMPILE_OPTIONS = {"reorder_for_locality": False, "reorder_for_peak_memory": False}
"""For torch.compile of a `Share`: what keeps the order of the program."""


def has_towers(variant: Variant) -> bool:
    """Whether two ranks can hold a tower each: nothing but one convolution and the fully connected
    layers looks from one tower into the other."""
    _, *groups = [layer.groups for layer in variant.features if isinstance(layer, Conv)]
    norms = [layer for layer in variant.features if isinstance(layer, Lrn)]
    drops_first = isinstance(variant.classifier[0], Dropout)
    return groups.count(1) == 1 and all(n.groups == 2 for n in norms) and not drops_first


class Share(nn.Module):
    """A rank's share of `model`, which it takes over and cuts: (b, 3, H, W) to (B, classes).

    B is the whole batch. With `towers` b is B, the same images on both ranks; else b is B / ranks,
    this rank's slice, in order of rank. Returned are the logits of the whole batch on every rank,
    and the sum of what the rank itself sent in the first exchange: what is not finite there came
    from this rank. The gradient of a loss that all ranks compute of these logits is exact for what
    is in `rows`; the rest (hybrid's convolutions) has the rank's images' part of it.

    Args:
        model: the whole network, the same on all ranks; its dropouts are `KeyedDropout`s.
        batch_size: B.
        micro_batches: divides b.
    """

    def __init__(
        self,
        model: AlexNet,
        group: Group,
        *,
        towers: bool,
        batch_size: int,
        micro_batches: int,
    ) -> None:
        super().__init__()
        self.model, self.group, self.towers = model, group, towers
        self.classes = model.get_parameter("classifier.6.bias").numel()
        self.own_images = batch_size if towers else batch_size // group.size
        self.micro_batches = micro_batches
        starts = _starts(model, towers)
        held = ("features", "classifier") if towers else ("classifier",)
        self.rows = cut_modules(
            {f"{name}.{i}": m for name in held for i, m in enumerate(getattr(model, name))}, group
        )
        # Not registered: they share `model`'s layers and differ in their dropout's place alone.
        self._segments = [self._build(starts, m) for m in range(micro_batches)]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = list(images.chunk(self.micro_batches))
        sent: list[exchange.Sent] = []
        health = images.new_zeros(())
        for number in range(len(self._segments[0])):
            for m, segments in enumerate(self._segments):
                whole = exchange.receive(sent[m]) if number else x[m]
                x[m] = segments[number](whole)
                sent[m : m + 1] = [self._send(x[m], number)]
            if number == 0:
                health = torch.stack([s.own.detach().float().sum() for s in sent]).sum()
        return self._in_order([exchange.receive_logits(s, self.classes) for s in sent]), health

    def _send(self, x: Tensor, number: int) -> exchange.Sent:
        if number == len(self._segments[0]) - 1:
            return exchange.send_logits(x, self.group, self.classes)
        return exchange.send(x, self.group, rows=not self.towers and number == 0)

    def _in_order(self, logits: Sequence[Tensor]) -> Tensor:
        """As the images stand in the batch: with hybrid, a micro-batch has some of each rank's."""
        if self.towers or self.micro_batches == 1:
            return torch.cat(list(logits))
        by_rank = [each.reshape(self.group.size, -1, self.classes) for each in logits]
        return torch.cat(by_rank, 1).flatten(0, 1)

    def _build(self, starts: list[int], m: int) -> list[FusedSequential]:
        """The segments as micro-batch `m` runs them."""
        layers, segments = _chain(self.model), []
        for first, last in itertools.pairwise([*starts, len(layers)]):
            modules, unit = [], 0
            for layer in layers[first:last]:
                if isinstance(layer, nn.Linear):
                    unit = self.group.rank * layer.out_features
                if isinstance(layer, KeyedDropout):
                    layer = layer.placed(self._first_rows(m, everyone=first > 0), unit)
                modules.append(layer)
            segments.append(FusedSequential(*modules))
        return segments

    def _first_rows(self, m: int, everyone: bool) -> tuple[int, ...]:
        """Where the images of micro-batch `m` stand in the whole batch: this rank's own, or, once
        the ranks' images have met, everyone's."""
        each = self.own_images // self.micro_batches
        if self.towers:
            return (m * each,)
        ranks = range(self.group.size) if everyone else [self.group.rank]
        first_rows = [rank * self.own_images + m * each for rank in ranks]
        follow = all(b - a == each for a, b in itertools.pairwise(first_rows))
        return tuple(first_rows[:1] if follow else first_rows)


def _chain(model: AlexNet) -> list[nn.Module]:
    return [*model.features, model.avgpool, nn.Flatten(1), *model.classifier]


def _starts(model: AlexNet, towers: bool) -> list[int]:
    """Places in the chain of the whole `model` where a segment begins."""
    starts = [0]
    for i, layer in enumerate(_chain(model)):
        joins = isinstance(layer, nn.Conv2d) and towers and layer.groups == 1 and i > 0
        if joins or isinstance(layer, nn.Linear):
            starts.append(i)
    return starts

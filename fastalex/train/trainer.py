"""The training loop. For `fastalex.train.start.train`.

A run can stop anywhere: its last checkpoint holds all that the next step depends on (weights,
velocity, rates, place in the data; all draws follow from seed and step), so that a resumed run ends
with the weights of one that never stopped, bit for bit on one CPU. Checkpoints come after each
pass, every ten minutes, and at SIGINT or SIGTERM. With several ranks all run this loop, meet at the
beginning of each step to agree on what is due, and rank 0 alone writes, what one process would.
"""

import contextlib
import dataclasses
import math
import signal
import time
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch

from fastalex import files
from fastalex.data.pipeline import Batch, eval_batches, steps_per_epoch, train_batches
from fastalex.data.shards import Dataset
from fastalex.errors import RunError, Stopped, UsageError
from fastalex.train import checkpoint
from fastalex.train.build import WEIGHTS, build_model, input_format
from fastalex.train.config import TrainConfig
from fastalex.train.distributed import World
from fastalex.train.evaluation import Metrics, evaluate
from fastalex.train.log import RunLog
from fastalex.train.meter import Meter
from fastalex.train.modes import mode_of
from fastalex.train.schedule import Schedule
from fastalex.train.signals import StopOnSignal
from fastalex.train.step import TrainStep
from fastalex.train.watch import Watch

SECONDS_BETWEEN_CHECKPOINTS = 600.0


class Trainer:
    """One run: what it is made of, and what happens when."""

    def __init__(self, config: TrainConfig, dataset: Dataset, run: Path, world: World) -> None:
        self.config, self.dataset, self.run, self.world = config, dataset, run, world
        self.device = world.device(config.device, config.gpus)
        torch.backends.cudnn.benchmark = True  # shapes stay
        self.steps_per_epoch = steps_per_epoch(len(dataset.train), config.batch_size)
        steps = config.epochs * self.steps_per_epoch
        self.total_steps = min(steps, config.steps or steps)
        self.format = input_format(config)
        self.mode = mode_of(config)
        model = build_model(config, len(dataset.classes)).to(self.device)
        self.train_step = TrainStep(model, config, self.device, world.group, self.mode)
        self.schedule = Schedule(config)
        self.step = 0
        self.metrics: Metrics | None = None
        self.validated_at: int | None = None
        self.meter = Meter(config.batch_size, self.steps_per_epoch, world)
        self.saved_at = time.monotonic()

    def run_to_end(self, watch: Watch) -> Metrics:
        self.watch = watch
        main, total = self.world.main, self.total_steps
        self.log = RunLog(self.run, step=self.step, total_steps=total, main=main)
        try:
            with StopOnSignal() as stop, contextlib.closing(self._batches()) as batches:
                while self.step < self.total_steps:
                    watch.at(f"the images of step {self.step + 1}")
                    with self.train_step.inputs.stream():
                        batch = next(batches)
                        self.train_step.inputs.put(batch.images, batch.labels, batch.changes)
                    watch.at(f"step {self.step + 1}")
                    signum, save = self._agree(stop.signum, batch)
                    if signum:
                        self._stop(signum)
                    self._advance(save)
                if self.validated_at != self.step:
                    self._save()  # what is trained is safe before the last validation begins
                    self._validate()
                    self._save()
        finally:
            self.log.close()
        assert self.metrics is not None
        return self.metrics

    def _agree(self, signum: int | None, batch: Batch) -> tuple[int, bool]:
        """The signal that some rank has got, or 0, and whether rank 0 finds a checkpoint due.

        Raises:
            RunError: two towers have different images, which would go unseen.
        """
        due = self.world.main and time.monotonic() - self.saved_at > SECONDS_BETWEEN_CHECKPOINTS
        seen = zlib.crc32(batch.ids.tobytes()) if self.mode == "towers" else 0
        flags = torch.tensor([signum or 0, int(due), seen, -seen])
        first, save, most, least = self.world.largest(flags).tolist()
        if most != -least:
            raise RunError(
                f"the towers have different images at step {self.step + 1}: --skip-bad replaced "
                "one on one rank alone; see its warning, and look after that disk"
            )
        return first, bool(save)

    def state_dict(self) -> dict[str, Any]:
        return {
            **self.train_step.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
            "metrics": None if self.metrics is None else dataclasses.asdict(self.metrics),
            "validated_at": self.validated_at,
            "config": self.config.to_json(),
            "data": self.dataset.fingerprint,
            "classes": list(self.dataset.classes),
            "mean_image": torch.from_numpy(self.dataset.mean_image),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["data"] != self.dataset.fingerprint:
            raise UsageError(
                f"{self.run} was trained on other images than {self.dataset.root} holds now; "
                "give --data the dataset it was started with"
            )
        self.train_step.load_state_dict(state, self.run / checkpoint.LAST)
        self.schedule.load_state_dict(state["schedule"])
        self.step = state["step"]
        if self.step > self.total_steps:
            raise UsageError(
                f"{self.run} has made {self.step} steps already, more than the {self.total_steps} "
                "asked for; raise --steps or --epochs"
            )
        self.metrics = None if state["metrics"] is None else Metrics(**state["metrics"])
        self.validated_at = state["validated_at"]

    def _batches(self) -> Generator[Batch, None, None]:
        epoch, step = divmod(self.step, self.steps_per_epoch)
        whole = self.mode == "towers"  # both towers see every image
        return train_batches(
            self.dataset,
            self.format,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            device=self.device,
            epoch=epoch,
            step=step,
            lighting=lambda epoch: self.config.lighting * self.schedule.rates(epoch).lighting,
            lighting_shrink=self.config.lighting_shrink,
            flip=self.config.flip,
            skip_bad=self.config.skip_bad,
            pixels=self.train_step.inputs.wants_pixels,
            rank=0 if whole else self.world.rank,
            world_size=1 if whole else self.world.size,
        )

    def _advance(self, save: bool) -> None:
        """One step, and what is due after it."""
        rates = self.schedule.rates(self.step / self.steps_per_epoch)
        numbers = self.train_step.run(rates, self.step)
        self.step += 1
        self.meter.add(self.step, rates.weights, *numbers)
        if self.step % self.config.log_every == 0:
            self._fetch()
        if self.step % self.steps_per_epoch == 0:
            self._validate()
            self._save()
        elif save:
            self._save()

    def _fetch(self) -> None:
        """Log the losses that are due; the first that is not finite ends the run."""
        lines = self.meter.fetch()
        bad = next((x for x in lines if not math.isfinite(x["loss"])), None)
        good = lines if bad is None else lines[: lines.index(bad)]
        if good:
            self.log.training(good)
        if bad is not None:
            self._not_finite(
                f"the loss is {bad['loss']}", bad["step"], bad["lr"], self.meter.to_blame
            )

    def _not_finite(self, what: str, step: int, lr: float, ranks: list[int]) -> NoReturn:
        last = self.run / checkpoint.LAST
        good = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was due"
        where = (
            f" on rank {' and '.join(map(str, ranks))}" if self.world.size > len(ranks) > 0 else ""
        )
        raise RunError(
            f"{what}{where} at step {step}, learning rate {lr:g}; {good}; "
            "try a lower --lr, or --precision fp32"
        )

    def _validate(self) -> None:
        self._fetch()
        ranks, precision = self.world.size, self.config.precision
        batches = eval_batches(
            self.dataset, self.format, batch_size=-(-self.config.batch_size // ranks) * ranks,
            device=self.device, rank=self.world.rank, world_size=ranks,
        )  # fmt: skip
        metrics = evaluate(
            self.train_step.whole_model(), self.watch.along(batches), device=self.device,
            precision=precision, world=self.world,
        )  # fmt: skip
        if not math.isfinite(metrics.loss):
            self._not_finite(f"the validation loss is {metrics.loss}", self.step, self._lr(), [])
        self.metrics, self.validated_at = metrics, self.step
        line = {
            "step": self.step,
            "epoch": self.meter.passes(self.step),
            "val_loss": metrics.loss,
            "top1_error": metrics.top1_error,
            "top5_error": metrics.top5_error,
        }
        self.log.validation(line, self.config.epochs)
        if self.step % self.steps_per_epoch == 0 and self.schedule.observe(metrics.top1_error):
            self.log.say(f"validation error stopped improving: the rate is now {self._lr():g}")
        self.meter.restart_clock()

    def _save(self) -> None:
        """Write the weights, then the checkpoint that says how far they are trained."""
        self._fetch()
        self.watch.at(f"the checkpoint of step {self.step}")
        finite = self.world.gather(self.train_step.is_finite())
        if not all(finite):
            sick = [rank for rank, good in enumerate(finite) if not good]
            self._not_finite("the weights are not finite", self.step, self._lr(), sick)
        state = self.state_dict()

        def write() -> None:
            dense = {k: v.contiguous() for k, v in state["model"].items()}
            facts = {"format": "pt"}  # of one entry: safetensors writes several in any order
            files.write(self.run / WEIGHTS, safetensors.torch.save(dense, facts), checkpoint.GO_ON)
            checkpoint.save(self.run, state)

        self.world.first(write)
        self.saved_at = time.monotonic()
        self.meter.restart_clock()

    def _stop(self, signum: int) -> None:
        self._save()
        raise Stopped(
            f"stopped by {signal.Signals(signum).name} at step {self.step}, saved; "
            f"go on with: fastalex-train --resume {self.run}",
            signum,
        )

    def _lr(self) -> float:
        """The weights' rate of the step to come."""
        return self.schedule.rates(self.step / self.steps_per_epoch).weights

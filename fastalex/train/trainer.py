"""The training loop: from a TrainConfig to a run directory with a trained network.

A run can stop anywhere: its last checkpoint holds all that the next step depends on (weights,
velocity, rates, random states, place in the data), so that a resumed run ends with the weights of
one that never stopped, bit for bit on one CPU. Checkpoints come after each pass, every ten minutes,
and at SIGINT or SIGTERM.
"""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Generator
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
from fastalex.train.device import pick_device
from fastalex.train.evaluate import Metrics, evaluate
from fastalex.train.log import RunLog
from fastalex.train.meter import Meter
from fastalex.train.rundir import alone, check_new, check_resumed, write_config
from fastalex.train.schedule import Schedule
from fastalex.train.signals import StopOnSignal
from fastalex.train.step import TrainStep

SECONDS_BETWEEN_CHECKPOINTS = 600.0


def train(
    config: TrainConfig,
    dataset: Dataset,
    run: Path,
    *,
    resume: bool = False,
    announce: Callable[[], object] = lambda: None,
) -> Metrics:
    """Train on `dataset`, into the run directory `run`.

    Args:
        run: a directory that is new or empty; with `resume` one that a run was started in, which
            goes on from its last checkpoint, or from the beginning where it has none yet.
        announce: called once everything has been found in order, before the first step.

    Returns: the metrics of the last validation.

    Raises:
        UsageError: settings that no run can have, `run` not as said, a checkpoint of other data.
        RunError: a loss that is not finite, a full disk, an image that cannot be decoded.
        Stopped: SIGINT or SIGTERM, after saving.
    """
    config.check()
    if resume:
        check_resumed(config, run)
    else:
        check_new(run)
    trainer = _Trainer(config, dataset, run)  # first: what cannot run leaves no directory behind
    run.mkdir(parents=True, exist_ok=True)
    with alone(run):
        state = checkpoint.load(run) if resume else None
        if state is not None:
            trainer.load_state_dict(state)
        write_config(config, run)
        announce()
        return trainer.run_to_end()


class _Trainer:
    """One run: what it is made of, and what happens when."""

    def __init__(self, config: TrainConfig, dataset: Dataset, run: Path) -> None:
        self.config, self.dataset, self.run = config, dataset, run
        self.device = pick_device(config.device, config.gpus)
        self.steps_per_epoch = steps_per_epoch(len(dataset.train), config.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        if config.steps is not None:
            self.total_steps = min(self.total_steps, config.steps)
        self.format = input_format(config)
        model = build_model(config, len(dataset.classes)).to(self.device)
        self.train_step = TrainStep(model, config, self.device)
        self.schedule = Schedule(config)
        self.step = 0
        self.metrics: Metrics | None = None
        self.validated_at: int | None = None
        self.meter = Meter(config.batch_size, self.steps_per_epoch)
        self.saved_at = time.monotonic()

    def run_to_end(self) -> Metrics:
        self.log = RunLog(self.run, step=self.step, total_steps=self.total_steps)
        try:
            with StopOnSignal() as stop, contextlib.closing(self._batches()) as batches:
                while self.step < self.total_steps and stop.signum is None:
                    self._advance(next(batches))
                if stop.signum is not None:
                    self._stop(stop.signum)
                if self.validated_at != self.step:
                    self._save()  # what is trained is safe before the last validation begins
                    self._validate()
                    self._save()
        finally:
            self.log.close()
        assert self.metrics is not None
        return self.metrics

    def state_dict(self) -> dict[str, Any]:
        return {
            **self.train_step.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
            "metrics": None if self.metrics is None else dataclasses.asdict(self.metrics),
            "validated_at": self.validated_at,
            "random": checkpoint.random_states(),
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
        checkpoint.set_random_states(state["random"])

    def _batches(self) -> Generator[Batch, None, None]:
        epoch, step = divmod(self.step, self.steps_per_epoch)
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
        )

    def _advance(self, batch: Batch) -> None:
        """One step, and what is due after it."""
        rates = self.schedule.rates(self.step / self.steps_per_epoch)
        loss = self.train_step(batch.images, batch.labels, rates)
        self.step += 1
        self.meter.add(self.step, rates.weights, loss)
        if self.step % self.config.log_every == 0:
            self._fetch()
        if self.step % self.steps_per_epoch == 0:
            self._validate()
            self._save()
        elif time.monotonic() - self.saved_at > SECONDS_BETWEEN_CHECKPOINTS:
            self._save()

    def _fetch(self) -> None:
        """Log the losses that are due; the first that is not finite ends the run."""
        lines = self.meter.fetch()
        bad = next((x for x in lines if not math.isfinite(x["loss"])), None)
        good = lines if bad is None else lines[: lines.index(bad)]
        if good:
            self.log.training(good)
        if bad is not None:
            self._not_finite(f"the loss is {bad['loss']}", bad["step"], bad["lr"])

    def _not_finite(self, what: str, step: int, lr: float) -> NoReturn:
        last = self.run / checkpoint.LAST
        good = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was due"
        raise RunError(
            f"{what} at step {step}, learning rate {lr:g}; {good}; "
            "try a lower --lr, or --precision fp32"
        )

    def _validate(self) -> None:
        self._fetch()
        batches = eval_batches(
            self.dataset, self.format, batch_size=self.config.batch_size, device=self.device
        )
        model, precision = self.train_step.model, self.config.precision
        metrics = evaluate(model, batches, device=self.device, precision=precision)
        if not math.isfinite(metrics.loss):
            self._not_finite(f"the validation loss is {metrics.loss}", self.step, self._lr())
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
        if not self.train_step.is_finite():
            self._not_finite("the weights are not finite", self.step, self._lr())
        weights = {k: v.contiguous() for k, v in self.train_step.model.state_dict().items()}
        facts = {"format": "pt"}  # of one entry: safetensors writes several in any order
        files.write(self.run / WEIGHTS, safetensors.torch.save(weights, facts), checkpoint.GO_ON)
        checkpoint.save(self.run, self.state_dict())
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

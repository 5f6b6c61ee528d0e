"""The training loop: from a TrainConfig to a run directory with a trained network.

A run can stop anywhere: its last checkpoint holds all that the next step depends on (weights,
velocity, rates, random states, place in the data), so that a resumed run ends with the weights of
one that never stopped, bit for bit on one CPU. Checkpoints come after each pass, every ten minutes,
and at SIGINT or SIGTERM.
"""

import dataclasses
import math
import signal
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fastalex import files
from fastalex.data.pipeline import eval_batches, steps_per_epoch, train_batches
from fastalex.data.shards import Dataset
from fastalex.errors import RunError, Stopped, UsageError
from fastalex.train import checkpoint
from fastalex.train.build import WEIGHTS, build_model, input_format
from fastalex.train.config import TrainConfig, write_config
from fastalex.train.device import pick_device
from fastalex.train.evaluate import Metrics, evaluate
from fastalex.train.log import RunLog
from fastalex.train.schedule import Schedule
from fastalex.train.signals import StopOnSignal
from fastalex.train.step import TrainStep

SECONDS_BETWEEN_CHECKPOINTS = 600.0


def train(config: TrainConfig, dataset: Dataset, run: Path, *, resume: bool = False) -> Metrics:
    """Train on `dataset`, into the run directory `run`.

    Args:
        run: a directory that is new or empty; with `resume` one that a run was started in, which
            goes on from its last checkpoint, or from the beginning where it has none yet.

    Returns: the metrics of the last validation.

    Raises:
        UsageError: settings that no run can have, `run` not as said, a checkpoint of other data.
        RunError: a loss that is not finite, a full disk, an image that cannot be decoded.
        Stopped: SIGINT or SIGTERM, after saving.
    """
    config.check()
    trainer = _Trainer(config, dataset, run)  # first: what cannot run leaves no directory behind
    if not resume:
        _claim(run)
    state = checkpoint.load(run) if resume else None
    if state is not None:
        trainer.load_state_dict(state)
    write_config(config, run)
    return trainer.run_to_end()


def _claim(run: Path) -> None:
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        hint = f"; to go on with it: --resume {run}" if (run / "config.json").exists() else ""
        raise UsageError(f"--out {run}: is there already and not empty; choose another{hint}")
    run.mkdir(parents=True, exist_ok=True)


@dataclass(slots=True)
class _Pending:
    """A step whose loss is still on the device."""

    step: int
    lr: float
    loss: Tensor


class _Trainer:
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
        self.pending: deque[_Pending] = deque()
        self.fetched_at = self.saved_at = time.monotonic()

    def run_to_end(self) -> Metrics:
        self.log = RunLog(self.run, step=self.step, total_steps=self.total_steps)
        batches = self._batches()
        try:
            with StopOnSignal() as stop:
                while self.step < self.total_steps and stop.signum is None:
                    self._advance(next(batches))
                if stop.signum is not None:
                    self._stop(stop.signum)
            if self.metrics is None or self.step % self.steps_per_epoch:
                self._validate()
                self._save()
        finally:
            batches.close()
            self.log.close()
        assert self.metrics is not None
        return self.metrics

    def state_dict(self) -> dict[str, Any]:
        return {
            **self.train_step.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
            "metrics": None if self.metrics is None else dataclasses.asdict(self.metrics),
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
        self.metrics = None if state["metrics"] is None else Metrics(**state["metrics"])
        checkpoint.set_random_states(state["random"])

    def _batches(self) -> Any:
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

    def _advance(self, batch: Any) -> None:
        """One step, and what is due after it."""
        rates = self.schedule.rates(self.step / self.steps_per_epoch)
        loss = self.train_step(batch.images, batch.labels, rates)
        self.step += 1
        self.pending.append(_Pending(self.step, rates.weights, loss))
        if self.step % self.config.log_every == 0:
            self._fetch()
        if self.step % self.steps_per_epoch == 0:
            self._validate()
            self._save()
        elif time.monotonic() - self.saved_at > SECONDS_BETWEEN_CHECKPOINTS:
            self._save()

    def _fetch(self) -> None:
        """Bring the pending losses over from the device (the only wait for it) and log them."""
        if not self.pending:
            return
        losses = torch.stack([entry.loss for entry in self.pending]).tolist()
        now = time.monotonic()
        rate = len(losses) * self.config.batch_size / max(now - self.fetched_at, 1e-9)
        self.fetched_at = now
        lines = [
            {
                "step": entry.step,
                "epoch": self._epoch(entry.step),
                "loss": loss,
                "lr": entry.lr,
                "images_per_s": round(rate, 1),
            }
            for entry, loss in zip(self.pending, losses, strict=True)
        ]
        self.pending.clear()
        bad = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(lines))
        if lines[:bad]:
            self.log.training(lines[:bad])
        if bad < len(lines):
            self._not_finite(lines[bad])

    def _not_finite(self, line: dict[str, Any]) -> None:
        good = self.run / checkpoint.LAST
        raise RunError(
            f"the loss is {line['loss']} at step {line['step']}, learning rate {line['lr']:g}; "
            + (
                f"the last good checkpoint is {good}"
                if good.exists()
                else "no checkpoint was due yet"
            )
            + "; try a lower --lr, or --precision fp32"
        )

    def _validate(self) -> None:
        self._fetch()
        batches = eval_batches(
            self.dataset, self.format, batch_size=self.config.batch_size, device=self.device
        )
        model, precision = self.train_step.model, self.config.precision
        self.metrics = evaluate(model, batches, device=self.device, precision=precision)
        line = {
            "step": self.step,
            "epoch": self._epoch(self.step),
            "val_loss": self.metrics.loss,
            "top1_error": self.metrics.top1_error,
            "top5_error": self.metrics.top5_error,
        }
        self.log.validation(line, self.config.epochs)
        if self.step % self.steps_per_epoch == 0 and self.schedule.observe(self.metrics.top1_error):
            lr = self.schedule.rates(self.step / self.steps_per_epoch).weights
            self.log.say(f"validation error stopped improving: learning rate is now {lr:g}")
        self.fetched_at = time.monotonic()

    def _save(self) -> None:
        self._fetch()
        checkpoint.save(self.run, self.state_dict())
        weights = {k: v.contiguous() for k, v in self.train_step.model.state_dict().items()}
        facts = {"variant": self.config.variant, "format": "pt"}
        files.write(self.run / WEIGHTS, safetensors.torch.save(weights, facts), checkpoint.GO_ON)
        self.fetched_at = self.saved_at = time.monotonic()

    def _stop(self, signum: int) -> None:
        self._save()
        raise Stopped(
            f"stopped by {signal.Signals(signum).name} at step {self.step}, saved; "
            f"go on with: fastalex-train --resume {self.run}",
            signum,
        )

    def _epoch(self, step: int) -> float:
        whole, rest = divmod(step, self.steps_per_epoch)
        return whole if rest == 0 else round(whole + rest / self.steps_per_epoch, 4)

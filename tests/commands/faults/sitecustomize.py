"""Breaks a rank of fastalex-train in which Python finds this file on PYTHONPATH.

For test_two_ranks_faults.py. FAULT is what to do and in which step, as "hang 8"; FAULT_RANK is the
rank that does it. A rank that torchrun starts once more is sound.
"""

import importlib.abc
import importlib.util
import os
import signal
import sys
import time

DEEDS = {
    "exit": lambda images: os._exit(7),
    "hang": lambda images: time.sleep(600),
    "kill": lambda images: os.kill(os.getpid(), signal.SIGKILL),
    "nan": lambda images: images.fill_(float("nan")),
    "pause": lambda images: time.sleep(1.5),
    "raise": lambda images: [][len(images)],
    "sigterm": lambda images: signal.raise_signal(signal.SIGTERM),
    "stop": lambda images: os.kill(os.getpid(), signal.SIGSTOP),
}


def break_step(module, deed: str, number: str) -> None:
    sound = module.TrainStep.run

    def broken(self, rates, step):
        if step + 1 == int(number):
            images, _ = self.inputs._batch
            DEEDS[deed](images)
        return sound(self, rates, step)

    module.TrainStep.run = broken


def hurry(module, seconds: str) -> None:
    module.SECONDS_TO_ANSWER = float(seconds)


class Breaker(importlib.abc.MetaPathFinder):
    """Changes a module of that name once it has been imported."""

    def __init__(self, name, change) -> None:
        self.name, self.change = name, change

    def find_spec(self, name, path, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module) -> None:
            load(module)
            self.change(module)

        spec.loader.exec_module = exec_module
        return spec


deed, number = os.environ.get("FAULT", "none 0").split()
again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
if os.environ.get("RANK") == os.environ.get("FAULT_RANK", "1") and not again:
    if deed == "hurry":
        sys.meta_path.insert(0, Breaker("fastalex.train.meeting", lambda m: hurry(m, number)))
    elif deed in DEEDS:
        change = lambda m: break_step(m, deed, number)  # noqa: E731
        sys.meta_path.insert(0, Breaker("fastalex.train.step", change))

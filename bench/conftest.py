"""What the benchmarks share: the session (rows, time), and what is said of the machine."""

from pathlib import Path

import pytest
import torch
from _machine import DEVICE, device_name, versions
from _session import Session


def pytest_addoption(parser) -> None:
    group = parser.getgroup("bench", "used by `python -m bench`")
    group.addoption("--rows", type=Path, help="add each row to this file as soon as it is there")
    group.addoption("--seconds", type=float, help="what may be taken; the rest is left out")
    group.addoption("--first", type=Path, help="the rows of the run's first process")


def pytest_report_header() -> str:
    return f"bench: {device_name()}, torch {torch.__version__}"


def pytest_benchmark_update_machine_info(machine_info: dict) -> None:
    for private in ("node", "release"):
        machine_info.pop(private, None)
    machine_info["cpu"].pop("flags", None)
    machine_info["device"] = device_name()
    machine_info["versions"] = versions()


@pytest.fixture(scope="session")
def session(request) -> Session:
    option = request.config.getoption
    torch._dynamo.config.recompile_limit = 64  # several providers share a forward function
    torch._dynamo.config.automatic_dynamic_shapes = False  # a run has one batch size
    torch.backends.cudnn.benchmark = True
    yield Session(option("--rows"), option("--seconds"), option("--first"))
    torch.backends.cudnn.benchmark = False


@pytest.fixture
def device() -> torch.device:
    return DEVICE

"""--parallel and --micro-batches auto: what is timed, and what is taken."""

from dataclasses import replace

import pytest

from fastalex.errors import UsageError
from fastalex.train import fastest as module
from fastalex.train.distributed import World
from fastalex.train.fastest import fastest
from fastalex.train.modes import micro_batches

from .conftest import SMALL

TWO = World(rank=0, size=2)
AUTO = replace(SMALL, gpus=2, parallel="auto", micro_batches="auto")


@pytest.fixture
def timed(monkeypatch):
    """Which ways were timed; `timed.seconds` says how long a step of each takes."""

    class Timed(list):
        seconds = {}  # noqa: RUF012 - one test's

    ways = Timed()

    def seconds(config, mode, num_classes, world):
        ways.append((mode, micro_batches(config, mode)))
        return ways.seconds.get(ways[-1], 1.0)

    monkeypatch.setattr(module, "_seconds", seconds)
    return ways


def test_every_way_is_timed_and_the_quickest_taken(timed):
    timed.seconds = {("hybrid", 2): 0.5, ("towers", 4): 0.75}
    config, said = fastest(AUTO, 3, TWO)
    shared = [(mode, parts) for mode in ("towers", "hybrid") for parts in (1, 2, 4)]
    assert sorted(timed) == sorted([*shared, ("data", 1)])
    assert (config.parallel, config.micro_batches) == ("hybrid", 2)
    assert said.startswith("timed, images/s: hybrid in 2 micro-batches 16, towers in 4 micro-")
    assert said.endswith("taken: hybrid in 2 micro-batches")


def test_what_is_said_is_not_timed_again(timed):
    config, _ = fastest(replace(AUTO, parallel="towers"), 3, TWO)
    assert {mode for mode, _ in timed} == {config.parallel} == {"towers"}
    timed.clear()
    fastest(replace(AUTO, micro_batches=4), 3, TWO)
    assert sorted(timed) == [("data", 1), ("hybrid", 4), ("towers", 4)]


@pytest.mark.parametrize(
    ("settings", "modes"),
    [
        ({"variant": "torchvision"}, {"data", "hybrid"}),
        ({"variant": "batchnorm"}, {"towers", "data", "hybrid"}),
        ({"gpus": 4}, {"data", "hybrid"}),
        ({"batch_size": 9}, {"towers"}),
    ],
)
def test_only_what_fits_is_timed(timed, settings, modes):
    fastest(replace(AUTO, **settings), 3, TWO)
    assert {mode for mode, _ in timed} == modes
    if settings.get("variant") == "batchnorm":
        assert {parts for _, parts in timed} == {1}


def test_nothing_fits(timed):
    with pytest.raises(UsageError, match="--batch-size 9"):
        fastest(replace(AUTO, variant="torchvision", batch_size=9), 3, TWO)

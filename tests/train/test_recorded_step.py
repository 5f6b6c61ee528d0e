"""A step recorded as one graph, on inputs that stay in place: the numbers of the plain step.

There is no GPU: `fake_cuda` stands in for torch.cuda, and says so when something in a step would
not be repeated by a CUDA graph, or is not ordered by a stream.
"""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from fastalex.data.batch import Changes
from fastalex.model.blocks import Blocks, take_blocks
from fastalex.train import train
from fastalex.train.build import build_model
from fastalex.train.recipes import recipe
from fastalex.train.recorded import Recorded
from fastalex.train.schedule import Rates
from fastalex.train.staging import Direct, Places
from fastalex.train.step import TrainStep

from . import fake_cuda
from .conftest import SMALL as RUN
from .conftest import assert_same_weights

CPU = torch.device("cpu")
SMALL = replace(recipe("demo", "cpu"), width=0.03, compile=False)


@pytest.fixture
def streams(monkeypatch):
    monkeypatch.setattr(fake_cuda.Graph, "captures", 0)
    return fake_cuda.Streams(monkeypatch)


def rates(i):
    return Rates(0.01 / (1 + i // 3), 0.02, 0.01, 0.02)


def batch(number):
    images = torch.randn(4, 3, 99, 99, generator=torch.Generator().manual_seed(number))
    return images.to(memory_format=torch.channels_last), torch.arange(4).roll(number)


@pytest.mark.parametrize(("variant", "precision"), [("paper", "bf16"), ("batchnorm", "fp32")])
def test_the_bits_of_the_plain_step(variant, precision, streams):
    """Over changing images, labels, rates and dropout, and through both places."""
    config = replace(SMALL, variant=variant, precision=precision, weight_decay=5e-4)
    plain = TrainStep(build_model(config, 4), config, CPU)
    step = TrainStep(build_model(config, 4), config, CPU)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    step.inputs, step._recorded = Places(CPU, dtype, None), Recorded(step._numbers, CPU)
    for i in range(7):
        expected, got = plain(*batch(i), rates(i), i), step(*batch(i), rates(i), i)
        assert torch.equal(torch.stack(got), torch.stack(expected).float()), i
    assert fake_cuda.Graph.captures == 2
    for name, value in plain.weights().items():
        assert torch.equal(step.weights()[name], value), name


def test_results_stay_when_the_graph_runs_again(streams):
    step = TrainStep(build_model(SMALL, 4), SMALL, CPU)
    step.inputs, step._recorded = Places(CPU, torch.float32, None), Recorded(step._numbers, CPU)
    losses = [step(*batch(0), rates(0), i)[0] for i in range(6)]
    assert len({loss.item() for loss in losses}) == 6


def test_what_cannot_be_recorded_is_called(streams, capsys):
    calls = []

    def function(x):
        calls.append(float(x))  # waits for the device
        return x + 1

    run = Recorded(function, CPU)
    assert [run(torch.tensor(float(i))).item() for i in range(6)] == [1, 2, 3, 4, 5, 6]
    assert calls == [0, 1, 2, 3, 4, 5]
    said = capsys.readouterr().err
    assert streams.current is streams.main
    assert said.count("cannot be recorded as a CUDA graph") == 1
    assert "not permitted" in said
    assert fake_cuda.Graph.captures == 1


def test_warm_up_is_ordered_behind_and_before_the_caller(streams):
    seen = []
    run = Recorded(lambda x: seen.append((streams.current, streams.current.act())) or x, CPU)
    for _ in range(3):
        before = streams.main.act()
        run(torch.zeros(1))
        stream, act = seen[-1]
        assert stream is not streams.main
        assert stream.has_seen(before)
        assert streams.main.has_seen(act)


class Clocked(Places):
    """Notes when a place is written."""

    def __init__(self, streams):
        super().__init__(CPU, torch.float32, None)
        self.streams, self.written = streams, []

    def _write(self, to, images, changes):
        super()._write(to, images, changes)
        self.written.append((self.streams.current.act(), to.data_ptr()))


def test_a_place_is_written_while_the_step_before_runs_and_not_while_it_is_read(streams):
    places, steps, addresses = Clocked(streams), [], []
    for i in range(6):
        with places.stream():
            places.put(*batch(i), None)
        write, address = places.written[-1]
        if i >= 2:
            assert address == addresses[i - 2]
            assert places._stream.has_seen(steps[i - 2])
        if i >= 1:
            assert not places._stream.has_seen(steps[i - 1])
        with places.taken() as (images, labels):
            assert streams.main.has_seen(write)
            assert images.data_ptr() == address
            torch.testing.assert_close((images, labels), batch(i))
            steps.append(streams.main.act())
        addresses.append(address)
    assert len(set(addresses)) == 2


def test_cublas_has_workspaces_of_the_graphs_own(streams):
    """Those of before may be given back by others; those within are not used outside."""
    run = Recorded(lambda x: x + 1, CPU)
    x = torch.zeros(1)
    for _ in range(3):
        run(x)
    assert not streams.cleared
    run(x)
    assert streams.cleared == [0, 1]
    run(x)
    assert streams.cleared == [0, 1]


def test_the_allocator_is_told_of_what_the_other_stream_reads(streams):
    places = Places(CPU, torch.float32, None)
    images, labels = batch(0)
    places.put(images, labels, None)
    told = [images.data_ptr(), labels.data_ptr()]
    assert streams.read_by == [(address, places._stream) for address in told]


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_on_a_gpu_a_step_wants_blocks_in_its_precision(streams, precision):
    config = replace(SMALL, precision=precision)
    step = TrainStep(build_model(config, 4), replace(config, precision="fp32"), CPU)
    step.config, step._device = config, torch.device("cuda")
    places = step._make_inputs()
    assert isinstance(places, Places)
    assert places.wants_pixels
    assert places._dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}.get(
        precision, torch.float32
    )
    assert places._blocks == Blocks(4, (0, 4))


def test_a_batch_of_the_callers_stream_is_there_when_it_is_read(streams):
    places = Clocked(streams)
    made = streams.main.act()
    places.put(*batch(0), None)
    assert places._stream.has_seen(made)


@pytest.mark.parametrize("size", [40, 39])
@pytest.mark.parametrize("direct", [True, False])
def test_pixels_become_what_the_first_layer_takes(streams, direct, size):
    conv = torch.nn.Conv2d(3, 8, 11, 4, padding=2)
    blocks = take_blocks(conv, size)
    pixels = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    changes = Changes(
        mean=100 + 20 * torch.rand(64, 64, 3), lighting=torch.randn(2, 3),
        corner=torch.tensor([[0, 3], [20, 7]], dtype=torch.int32), flip=torch.tensor([1, 0]),
        std=57.0,
    )  # fmt: skip
    expected = changes.of(pixels)
    inputs = Direct() if direct else Places(CPU, torch.bfloat16, blocks)
    for i in range(4):
        inputs.put(pixels, torch.tensor([i, 1]), changes)
        with inputs.taken() as (images, labels):
            if direct:
                assert torch.equal(images, expected)
            else:
                assert images.is_contiguous(memory_format=torch.channels_last)
                assert torch.equal(images, blocks.of(expected).bfloat16())
            assert labels.tolist() == [i, 1]


def test_plain_images_are_put_in_blocks(streams):
    blocks = Blocks(4, (2, 2))
    places = Places(CPU, torch.float32, blocks)
    images = torch.randn(2, 3, 40, 40)
    for _ in range(3):
        places.put(images, torch.tensor([0, 1]), None)
        with places.taken() as (got, _):
            assert torch.equal(got, blocks.of(images))


def test_no_more_batches_wait_than_there_are_places(streams):
    places = Places(CPU, torch.float32, None)
    with pytest.raises(AssertionError), places.taken():
        pass
    for i in range(3):
        places.put(*batch(i), None)
    with pytest.raises(AssertionError), places.taken():
        pass


def test_a_whole_run_through_the_places_is_the_plain_run(
    streams, monkeypatch, dataset, finished, tmp_path
):
    """DALI's pixels, a stream of its own, recorded steps, validations in between."""

    places, put = Places(CPU, torch.float32, None), Places.put

    def watched(self, images, labels, changes):
        assert images.dtype == torch.uint8
        assert changes is not None
        assert streams.current is self._stream
        put(self, images, labels, changes)

    monkeypatch.setattr(Places, "put", watched)
    monkeypatch.setattr(TrainStep, "_make_inputs", lambda step: places)
    monkeypatch.setattr(TrainStep, "_make_recorded", lambda step, _: Recorded(step._numbers, CPU))
    train(RUN, dataset, tmp_path / "run")
    assert fake_cuda.Graph.captures == 2
    assert_same_weights(tmp_path / "run", finished)


def test_rates_and_the_number_of_the_step_count_at_each_call():
    step = TrainStep(build_model(SMALL, 4), SMALL, CPU)
    still, move = Rates(0.0, 0.0, 0.0, 0.0), Rates(0.01, 0.02, 0.01, 0.02)
    losses = [step(*batch(0), still, i)[0].item() for i in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    before = step.weights()["features.0.weight"].clone()
    step(*batch(0), move, 3)
    assert not torch.equal(step.weights()["features.0.weight"], before)


def test_a_step_on_images_from_elsewhere_needs_no_dali():
    code = "import sys; sys.modules['nvidia'] = None; import fastalex.train.step, fastalex.profile"
    subprocess.run([sys.executable, "-c", code], check=True)

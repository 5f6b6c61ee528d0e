"""The choice of `auto`: timed once, remembered, explained by `report`.

No GPU is needed: operands are fake ones on a GPU, and the clock is the test's.
"""

import contextlib
import threading

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from fastalex.kernels import _choice, report


def test_quickest_wins(gpu):
    assert gpu.choose(gpu.tensor(2, 3)) == "triton"
    gpu.times["triton wide"] = 0.1
    assert gpu.choose(gpu.tensor(2, 4)) == "triton wide"
    gpu.times["aten"] = 0.05
    assert gpu.choose(gpu.tensor(2, 5)) == "aten"


def test_triton_must_win_by_more_than_noise(gpu):
    gpu.times.update({"triton": 0.99, "triton wide": 0.99})
    assert gpu.choose(gpu.tensor(2, 3)) == "aten"
    gpu.times["triton"] = 0.97
    assert gpu.choose(gpu.tensor(2, 4)) == "triton"


def test_timed_once_for_each_case(gpu):
    x = gpu.tensor(2, 3)
    for _ in range(3):
        gpu.choose(x)
    assert gpu.timed == list(gpu.candidates)
    for other in (gpu.tensor(2, 4), gpu.tensor(2, 3, dtype=torch.float16), gpu.tensor(3, 2).t()):
        gpu.choose(other)
    gpu.choose(x, settings=(5,))
    assert len(gpu.timed) == 5 * len(gpu.candidates)


@pytest.mark.parametrize("mode", ["aten", "triton", "triton wide"])
def test_a_mode_that_names_a_candidate_is_taken_at_its_word(gpu, mode):
    assert gpu.choose(gpu.tensor(2, 3), mode) == mode
    assert gpu.choose(torch.ones(2, 3), mode) == mode
    assert gpu.timed == []


def test_mode_triton_is_the_foremost_of_them(gpu):
    assert gpu.choose(torch.ones(2, 3), "triton") == "triton"


def test_on_a_cpu_aten(gpu):
    assert gpu.choose(torch.ones(2, 3)) == "aten"
    assert gpu.timed == []


def test_a_candidate_that_fails_is_left_out_and_named(gpu, caplog):
    gpu.times["triton"] = RuntimeError("out of resource: shared memory")
    assert gpu.choose(gpu.tensor(2, 3)) == "triton wide"
    assert "op: triton cannot be used here (out of resource: shared memory)" in caplog.text
    gpu.forget()
    assert gpu.choose(gpu.tensor(2, 3)) == "triton wide"
    assert "failed" not in str(report())
    gpu.times["triton wide"] = gpu.times["triton"]
    assert gpu.choose(gpu.tensor(2, 4)) == "aten"


def test_torch_failing_is_the_callers_business(gpu):
    gpu.times["aten"] = RuntimeError("no such convolution")
    with pytest.raises(RuntimeError, match="no such convolution"):
        gpu.choose(gpu.tensor(2, 3))


def test_without_memory_to_time_aten_until_the_next_process(gpu, caplog):
    gpu.times["triton"] = torch.cuda.OutOfMemoryError("17 GiB")
    assert gpu.choose(gpu.tensor(2, 3)) == "aten"
    assert "no memory to time" in caplog.text
    gpu.times["triton"] = 0.5
    timed = len(gpu.timed)
    assert gpu.choose(gpu.tensor(2, 3)) == "aten"
    assert len(gpu.timed) == timed
    gpu.forget()
    assert gpu.choose(gpu.tensor(2, 3)) == "triton"
    assert len(gpu.timed) == timed + len(gpu.candidates)


def test_an_op_inside_a_trial_is_atens_and_not_timed(gpu, monkeypatch):
    monkeypatch.setattr(_choice, "_lock", contextlib.nullcontext())  # rather fail than wait for it
    answers = []

    def trial(name, *_):
        answers.append(gpu.choose(gpu.tensor(5, 6)))
        return name

    _choice.choose("op", "forward", "auto", gpu.candidates, trial, (gpu.tensor(2, 3),))
    assert answers == ["aten"] * len(gpu.candidates)
    assert gpu.timed == list(gpu.candidates)
    assert gpu.choose(gpu.tensor(5, 6)) == "triton"


def test_timed_on_the_device_of_the_operands(gpu):
    gpu.choose(gpu.tensor(2, 3, index=1))
    assert gpu.entered == [torch.device("cuda:1")]


def test_of_two_candidates_the_winner_is_one_of_the_two(gpu):
    gpu.times.update({"triton": 0.5, "triton wide": 0.1})
    x = gpu.tensor(2, 3)
    assert gpu.choose(x) == "triton wide"
    assert gpu.choose(x, candidates=gpu.candidates[:2]) == "triton"
    gpu.forget()
    assert gpu.choose(x, candidates=gpu.candidates[:2]) == "triton"
    assert gpu.choose(x) == "triton wide"
    assert gpu.timed == list(gpu.candidates)


def test_inside_a_cuda_graph_known_times_are_used_and_nothing_is_timed(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert gpu.choose(gpu.tensor(2, 3)) == "aten"
    assert gpu.timed == []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    gpu.choose(gpu.tensor(2, 3))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert gpu.choose(gpu.tensor(2, 3)) == "triton"
    gpu.forget()
    assert gpu.choose(gpu.tensor(2, 3)) == "triton"
    assert gpu.timed == list(gpu.candidates)


def test_a_size_that_is_a_symbol_is_timed_as_it_was_traced(gpu):
    real = torch.ones(6, 3)
    fake = FakeTensorMode(shape_env=ShapeEnv()).from_tensor(
        real,
        symbolic_context=torch.fx.experimental.symbolic_shapes.StatelessSymbolicContext(
            dynamic_sizes=[torch.fx.experimental.symbolic_shapes.DimDynamic.DYNAMIC] * 2,
            constraint_sizes=[None, None],
        ),
    )
    assert not isinstance(fake.shape[0], int)
    assert _choice._sizes(fake) == ((6, 3), (3, 1))


def test_a_size_that_nobody_knows_is_not_timed(gpu):
    shapes = ShapeEnv()
    with FakeTensorMode(shape_env=shapes):
        x = torch.empty(shapes.create_unbacked_symint(), 3, device="cuda")
    assert gpu.choose(x) == "aten"
    assert gpu.timed == []


def test_the_trial_runs_outside_this_threads_modes(gpu):
    seen = []

    def trial(name, x, nothing):
        seen.append((threading.get_ident(), type(x), torch.is_autocast_enabled("cpu"), nothing))
        return name

    x = gpu.tensor(2, 3)
    with torch.autocast("cpu"), FakeTensorMode():
        _choice.choose("op", "forward", "auto", gpu.candidates, trial, (x, None))
    assert {thread for thread, *_ in seen} != {threading.get_ident()}
    assert all(kind is torch.Tensor and not cast and n is None for _, kind, cast, n in seen)


def test_operands_of_a_trial():
    x = torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last)
    like = _choice._like(x, (x.shape, x.stride()))
    assert like.stride() == x.stride()
    assert 0.5 < like.std() < 1.5
    index = torch.full((2, 3), 7, dtype=torch.int8)
    assert not _choice._like(index, (index.shape, index.stride())).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize(
    ("shape", "strides"), [((4, 3), (0, 1)), ((4, 3), (0, 0)), ((4, 3), (2, 1)), ((4, 3), (9, 2))]
)
def test_operands_of_a_trial_in_any_strides(shape, strides, dtype):
    """Expanded, overlapping, and with gaps; memory that nobody wrote is NaN or a large number."""
    x = torch.zeros(36, dtype=dtype).as_strided(shape, strides)
    like = _choice._like(x, (x.shape, x.stride()))
    assert (like.shape, like.stride(), like.dtype) == (shape, strides, dtype)
    assert like.abs().max() < 9


def test_report(gpu):
    assert "no choice has been made yet" in str(report())
    gpu.choose(gpu.tensor(2, 3), settings=("groups", 2))
    gpu.times.update({"triton": RuntimeError("no"), "triton wide": 2.0})
    gpu.choose(gpu.tensor(2, 4))
    first, second = report()
    assert (first.op, first.direction, first.winner, first.gain) == ("op", "forward", "triton", 2)
    assert (second.winner, second.gain, second.times["triton"]) == ("aten", 0.5, None)
    lines = str(report()).splitlines()
    assert lines[0].startswith("op  pass     chosen  ms      torch ms  torch / Triton  operands")
    assert lines[1].split()[:6] == ["op", "forward", "triton", "0.5000", "1.0000", "2.00"]
    assert lines[1].endswith("bfloat16 [2, 3] by [3, 1]; none; groups; 2")
    assert repr(report()) == str(report())

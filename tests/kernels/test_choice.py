"""The choice of `auto`: timed once, remembered in a file, explained by `report`.

No GPU is needed: operands are fake ones on a GPU, and the clock is the test's.
"""

import contextlib
import json
import multiprocessing
import re
import threading

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from fastalex.kernels import _choice, _choice_file, report

CANDIDATES = ("aten", "triton", "triton wide")


def on_gpu(*shape, dtype=torch.bfloat16):
    with FakeTensorMode():
        return torch.empty(shape, device="cuda", dtype=dtype)


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU on which each candidate takes the milliseconds in the returned dict."""
    times = {"aten": 1.0, "triton": 0.5, "triton wide": 0.8}
    timed = []

    def like(x, size):
        return None if x is None else torch.empty_strided(*size, dtype=x.dtype)

    def do_bench(call, **_):
        name = call()
        timed.append(name)
        if isinstance(times[name], Exception):
            raise times[name]
        return times[name]

    monkeypatch.setenv("FASTALEX_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr("triton.testing.do_bench", do_bench)
    monkeypatch.setattr(_choice, "_like", like)
    times["timed"] = timed
    forget()
    yield times
    forget()


def forget():
    """As a new process would start."""
    _choice._made.clear()
    _choice_file._read.clear()


def choose(x, mode="auto", settings=(), candidates=CANDIDATES):
    return _choice.choose(
        "op", "forward", mode, candidates, lambda name, *_: name, (x, None), settings
    )


def test_quickest_wins(gpu):
    assert choose(on_gpu(2, 3)) == "triton"
    gpu["triton wide"] = 0.1
    assert choose(on_gpu(2, 4)) == "triton wide"
    gpu["aten"] = 0.05
    assert choose(on_gpu(2, 5)) == "aten"


def test_triton_must_win_by_more_than_noise(gpu):
    gpu.update({"triton": 0.99, "triton wide": 0.99})
    assert choose(on_gpu(2, 3)) == "aten"
    gpu["triton"] = 0.97
    assert choose(on_gpu(2, 4)) == "triton"


def test_timed_once_for_each_case(gpu):
    x = on_gpu(2, 3)
    for _ in range(3):
        choose(x)
    assert gpu["timed"] == list(CANDIDATES)
    for other in (on_gpu(2, 4), on_gpu(2, 3, dtype=torch.float16), on_gpu(3, 2).t()):
        choose(other)
    choose(x, settings=(5,))
    assert len(gpu["timed"]) == 5 * len(CANDIDATES)


def test_remembered_by_the_next_process(gpu):
    choose(on_gpu(2, 3))
    forget()
    gpu["triton"] = 9.0
    assert choose(on_gpu(2, 3)) == "triton"
    assert len(gpu["timed"]) == len(CANDIDATES)


@pytest.mark.parametrize("package", ["torch", "triton", "fastalex.version"])
def test_another_version_measures_anew(gpu, package, monkeypatch):
    choose(on_gpu(2, 3))
    forget()
    monkeypatch.setattr(f"{package}.__version__", "0.0.0")
    choose(on_gpu(2, 3))
    assert len(gpu["timed"]) == 2 * len(CANDIDATES)


def test_another_gpu_measures_anew(gpu, monkeypatch):
    choose(on_gpu(2, 3))
    forget()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Another / GPU")
    choose(on_gpu(2, 3))
    assert len(gpu["timed"]) == 2 * len(CANDIDATES)


def test_a_candidate_added_later_is_timed(gpu):
    choose(on_gpu(2, 3), candidates=CANDIDATES[:2])
    gpu["triton wide"] = 0.1
    assert choose(on_gpu(2, 3)) == "triton wide"


@pytest.mark.parametrize("mode", CANDIDATES)
def test_a_mode_that_names_a_candidate_is_taken_at_its_word(gpu, mode):
    assert choose(on_gpu(2, 3), mode) == mode
    assert choose(torch.ones(2, 3), mode) == mode
    assert gpu["timed"] == []


def test_mode_triton_is_the_foremost_of_them():
    assert choose(torch.ones(2, 3), "triton") == "triton"


def test_on_a_cpu_aten(gpu):
    assert choose(torch.ones(2, 3)) == "aten"
    assert gpu["timed"] == []


def test_a_candidate_that_fails_is_left_out_and_named(gpu, caplog):
    gpu["triton"] = RuntimeError("out of resource: shared memory")
    assert choose(on_gpu(2, 3)) == "triton wide"
    assert "op: triton cannot be used here (out of resource: shared memory)" in caplog.text
    forget()
    assert choose(on_gpu(2, 3)) == "triton wide"
    assert "failed" not in str(report())
    gpu["triton wide"] = gpu["triton"]
    assert choose(on_gpu(2, 4)) == "aten"


def test_torch_failing_is_the_callers_business(gpu):
    gpu["aten"] = RuntimeError("no such convolution")
    with pytest.raises(RuntimeError, match="no such convolution"):
        choose(on_gpu(2, 3))


def test_no_memory_to_time_is_not_remembered(gpu, caplog):
    gpu["triton"] = torch.cuda.OutOfMemoryError("17 GiB")
    assert choose(on_gpu(2, 3)) == "aten"
    assert "no memory to time" in caplog.text
    gpu["triton"] = 0.5
    assert choose(on_gpu(2, 3)) == "triton"


def test_nothing_is_timed_inside_a_cuda_graph(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose(on_gpu(2, 3)) == "aten"
    assert gpu["timed"] == []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    choose(on_gpu(2, 3))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose(on_gpu(2, 3)) == "triton"


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


def test_the_trial_runs_outside_this_threads_modes(gpu):
    seen = []

    def trial(name, x, nothing):
        seen.append((threading.get_ident(), type(x), torch.is_autocast_enabled("cpu"), nothing))
        return name

    x = on_gpu(2, 3)
    with torch.autocast("cpu"), FakeTensorMode():
        _choice.choose("op", "forward", "auto", CANDIDATES, trial, (x, None))
    assert {thread for thread, *_ in seen} != {threading.get_ident()}
    assert all(kind is torch.Tensor and not cast and n is None for _, kind, cast, n in seen)


def test_operands_of_a_trial():
    x = torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last)
    like = _choice._like(x, (x.shape, x.stride()))
    assert like.stride() == x.stride()
    assert 0.5 < like.std() < 1.5
    index = torch.full((2, 3), 7, dtype=torch.int8)
    assert not _choice._like(index, (index.shape, index.stride())).any()


@pytest.mark.parametrize(
    "broken", [b"", b"{", b"[1]", b'{"op": 3}', b'{"op": {"aten": "x"}}', b'{"op": {"aten": -1}}']
)
def test_a_broken_file_is_ignored_with_a_warning(gpu, broken):
    choose(on_gpu(2, 3))
    path = _choice_file._path("Some GPU")
    path.write_bytes(broken)
    forget()
    with pytest.warns(UserWarning, match=re.escape(f"{path.name} is damaged and ignored")):
        assert choose(on_gpu(2, 3)) == "triton"
    forget()
    assert choose(on_gpu(2, 3)) == "triton"
    assert len(gpu["timed"]) == 2 * len(CANDIDATES)


def test_a_cache_that_cannot_be_written_costs_a_warning(gpu, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTALEX_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be kept"):
        assert choose(on_gpu(2, 3)) == "triton"
    assert choose(on_gpu(2, 3)) == "triton"
    assert len(gpu["timed"]) == len(CANDIDATES)


def _write_many(cache, name):
    import os

    os.environ["FASTALEX_CACHE"] = cache
    for i in range(25):
        _choice_file.remember("Some GPU", f"{name}-{i}", {"aten": 1.0})


def test_two_processes_writing_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTALEX_CACHE", str(tmp_path))
    fork = multiprocessing.get_context("spawn")
    writers = [fork.Process(target=_write_many, args=(str(tmp_path), n)) for n in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    kept = json.loads(_choice_file._path("Some GPU").read_bytes())
    assert len(kept) == 50


def test_report(gpu):
    assert "no choice has been made yet" in str(report())
    choose(on_gpu(2, 3), settings=("groups", 2))
    gpu.update({"triton": RuntimeError("no"), "triton wide": 2.0})
    choose(on_gpu(2, 4))
    first, second = report()
    assert (first.op, first.direction, first.winner, first.gain) == ("op", "forward", "triton", 2)
    assert (second.winner, second.gain, second.times["triton"]) == ("aten", 0.5, None)
    lines = str(report()).splitlines()
    assert lines[0].startswith("op  pass     chosen  ms      torch ms  torch / Triton  operands")
    assert lines[1].split()[:6] == ["op", "forward", "triton", "0.5000", "1.0000", "2.00"]
    assert lines[1].endswith("bfloat16 [2, 3] by [3, 1]; none; groups; 2")
    assert repr(report()) == str(report())

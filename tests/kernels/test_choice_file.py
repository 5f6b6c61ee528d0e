"""The times of `auto` in a file, from one process to the next."""

import json
import multiprocessing
import re

import pytest
import torch

from fastalex.kernels import _choice_file


def test_remembered_by_the_next_process(gpu):
    gpu.choose(gpu.tensor(2, 3))
    gpu.forget()
    gpu.times["triton"] = 9.0
    assert gpu.choose(gpu.tensor(2, 3)) == "triton"
    assert len(gpu.timed) == len(gpu.candidates)


@pytest.mark.parametrize("package", ["torch", "triton", "fastalex.version"])
def test_another_version_measures_anew(gpu, package, monkeypatch):
    gpu.choose(gpu.tensor(2, 3))
    gpu.forget()
    monkeypatch.setattr(f"{package}.__version__", "0.0.0")
    gpu.choose(gpu.tensor(2, 3))
    assert len(gpu.timed) == 2 * len(gpu.candidates)


def test_another_gpu_measures_anew(gpu, monkeypatch):
    gpu.choose(gpu.tensor(2, 3))
    gpu.forget()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Another / GPU")
    gpu.choose(gpu.tensor(2, 3))
    assert len(gpu.timed) == 2 * len(gpu.candidates)


def test_a_candidate_added_later_is_timed(gpu):
    gpu.choose(gpu.tensor(2, 3), candidates=gpu.candidates[:2])
    gpu.times["triton wide"] = 0.1
    assert gpu.choose(gpu.tensor(2, 3)) == "triton wide"


@pytest.mark.parametrize(
    "broken", [b"", b"{", b"[1]", b'{"op": 3}', b'{"op": {"aten": "x"}}', b'{"op": {"aten": -1}}']
)
def test_a_broken_file_is_ignored_with_a_warning(gpu, broken):
    gpu.choose(gpu.tensor(2, 3))
    path = _choice_file._path("Some GPU")
    path.write_bytes(broken)
    gpu.forget()
    with pytest.warns(UserWarning, match=re.escape(f"{path.name} is damaged and ignored")):
        assert gpu.choose(gpu.tensor(2, 3)) == "triton"
    gpu.forget()
    assert gpu.choose(gpu.tensor(2, 3)) == "triton"
    assert len(gpu.timed) == 2 * len(gpu.candidates)


def test_a_cache_that_cannot_be_written_costs_a_warning(gpu, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTALEX_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be kept"):
        assert gpu.choose(gpu.tensor(2, 3)) == "triton"
    assert gpu.choose(gpu.tensor(2, 3)) == "triton"
    assert len(gpu.timed) == len(gpu.candidates)


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

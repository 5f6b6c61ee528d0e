"""The command: its parts, its files, its page; and what it does when the time is over."""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import _page
import _suite
import pytest
from _results import best, compared, load, merge, newest, pool, ratio, write

ROOT = Path(__file__).parents[2]
DEVICE = {"slug": "cpu-x", "name": "CPU x", "kind": "cpu"}


def row(samples: dict[str, list[float]], **more) -> dict:
    providers = {
        name: {"says": "", "ours": name == "fastalex", "samples": each, "error": 0.0}
        for name, each in samples.items()
    }
    made = {"key": "paper-16", "network": "paper", "batch": 16, "floor_s": 0.5, "failed": {}}
    return made | {"providers": providers, "left_out": {}} | more


def part(version: str, **more) -> dict:
    return {"versions": {"torch": version}, "rows": [], "left_out": [], "limits": {}} | more


def test_samples_of_all_processes_are_one():
    processes = [
        [{"limits": {"copy": 1.0}}, row({"fastalex": [1.0, 2.0], "eager": [4.0]})],
        [{"limits": {"copy": 3.0}}, row({"fastalex": [3.0], "eager": [6.0]})],
    ]
    pooled = pool(processes)
    assert pooled["limits"] == {"copy": 3.0}
    (only,) = pooled["rows"]
    ours = only["providers"]["fastalex"]
    assert ours["seconds"] == {"median": 2.0, "p10": 1.2, "p90": 2.8}
    assert ours["samples"] == [[1.0, 2.0], [3.0]]
    assert (best(only, True), best(only, False), ratio(only)) == ("fastalex", "eager", 2.5)


def test_what_fails_in_one_process_has_failed():
    second = row({"fastalex": [1.0]}, failed={"eager": "out of memory"})
    (only,) = pool([[row({"fastalex": [1.0], "eager": [1.0]})], [second]])["rows"]
    assert set(only["providers"]) == {"fastalex"}
    assert only["failed"] == {"eager": "out of memory"}


def test_a_part_takes_the_place_of_its_like_alone(tmp_path):
    path = tmp_path / "cpu-x-2026-01-02.json"
    merge(path, DEVICE, "inference", part("1"))
    merge(path, DEVICE, "step", part("1"))
    merge(path, DEVICE, "inference", part("2"))
    result = load(path)
    assert {name: p["versions"]["torch"] for name, p in result["parts"].items()} == {
        "step": "1", "inference": "2",
    }  # fmt: skip
    assert list(result["parts"]) == ["step", "inference"]


def test_the_newest_of_each_device_and_gpus_first(tmp_path):
    for slug, kind, date in (("cpu-x", "cpu", "2026-01-02"), ("gpu-y", "cuda", "2026-01-01"),
                             ("cpu-x", "cpu", "2026-01-03")):  # fmt: skip
        device = {"slug": slug, "name": slug, "kind": kind}
        merge(tmp_path / f"{slug}-{date}.json", device, "step", part(date))
    (tmp_path / "losses-cpu-x-2026-01-04.json").write_text("{}")
    names = [path.name for path, _ in newest(tmp_path)]
    assert names == ["gpu-y-2026-01-01.json", "cpu-x-2026-01-03.json"]


def test_a_list_of_numbers_stands_on_one_line(tmp_path):
    path = tmp_path / "result.json"
    write(path, {"samples": [[1.0, 2e-05], [3.5]], "names": ["a"]})
    assert "[1.0, 2e-05]" in path.read_text()
    assert "[3.5]" in path.read_text()


def test_the_page_is_what_the_committed_files_say():
    assert _page.PAGE.read_text() == _page.text(), "run: python -m bench --redraw"


def test_the_page_says_that_no_gpu_was_measured_and_names_the_best_peer(tmp_path):
    samples = {"fastalex": [1.0], "eager": [3.0], "graph": [2.0]}
    made = row(samples, part="step") | {"key": "paper-16"}
    for entry in made["providers"].values():
        entry["first_call_s"] = 1.0
    pooled = pool([[{"limits": {"copy": 1e9, "bf16": 1e12, "fp32": 1e12}}, made]])
    about = {"measured": "2026-01-02T", "command": "python -m bench", "processes": 1}
    merge(tmp_path / "cpu-x-2026-01-02.json", DEVICE, "step", part("1") | about | pooled)
    text = _page.text(tmp_path, tmp_path / "page.md")
    assert "Nothing has been measured on a GPU yet" in text
    assert "**2.00** to the best peer, graph; 50% of the limit" in text
    page, *pictures = _page.redraw(tmp_path / "page.md", tmp_path)
    assert [path.name for path in pictures] == ["page-cpu-x-step.png"]
    assert "page-cpu-x-step.png" in page.read_text()


def test_rows_of_the_ablation_are_not_compared():
    rows = [row({"fastalex": [1.0]}), row({"fastalex": [1.0]}, key="ablation")]
    assert len(compared(pool([rows]))) == 1


def test_a_process_that_outlasts_its_time_is_killed(tmp_path):
    alive = tmp_path / "alive"
    script = f"import time, pathlib; time.sleep(1); pathlib.Path({str(alive)!r}).touch()"
    began = time.monotonic()
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {script!r}])"
    command = [sys.executable, "-c", nested]
    assert _suite.run(command, dict(os.environ), 0.3, tmp_path / "log") is None
    assert time.monotonic() - began < 1.2
    time.sleep(1)
    assert not alive.exists()


def test_a_kill_keeps_the_rows_that_are_there(tmp_path, monkeypatch):
    def run(command, environment, seconds, log):
        rows = Path(command[command.index("--rows") + 1])
        import json

        rows.write_text(json.dumps(row({"fastalex": [1.0]})) + '\n{"torn')
        raise KeyboardInterrupt

    monkeypatch.setattr(_suite, "run", run)
    monkeypatch.setattr(_suite, "GPU", False)
    path = tmp_path / "cpu-x-2026-01-02.json"
    with pytest.raises(KeyboardInterrupt):
        _suite.Suite(["step"], 1.0, path, "python -m bench step").run()
    assert load(path)["parts"]["step"]["rows"][0]["key"] == "paper-16"


def test_a_part_without_time_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_suite, "GPU", False)
    _suite.Suite(["step"], 1e-9, tmp_path / "r.json", "python -m bench").run()
    assert "step: nothing was measured" in capsys.readouterr().err


def test_later_processes_are_told_what_the_first_found(tmp_path, monkeypatch):
    commands = []

    def run(command, environment, seconds, log):
        commands.append(command)
        Path(command[command.index("--rows") + 1]).write_text("")
        return 0

    monkeypatch.setattr(_suite, "run", run)
    monkeypatch.setattr(_suite, "GPU", False)
    _suite.Suite(["inference"], 1.0, tmp_path / "r.json", "").run()
    assert ["--first" in command for command in commands] == [False, True, True]
    seconds = [float(c[c.index("--seconds") + 1]) for c in commands]
    assert seconds[0] == pytest.approx(60 * _suite.FIRST_SHARE, abs=1)


@pytest.fixture
def command(monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_main", ROOT / "bench" / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments: str):
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        return module.arguments()

    return run


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["stpe"], "no such part: stpe; there are step, inference"),
        (["--minutes", "0"], "must be greater than 0"),
        (["--redraw", "step"], "leave out the parts"),
    ],
)
def test_a_wrong_request_is_refused(command, arguments, says, capsys):
    with pytest.raises(SystemExit) as error:
        command(*arguments)
    assert error.value.code == 2
    assert says in capsys.readouterr().err


def test_plain_pytest_leaves_the_benchmarks_alone(request):
    assert request.config.getini("testpaths") == ["tests"]


@pytest.mark.slow
def test_the_whole_command_on_a_small_budget(tmp_path):
    for name in ("bench", "docs", "fastalex", "pyproject.toml", "README.md"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    shutil.rmtree(tmp_path / "bench" / "results")
    environment = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TRITON_INTERPRET")
    }
    ran = subprocess.run(
        [sys.executable, "-m", "bench", "step", "--minutes", "2"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    ((path, result),) = newest(tmp_path / "bench" / "results")
    assert compared(result["parts"]["step"])
    assert path.name in (tmp_path / "docs" / "performance.md").read_text()
    assert "step: the best" in ran.stdout

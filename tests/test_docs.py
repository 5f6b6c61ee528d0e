"""What the documents say, against what is there: links, options, figures, commands."""

import json
import re
import statistics
from pathlib import Path

import pytest

from fastalex.train.config import TrainConfig, flag

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "bench" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_options_of_our_commands_exist(path):
    known = {flag(name) for name in TrainConfig.__dataclass_fields__}
    known |= {"--out", "--resume", "--ten-crop", "--help", "--debug", "--no-compile", "--workers"}
    text = path.read_text()
    for line in re.findall(r"fastalex-(?:train|evaluate|prepare)[^\n`#]*", text):
        assert set(re.findall(r"--[a-z][a-z-]+", line)) <= known, line


def test_ci_runs_the_test_command_of_the_readme():
    readme = (ROOT / "README.md").read_text()
    command = re.search(r"<!-- the test command -->\n```bash\n(.*)\n```", readme)
    assert command
    assert command[1].endswith(".venv/bin/pytest")
    script = (ROOT / ".ci" / "run").read_text()
    assert 'eval "$test_command"' in script.splitlines()


def rows(text: str) -> dict[str, list[str]]:
    """The cells of every table row by its first cell."""
    table = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in table}


def recorded(text: str) -> dict[str, dict]:
    """The benchmarks of the one results file that the text links to, by name."""
    (name,) = set(re.findall(r"bench/results/([\w.-]+\.json)\)", text))
    return {
        entry["name"]: entry
        for entry in json.loads((ROOT / "bench" / "results" / name).read_text())["benchmarks"]
    }


def test_the_readmes_ratios_are_the_recorded_ones():
    text = (ROOT / "README.md").read_text()
    results, table = recorded(text), rows(text)
    for network in ("paper", "torchvision"):
        for work, title in (("step", "training step"), ("inference", "inference")):
            cells = table[f"`{network}`, {title}"]
            for cell, layout in zip(cells, ("", "-nchw"), strict=True):
                entry = results[f"bench_ratio[{work}-{network}:{network}-plain{layout}]"]
                assert cell == f"{statistics.median(entry['extra_info']['time_ratios']):.2f}"


def test_the_demos_figure_is_the_recorded_one():
    text = (ROOT / "README.md").read_text()
    (name,) = set(re.findall(r"bench/results/([\w.-]+\.jsonl)", text))
    lines = (ROOT / "bench" / "results" / name).read_text().splitlines()
    last = json.loads(lines[-1])
    assert f"{1 - last['top1_error']:.1%}".replace("%", " %") + " of 299" in text
    assert f"{last['epoch']} passes" in text


def test_the_data_pages_figures_are_the_recorded_ones():
    text = (ROOT / "docs" / "data.md").read_text()
    results, table = recorded(text), rows(text)
    for title, case in (("mean image", "mean-image"), ("mean colour", "mean-color")):
        for cell, side in zip(table[title], ("dali", "pillow"), strict=True):
            entry = results[f"bench_batches[{case}-{side}]"]
            assert cell == f"{entry['extra_info']['images_per_s']:,.0f}"

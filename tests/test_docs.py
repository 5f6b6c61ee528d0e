"""What the documents say, against what is there: links, options, figures, commands."""

import json
import re
import statistics
from pathlib import Path

import pytest
from _quotes import PLACES, between
from _results import newest

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


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_no_conflict_is_left(path):
    assert not re.search(r"^(<{7}|>{7}) ", path.read_text(), re.MULTILINE)


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


@pytest.mark.parametrize("name", PLACES)
def test_the_quoted_figures_are_the_recorded_ones(name):
    document, table = PLACES[name]
    assert between(name, document.read_text()) == table(newest()), "run: python -m bench --redraw"


def test_the_readmes_ratios_are_medians_over_medians():
    """Worked out here once more, from the file that the table links to."""
    text = (ROOT / "README.md").read_text()
    name = re.findall(r"bench/results/([\w.-]+\.json)\)", text)[-1]
    parts = json.loads((ROOT / "bench" / "results" / name).read_text())["parts"]
    for row in parts["step"]["rows"]:
        medians = {
            who: statistics.median(value for process in entry["samples"] for value in process)
            for who, entry in row["providers"].items()
        }
        own = min(spent for who, spent in medians.items() if row["providers"][who]["ours"])
        cells = rows(text)[f"{row['network']}, training step, batch {row['batch']}"]
        peer, *without = re.findall(r"[\w-]+", re.search(r"\((.+)\)", cells[0])[1])
        assert set(without[1:]) == {*row["failed"], *row["left_out"]}, "without these"
        theirs = {w: spent for w, spent in medians.items() if not row["providers"][w]["ours"]}
        assert medians[peer] == pytest.approx(min(theirs.values()), rel=1e-4)
        assert float(cells[0].split()[0]) == pytest.approx(medians[peer] / own, abs=0.006)
        assert float(cells[1]) == pytest.approx(medians["eager"] / own, abs=0.006)


def test_the_demos_figure_is_the_recorded_one():
    text = (ROOT / "README.md").read_text()
    (name,) = set(re.findall(r"bench/results/([\w.-]+\.jsonl)", text))
    lines = (ROOT / "bench" / "results" / name).read_text().splitlines()
    last = json.loads(lines[-1])
    assert f"{1 - last['top1_error']:.1%}".replace("%", " %") + " of 299" in text
    assert f"{last['epoch']} passes" in text

"""docs/variants.md says what the code does."""

import re
from pathlib import Path

import pytest

from fastalex.model import VARIANTS

DOC = (Path(__file__).parents[2] / "docs" / "variants.md").read_text(encoding="utf-8")


def rows(pattern):
    return re.findall(pattern, DOC, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "count"), rows(r"^\| `(\w+)` \|[^|]*\| ([\d,]+) \|$"), ids=lambda value: value
)
def test_parameter_counts(name, count, whole):
    assert f"{sum(p.numel() for p in whole(name).parameters()):,}" == count


def test_every_variant_has_its_count_and_input():
    assert [name for name, _ in rows(r"^\| `(\w+)` \|[^|]*\| ([\d,]+) \|$")] == list(VARIANTS)
    pattern = r"^\| (`[^|]*`) \| (\d+) \| `(\w+)`[^|]*\| ([\d.]+) \| (RGB|BGR) \|$"
    said = {}
    for names, *facts in rows(pattern):
        said.update(dict.fromkeys(re.findall(r"`(\w+)`", names), facts))
    inputs = {name: variant.input for name, variant in VARIANTS.items()}
    assert said == {n: [str(f.size), f.mean, f"{f.std:g}", f.color] for n, f in inputs.items()}


def test_the_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", DOC, flags=re.DOTALL)
    scope = {}
    exec(example, scope)
    assert scope["probabilities"].shape == (1, 1000)

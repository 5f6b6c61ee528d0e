"""The figures that other documents quote: README's table and docs/data.md's, between their marks.

For `_page.py`, which writes them with the page, and the tests of the documents. They come from the
newest result file of each device and from nothing else.
"""

import re
from collections.abc import Callable
from pathlib import Path

from _machine import ROOT
from _results import best, compared, median, ratio, untimed
from _tables import images_per_s, markdown

Results = list[tuple[Path, dict]]
WORK = {"step": "training step", "inference": "inference"}


def readme(results: Results) -> str:
    """Of each device: the ratio to the best peer, named, and to plain PyTorch as it comes."""
    found = []
    for path, result in results:
        rows = [
            (f"{row['network']}, {WORK[name]}, batch {row['batch']}", *_ratios(row))
            for name in WORK
            for row in compared(result["parts"].get(name, {"rows": []}))
        ]
        head = ("", "to the best peer", "to plain eager")
        link = f"[{result['device']['name']}](bench/results/{path.name}):"
        found += [link, markdown((head, rows))]
    return "\n\n".join(found)


def _ratios(row: dict) -> tuple[str, str]:
    own, peer = best(row, True), best(row, False)
    if own is None or peer is None:
        return "-", "-"
    eager = f"{median(row, 'eager') / median(row, own):.2f}" if "eager" in row["providers"] else "-"
    of_these = f", without {', '.join(untimed(row))}" if untimed(row) else ""
    return f"{ratio(row):.2f} ({peer}{of_these})", eager


def data(results: Results) -> str:
    """Of each device: images a second of the JPEG tier, DALI beside Pillow."""
    found = []
    for path, result in results:
        rows = [
            (row["tier"].removeprefix("jpeg, "), _images(row, "fastalex"), _images(row, "pillow"))
            for row in result["parts"].get("data", {"rows": []})["rows"]
            if row["tier"].startswith("jpeg") and row["providers"]
        ]
        if rows:
            link = f"[{result['device']['name']}](../bench/results/{path.name}):"
            found += [link, markdown((("", "fastalex (DALI)", "Pillow and NumPy"), rows))]
    return "\n\n".join(found)


def _images(row: dict, name: str) -> str:
    return f"{images_per_s(row, name):,.0f}" if name in row["providers"] else "-"


PLACES: dict[str, tuple[Path, Callable[[Results], str]]] = {
    "speed": (ROOT / "README.md", readme),
    "data": (ROOT / "docs" / "data.md", data),
}
"""By the name in the marks: the document, and what makes its table."""


def between(name: str, text: str) -> str:
    """What stands between the marks of `name`."""
    return _found(name, text)[3].strip("\n")


def put(name: str, text: str, table: str) -> str:
    """`text` with `table` between the marks of `name`."""
    before, begin, _, end, after = _found(name, text).groups()
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


def _found(name: str, text: str) -> re.Match[str]:
    begin, end = f"<!-- {name} by python -m bench -->", f"<!-- end of {name} -->"
    found = re.fullmatch(f"(.*)({begin})(.*)({end})(.*)", text, re.DOTALL)
    if not found:
        raise ValueError(f"no place for the table {name!r}: wants the marks {begin} and {end}")
    return found

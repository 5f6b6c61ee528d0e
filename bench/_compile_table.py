"""What compile_kernels.py found, as the table of docs/kernels.md; and that table, read again.

A row joins the launches of one kernel that differ only in what the network's layers ask for: sizes,
strides, groups. Its cells have the largest figure among them.
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import triton
from _compile_build import Code, Job
from _compile_fake import TARGETS

BEGIN, END = "<!-- compiled by bench/compile_kernels.py -->", "<!-- end of what it compiled -->"
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "uint8": "uint8"}


@dataclass(frozen=True, order=True)
class Row:
    kernel: str
    dtype: str
    tiling: str
    warps: int

    @property
    def cells(self) -> list[str]:
        return [f"`{self.kernel}`", self.dtype, self.tiling or "–", str(self.warps)]


KEYS = ["kernel", "dtype", "tiling", "warps"]
HEAD = [*KEYS, *TARGETS, "instructions", "wgmma", "tcgen05"]


def row_of(job: Job) -> Row:
    launch = job.launch
    dtype = DTYPES[str(launch.dtype).removeprefix("torch.")]
    warps = launch.keywords.get("num_warps", 4)
    return Row(launch.kernel.strip("_"), dtype, launch.tiling, warps)


def table(results: list[tuple[Job, Code]]) -> list[list[str]]:
    """The rows as cells; "" where a row was not compiled for a target."""
    found: dict[Row, dict[str, list[Code]]] = defaultdict(lambda: defaultdict(list))
    for job, code in results:
        found[row_of(job)][job.target.name].append(code)
    return [[*row.cells, *_figures(found[row])] for row in sorted(found)]


def _figures(codes: dict[str, list[Code]]) -> list[str]:
    counts = [("sm_90", "instructions"), ("sm_90", "wgmma"), ("sm_100", "tcgen05")]
    spans = [_span([getattr(c, what) for c in codes.get(name, [])]) for name, what in counts]
    return [*(_needs(codes.get(name, [])) for name in TARGETS), *spans]


def _needs(codes: list[Code]) -> str:
    """Registers; then, where there are any, KiB of shared memory and what was spilled."""
    if not codes:
        return ""
    if any(code.error for code in codes):
        return "failed"
    registers, shared, spilled = (
        max(getattr(code, name) for code in codes) for name in ("registers", "shared", "spilled")
    )
    cell = str(registers)
    if shared:
        cell += f" / {shared / 1024:.3g}"
    return cell + (f" / {spilled} spilled" if spilled else "")


def _span(numbers: list[int]) -> str:
    low, high = min(numbers, default=0), max(numbers, default=0)
    if not high:
        return "–"
    return str(low) if low == high else f"{low}–{high}"


def markdown(results: list[tuple[Job, Code]]) -> str:
    rows = [HEAD, ["---"] * len(HEAD), *table(results)]
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    return f"triton {triton.__version__}\n\n" + "\n".join(lines)


def plain(results: list[tuple[Job, Code]]) -> str:
    rows = [HEAD, *([cell.strip("`") for cell in cells] for cells in table(results))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def write(path: Path, results: list[tuple[Job, Code]]) -> None:
    """Between the two marks of the file; the rest of it stays."""
    before, _, after = _parts(path)
    path.write_text(f"{before}{BEGIN}\n\n{markdown(results)}\n\n{END}{after}")


def _parts(path: Path) -> tuple[str, str, str]:
    found = re.fullmatch(f"(.*){BEGIN}(.*){END}(.*)", path.read_text(), re.DOTALL)
    if not found:
        raise ValueError(f"{path}: no place for the table: wants the marks {BEGIN} and {END}")
    return found[1], found[2], found[3]


def differences(path: Path, results: list[tuple[Job, Code]], every_job: list[Job]) -> list[str]:
    """Where the file's table says something else; none where it is another triton's.

    A cell that joins launches of which not all were compiled may not exceed the file's.
    """
    _, text, _ = _parts(path)
    made_with = re.search(r"^triton (\S+)$", text, re.MULTILINE)
    if not made_with:
        return [f"{path.name}: no table between its marks"]
    if made_with[1] != triton.__version__:
        return []
    there = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        there[tuple(cells[: len(KEYS)])] = cells
    whole = Counter((row_of(job), job.target.name) for job in every_job)
    part = Counter((row_of(job), job.target.name) for job, _ in results)
    partial = {(*row.cells, name) for (row, name), n in whole.items() if part[row, name] < n}
    faults = []
    for row in table(results):
        key = tuple(row[: len(KEYS)])
        stored = there.get(key, [""] * len(HEAD))
        for name, old, new in zip(HEAD, stored, row, strict=True):
            target = name if name in TARGETS else "sm_100" if name == "tcgen05" else "sm_90"
            agrees = _within(new, old) if (*key, target) in partial else new == old
            if new and not agrees:
                faults.append(f"{path.name}, {' '.join(key)}, {name}: {old!r}, now {new!r}")
    return faults


def _within(new: str, old: str) -> bool:
    """Each figure of `new` is at most the largest, at its place, that `old` has."""
    if new == "–" or new == old:
        return True
    numbers = [[float(n) for n in re.findall(r"[\d.]+", cell)] for cell in (new, old)]
    if "–" in new + old:
        return max(numbers[0]) <= max(numbers[1], default=0)
    return all(a <= b for a, b in zip_longest(*numbers, fillvalue=0))

"""Writes docs/performance.md and its pictures, from the files under bench/results alone.

For `python -m bench` and the test that the page is what the files say. The text around the tables
is here; every figure comes from a file, which the page links to.
"""

from pathlib import Path

from _machine import ROOT
from _quotes import PLACES, put
from _results import PARTS, RESULTS, best, compared, median, newest, ratio, untimed
from _tables import flops, markdown, missing, tables

from fastalex import files

PAGE = ROOT / "docs" / "performance.md"
MARK = (
    "<!-- Made by `python -m bench --redraw` from bench/results: what is written here is lost -->"
)

INTRODUCTION = """# Performance

How fast fastalex is, beside the best that stock PyTorch does on the same machine, and how far from
what the machine can do. `python -m bench` measures all of it on yours ([how, and what each column
means](../bench/README.md)). A ratio is the best peer's time over the best of fastalex's, so above 1
fastalex is quicker; a limit is the sum over layers of the larger of arithmetic and traffic, at the
speeds of a large matrix product and a large copy measured in the same run. Every provider first had
to compute what the plain float32 network computes. The paper's network and torchvision's are never
mixed; the demo's is the paper's at a quarter of the width."""

NO_GPU = """**Nothing has been measured on a GPU yet**, and no speed is claimed for one: what
follows is a CPU's, on which the ops compute with ATen."""

HEADINGS = {
    "step": ("A whole training step", "Forward with dropout, loss, backward, optimizer."),
    "inference": ("Inference", "At batch 1, latency: from the call to the answer, one at a time."),
    "ops": ("Op by op", "Each pass of each op at the networks' shapes, in turns with its peers."),
    "data": ("Feeding it", "Images a second of each way to make batches."),
    "gpus": ("Two GPUs", "`fastalex-train` itself, on the demo."),
}  # fmt: skip
PICTURES = {
    "step": ("step", "Images a second by provider, beside the limit"),
    "ops": ("ops", "The paper's step by op, beside each op's limit"),
    "roofline": ("ops", "Roofline of every pass"),
}
"""By name: the part it stands with, and what it shows."""


def redraw(page: Path = PAGE, results: Path = RESULTS) -> list[Path]:
    """Writes page and pictures, and beside the repository's own page what others quote."""
    from _plots import draw

    found = newest(results)
    written = [page]
    for _, result in found:
        written += draw(result, _stem(page, result), page.parent).values()
    files.write(page, text(results, page).encode())
    if page == PAGE:
        for name, (document, make) in PLACES.items():
            files.write(document, put(name, document.read_text(), make(found)).encode())
            written.append(document)
    return written


def text(results: Path = RESULTS, page: Path = PAGE) -> str:
    """The page. Of pictures it names those that lie beside it."""
    found = newest(results)
    paragraphs = [MARK, INTRODUCTION]
    if not any(result["device"]["kind"] == "cuda" for _, result in found):
        paragraphs.append(NO_GPU)
    for path, result in found:
        paragraphs += _device(path, result, page)
    return "\n\n".join(paragraphs) + "\n"


def _stem(page: Path, result: dict) -> str:
    return f"{page.stem}-{result['device']['slug']}"


def _device(path: Path, result: dict, page: Path) -> list[str]:
    parts = result["parts"]
    found = [f"## {result['device']['name']}", f"[All samples](../bench/results/{path.name})."]
    if lines := [line for name in ("step", "inference") for line in headlines(name, parts)]:
        found.append("\n".join(lines))
    for name in PARTS:
        if name in parts:
            found += _part(name, parts[name], _stem(page, result), page)
    return found


def headlines(name: str, parts: dict) -> list[str]:
    """The ratio to the best peer, named; a line for each network and batch."""
    lines = []
    for row in compared(parts.get(name, {"rows": []})):
        own, peer = best(row, True), best(row, False)
        if peer is None:
            continue
        what = "training step" if name == "step" else "inference"
        share = row["floor_s"] / median(row, own)
        lines.append(
            f"- {row['network']}, batch {row['batch']}, {what}: **{ratio(row):.2f}** to the best "
            f"peer{_but(row)}, {peer}; {share:.0%} of the limit"
        )
    return lines


def _but(row: dict) -> str:
    return f" (without {', '.join(untimed(row))}, which have no time)" if untimed(row) else ""


def _part(name: str, part: dict, stem: str, page: Path) -> list[str]:
    title, about = HEADINGS[name]
    found = [f"### {title}", f"{about} {_how(part)}"]
    made = list(tables(name, part).items())
    if made:
        found.append(markdown(made[0][1]))
    for picture, (of, shows) in PICTURES.items():
        if of == name and (page.parent / f"{stem}-{picture}.png").exists():
            found.append(f"![{shows}]({stem}-{picture}.png)")
    for heading, table in made[1:]:
        found += [f"{heading[0].upper()}{heading[1:]}:", markdown(table)]
    if left_out := missing(part):
        found += ["Not measured:", "\n".join(f"- {each}" for each in left_out)]
    return found


def _how(part: dict) -> str:
    """When, by what command, with which versions, in how many processes, under which limits."""
    versions = ", ".join(f"{name} {version}" for name, version in part["versions"].items())
    count = part["processes"]
    how = f"`{part['command']}`, {part['measured'][:10]}, {versions}; "
    how += f"{count} process{'es' if count > 1 else ''}"
    if limits := part["limits"]:
        how += f"; limits: copy {limits['copy'] / 1e9:,.0f} GB/s, matrix product "
        how += ", ".join(f"{name} {flops(limits[name])}" for name in ("bf16", "fp32"))
    return how + "."

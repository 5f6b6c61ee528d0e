"""The suite's JSON: one file a device and day, `results/<device>-<date>.json`, part by part.

For `_suite.py` (writes), `_page.py` and `_plots.py` (read), and the tests of the documents.

    format, device       1; what it ran on
    parts                by name: measured, command, versions, limits, processes, seconds, rows,
                         left_out. A part is replaced as a whole, with its own versions, so that
                         nothing in it comes from two
    a row                key, network, batch, ..., floor_s, and
      providers          by name: says, ours, seconds {median, p10, p90}, samples (a list for each
                         process), first_call_s, peak_bytes, error (at the gate), gated_at
      failed, left_out   by name, the reason
"""

import datetime
import json
import re
from pathlib import Path
from typing import Any

from _measure import percentile

from fastalex import files

RESULTS = Path(__file__).parent / "results"
FORMAT = 1
PARTS = ("step", "inference", "ops", "data", "gpus")
"""In the order in which they run and a page shows them."""


def pool(processes: list[list[dict]]) -> dict[str, Any]:
    """The rows of all processes of a part as one, with the highest limits they measured."""
    measured = [row["limits"] for rows in processes for row in rows if "limits" in row]
    limits = {
        name: max(each[name] for each in measured) for name in (measured[0] if measured else {})
    }
    by_key: dict[str, list[dict]] = {}
    for rows in processes:
        for row in rows:
            if "key" in row:
                by_key.setdefault(row["key"], []).append(row)
    return {"limits": limits, "rows": [_pooled(rows) for rows in by_key.values()]}


def _pooled(rows: list[dict]) -> dict:
    """Of one key. What failed in any process failed."""
    first = rows[0]
    merged = {k: v for k, v in first.items() if k not in ("providers", "failed", "left_out")}
    if "floor_s" in first:
        merged["floor_s"] = min(row["floor_s"] for row in rows)
    failed = {name: why for row in reversed(rows) for name, why in row["failed"].items()}
    merged["providers"] = {}
    for name, entry in first["providers"].items():
        found = [row["providers"][name] for row in rows if name in row["providers"]]
        samples = [each["samples"] for each in found if each.get("samples")]
        if name not in failed and samples:
            merged["providers"][name] = _provider(entry, found, samples)
    merged["failed"], merged["left_out"] = failed, first.get("left_out", {})
    return merged


def _provider(entry: dict, found: list[dict], samples: list[list[float]]) -> dict:
    every = [value for each in samples for value in each]
    peaks = [each["peak_bytes"] for each in found if each.get("peak_bytes") is not None]
    quantiles = {"median": 0.5, "p10": 0.1, "p90": 0.9}
    pooled = entry | {
        "seconds": {name: _short(percentile(every, share)) for name, share in quantiles.items()},
        "samples": [[_short(value) for value in each] for each in samples],
    }
    if peaks:
        pooled["peak_bytes"] = max(peaks)
    for name in ("first_call_s", "error"):
        if isinstance(pooled.get(name), float):
            pooled[name] = _short(pooled[name])
    return pooled


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def result_path(slug: str, folder: Path = RESULTS) -> Path:
    return folder / f"{slug}-{datetime.date.today().isoformat()}.json"


def merge(path: Path, device: dict, name: str, part: dict) -> None:
    """Puts a part into a file, in the place of what stood there for it; the others stay."""
    known = load(path) if path.exists() else None
    parts = known["parts"] if known else {}
    parts = {each: parts[each] for each in PARTS if each in parts} | {name: part}
    ordered = {each: parts[each] for each in PARTS if each in parts}
    write(path, {"format": FORMAT, "device": device, "parts": ordered})


def write(path: Path, result: dict) -> None:
    """Lists of numbers stand on one line."""
    text = json.dumps(result, indent=1, allow_nan=False)
    text = re.sub(r"\[\s+([-\d.e+,\s]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    path.parent.mkdir(exist_ok=True)
    files.write(path, (text + "\n").encode())


def load(path: Path) -> dict | None:
    """A file of the suite; None where it is another's."""
    result = json.loads(path.read_text())
    known = isinstance(result, dict) and result.get("format") == FORMAT and "parts" in result
    return result if known else None


def newest(folder: Path = RESULTS) -> list[tuple[Path, dict]]:
    """The last file of each device, those of GPUs first."""
    found: dict[str, tuple[Path, dict]] = {}
    for path in sorted(folder.glob("*-????-??-??.json")):
        if (result := load(path)) is not None:
            found[result["device"]["slug"]] = path, result
    return sorted(found.values(), key=lambda each: each[1]["device"]["kind"] != "cuda")


def compared(part: dict) -> list[dict]:
    """The rows that have one of ours, by network and batch; the ablation aside."""
    rows = [row for row in part["rows"] if row["key"] != "ablation" and best(row, ours=True)]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    return sorted(rows, key=lambda row: (networks.index(row["network"]), row["batch"]))


def median(row: dict, name: str) -> float:
    return row["providers"][name]["seconds"]["median"]


def best(row: dict, ours: bool) -> str | None:
    """The quickest of ours, or of the peers; None where there is none."""
    names = [name for name, entry in row["providers"].items() if entry["ours"] == ours]
    return min(names, key=lambda name: median(row, name), default=None)


def untimed(row: dict) -> list[str]:
    """The peers that have no time: with these the best might be another."""
    names = {**row["failed"], **row["left_out"]}
    return sorted(name for name in names if not name.startswith("fastalex"))


def ratio(row: dict) -> float | None:
    """The best peer's time over the best of ours': above 1, fastalex is quicker."""
    own, peer = best(row, True), best(row, False)
    return median(row, peer) / median(row, own) if own and peer else None

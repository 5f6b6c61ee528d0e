"""Whether low precision harms training: the demo's loss curves, side by side with float32's.

    python bench/loss_curves.py                  # trains, keeps the losses, redraws the page
    python bench/loss_curves.py --redraw FILE    # page and picture from a file of losses alone

The real trainer, 500 steps of `fastalex-train`'s demo: in fp32, in bf16 and, on a GPU, in fp16,
with the same seed, hence the same weights, images and dropout; then in fp32 with two other seeds.
How far the fp32 runs are apart is the scale: what moves the loss by less does no harm that anyone
could see. Some minutes. Writes bench/results/losses-DEVICE-DATE.json, docs/precision.png and the
section of docs/training.md between its marks.
"""

import argparse
import dataclasses
import datetime
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _loss_curves_page as page
import torch
from _loss_curves_picture import draw

import fastalex
from fastalex.data import demo_dataset
from fastalex.data.shards import Dataset
from fastalex.train import TrainConfig, recipe, train
from fastalex.train.log import read_log

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
PICTURE, PAGE = ROOT / "docs" / "precision.png", ROOT / "docs" / "training.md"
STEPS, OTHER_SEEDS = 500, 2


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--redraw", type=Path, metavar="FILE", help="train nothing; draw this file")
    path = parser.parse_args().redraw or record()
    kept = json.loads(path.read_text())
    draw(kept, PICTURE)
    page.write(page.section(kept, path.name), PAGE)
    print(f"{kept['verdict']}\n{path}, {PICTURE}, {PAGE}")
    return 0


def record() -> Path:
    """Trains all, one behind the other; the file of losses."""
    on_gpu = torch.cuda.is_available()
    base = dataclasses.replace(recipe("demo", "cuda" if on_gpu else "cpu"), steps=STEPS)
    dataset = demo_dataset()
    runs = []
    for name, settings in settings_of_runs(on_gpu, base.seed).items():
        print(f"{name}: {base.steps} steps", flush=True)
        runs.append({"name": name, **one_run(dataclasses.replace(base, **settings), dataset)})
    device = torch.cuda.get_device_name() if on_gpu else f"{_processor()}, {_cores()}"
    today = datetime.date.today().isoformat()
    kept = {
        "what": "losses of the demo by precision",
        "command": "python bench/loss_curves.py",
        "device": device,
        "date": today,
        "versions": {
            "fastalex": fastalex.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "config": base.to_json(),
        "validation_images": len(dataset.val),
        "runs": runs,
    }
    kept["verdict"] = page.verdict(kept)
    slug = "-".join(("" if on_gpu else "cpu ").split() + device.replace(",", "").lower().split())
    path = RESULTS / f"losses-{slug}-{today}.json"
    path.write_text(json.dumps(kept, indent=1) + "\n")
    return path


def settings_of_runs(on_gpu: bool, seed: int) -> dict[str, dict[str, Any]]:
    """What sets each run apart, by its name; the first is what the others are held against."""
    precisions = ("fp32", "bf16", *(("fp16",) if on_gpu else ()))
    same: dict[str, dict[str, Any]] = {
        name: {"precision": name, "seed": seed} for name in precisions
    }
    others = [seed + 1 + n for n in range(OTHER_SEEDS)]
    return same | {f"fp32, seed {n}": {"precision": "fp32", "seed": n} for n in others}


def one_run(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """What the trainer logged: the loss of each step, the validations; and how long it took."""
    torch.compiler.reset()  # the run before left its compiled step behind
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        train(config, dataset, Path(folder) / "run")
        lines = read_log(Path(folder) / "run")
    return {
        "precision": config.precision,
        "seed": config.seed,
        "seconds": round(time.monotonic() - began, 1),
        "losses": [line["loss"] for line in lines if "loss" in line],
        "validation": [line for line in lines if "val_loss" in line],
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _cores() -> str:
    return f"{torch.get_num_threads()} cores"


if __name__ == "__main__":
    sys.exit(main())

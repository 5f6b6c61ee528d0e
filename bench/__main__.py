"""Measures fastalex on this machine, beside the best that stock PyTorch does, and keeps it.

    python -m bench                     everything that there is time for
    python -m bench step inference      these parts only
    python -m bench --redraw            docs/performance.md and its pictures from the JSON files

Run it in the repository's root, on a machine that does nothing else; it needs `pip install -e
'.[train,test]'`, and `data`'s JPEG tier DALI. On a GPU it first runs the tests that only a GPU can
run, and stops where one fails. It writes bench/results/DEVICE-DATE.json after each part, so that a
kill loses one part at most; run again the same day it replaces the parts it measures. Then it
prints the tables and redraws docs/performance.md and the tables that README and docs/data.md quote
from the JSON files alone: `git checkout` takes a trial back.

    step        a whole training step: two networks, batches 128 to 2048 (on a CPU: the demo's and
                both networks at 16), every usual way to run it in PyTorch; gated, in turns
    inference   the same for answers; batch 1 is a latency
    ops         every op and pass, and the share of the device's limit it reaches
    data        images a second: synthetic, raw pixels, JPEG by DALI beside Pillow
    gpus        fastalex-train --gpus 2, each way, beside one; with fewer than two GPUs only when
                asked for by name, on two processes of the CPU

How the measuring is done, and what each column means: bench/README.md.
"""

import argparse
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from _machine import GPU, device, device_name
from _page import redraw
from _results import PARTS, load, result_path
from _suite import Suite, called, say
from _tables import text

MINUTES = 9.0 if GPU else 20.0


def main() -> int:
    options = arguments()
    if options.redraw:
        return report(redraw())
    names = options.parts or [
        name for name in PARTS if name != "gpus" or device().get("count", 0) > 1
    ]
    path = result_path(device()["slug"])
    say(f"{device_name()}; {', '.join(names)}; {options.minutes:g} minutes; {path}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was measured is still written
    suite = Suite(names, options.minutes, path, called())
    try:
        suite.run()
    except KeyboardInterrupt:
        suite.failures.append("interrupted")
    if path.exists() and "interrupted" not in suite.failures and (result := load(path)):
        print(text(result, names))
    report(redraw())
    if not options.parts and "gpus" not in names:
        say("gpus: left out, there are no two GPUs here; ask for it by name to try it on the CPU")
    for failure in suite.failures:
        say(f"error: {failure}")
    return 1 if suite.failures else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all but gpus, "
        "which needs two GPUs)",
    )  # fmt: skip
    parser.add_argument(
        "--minutes", type=float, default=MINUTES,
        help="the budget; what has no time left is left out, and the tables say so (default: "
        "%(default)g here)",
    )  # fmt: skip
    parser.add_argument(
        "--redraw", action="store_true", help="measure nothing; draw docs/performance.md anew"
    )
    options = parser.parse_args()
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if not options.minutes > 0:
        parser.error(f"--minutes must be greater than 0, got {options.minutes:g}")
    if options.redraw and options.parts:
        parser.error("--redraw measures nothing; leave out the parts")
    return options


def report(written: list[Path]) -> int:
    say("drawn: " + ", ".join(str(path) for path in written))
    return 0


if __name__ == "__main__":
    sys.exit(main())

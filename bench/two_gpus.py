"""The tables and the picture of docs/two-gpus.md: what two GPUs exchange, when, and for how long.

    python bench/two_gpus.py                                   # prints the tables; no GPU needed
    python bench/two_gpus.py --write docs/two-gpus.md          # writes them between their marks
    python bench/two_gpus.py --trace docs/two-gpus-trace.png   # runs two CPU processes, draws them

Bytes come from formulas, which tests/train/test_schedule_of_exchanges.py holds against the step;
times from a simulator of the step's program, on assumptions that the page states; the schedule from
the program that torch.compile makes of the step.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import _two_gpus_tables as tables
import _two_gpus_trace as trace

TABLES: dict[str, Callable[[], str]] = {
    "bytes": tables.bytes_by_formula,
    "times": tables.predicted_times,
    "schedule": tables.measured_schedule,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the tables to this page")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="draw the trace, and no tables")
    options = parser.parse_args()
    if options.trace:
        trace.draw(options.trace)
        return 0
    for name, make in TABLES.items():
        table = make()
        print(f"{name}\n\n{table}\n")
        if options.write:
            tables.write(name, table, options.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())

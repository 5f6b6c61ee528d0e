"""A profile as text: a line a row, aligned. For the command and for scripts."""

import textwrap
from collections import Counter

from fastalex.profile.measure import Profile, Row

_HEAD = (
    "unit", "forward ms", "backward ms", "both ms", "share", "GFLOP", "MB", "limit ms", "of limit"
)  # fmt: skip

BUSY = 2.0
"""Rows and step further apart than this factor are not of an idle machine."""


def table(profile: Profile) -> str:
    """What was profiled, its rows, the whole step, and in a sentence why the two sums differ."""
    rows, step = profile.rows, profile.step_ms
    total = sum(row.ms for row in rows)
    limit = sum(row.limit_ms for row in rows)
    flops, moved = sum(row.flops for row in rows), sum(row.moved for row in rows)
    sums = _cells(flops, moved, limit)
    lines = [
        _HEAD,
        *(_line(row, total) for row in rows),
        (
            "sum of rows", _sum(rows, "forward"), _sum(rows, "backward"), _ms(total), _percent(1.0),
            *sums, _percent(limit / total),
        ),
        ("whole step", "", "", _ms(step), "", *sums, _percent(limit / step)),
    ]  # fmt: skip
    return "\n".join([*_about(profile), "", *_aligned(lines), "", _difference(profile, total)])


def _about(profile: Profile) -> list[str]:
    config, limits = profile.config, profile.limits
    width = f" at {config.width:g} of its width" if config.width != 1 else ""
    return [
        f"variant {config.variant}{width}, {config.precision}, batch {config.batch_size}, "
        f"on {profile.device}",
        f"limits, measured here in {config.precision}: matrix product "
        f"{limits.flops_per_s / 1e9:,.0f} GFLOP/s, copy {limits.bytes_per_s / 1e9:,.1f} GB/s",
        f"ops: {_ops(profile)}",
    ]


def _ops(profile: Profile) -> str:
    """Which candidate the ops ran as, by op."""
    if not profile.choices:
        return "ATen"
    chosen = Counter((choice.op, choice.winner) for choice in profile.choices)
    ops = dict.fromkeys(choice.op for choice in profile.choices)
    return ", ".join(
        f"{op} ({', '.join(f'{n} {name}' for (of, name), n in chosen.items() if of == op)})"
        for op in ops
    )


def _line(row: Row, total: float) -> tuple[str, ...]:
    passes = [_ms(row.passes[w].ms) if w in row.passes else "" for w in ("forward", "backward")]
    return (
        row.name, *passes, _ms(row.ms), _percent(row.ms / total),
        *_cells(row.flops, row.moved, row.limit_ms), _percent(row.limit_ms / row.ms),
    )  # fmt: skip


def _cells(flops: int, moved: int, limit_ms: float) -> tuple[str, str, str]:
    return f"{flops / 1e9:,.1f}" if flops else "", f"{moved / 1e6:,.1f}", _ms(limit_ms)


def _sum(rows: tuple[Row, ...], which: str) -> str:
    return _ms(sum(row.passes[which].ms for row in rows if which in row.passes))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _ms(value: float) -> str:
    return f"{value:,.3f}" if value < 100 else f"{value:,.1f}"


def _aligned(lines: list[tuple[str, ...]]) -> list[str]:
    """The first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    ]


def _difference(profile: Profile, total: float) -> str:
    step, config = profile.step_ms, profile.config
    on_cpu = profile.device.startswith("the CPU")
    apart = f"{abs(step - total):,.1f} ms ({_percent(abs(step / total - 1))} of the rows' sum)"
    if step >= total and on_cpu:
        why = "what lies between the rows, and the noise of the machine"
    elif step >= total:
        why = "launches, which the rows hide, and what lies between the rows"
    elif config.compile:
        why = "what torch.compile joins across rows, and what overlaps or stays in a cache"
    else:
        why = "what stays in a cache from one row to the next, and the noise of the machine"
    if on_cpu and max(step, total) > BUSY * min(step, total):
        why += (
            ". That much apart, do not trust the shares: something else uses this machine; try "
            "again when it is idle, or with one thread (OMP_NUM_THREADS=1)"
        )
    text = (
        f"The whole step, as the trainer runs it, makes {config.batch_size / step * 1e3:,.0f} "
        f"images/s; it takes {apart} {'more' if step >= total else 'less'} than its rows, "
        f"each timed alone: {why}."
    )
    return textwrap.fill(text, 100)

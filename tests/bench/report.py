"""The results for people and for programs: a table, and JSON with every sample. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from tests.bench.measure import Row


def cell(row: Row, name: str) -> str:
    """A contender's median time."""
    seconds = row.seconds(name)
    if seconds is not None:
        return f"{seconds:.3f}"
    return f"> {row.limit_s:g}" if row.over(name) else "failed"


def ratio_cell(row: Row, base: str, ours: str) -> str:
    """How many times as fast, with '>' where it is only known to be more."""
    ratio = row.ratio(base, ours)
    return "-" if ratio is None else f"{'>' if row.over(base) else ''}{ratio:.2f}"


def spread_cell(row: Row, base: str, ours: str) -> str:
    """The lowest and highest ratio that pairs of neighbouring runs give."""
    pairs = zip(row.samples.get(base, []), row.samples.get(ours, []), strict=False)
    ratios = [first.seconds / second.seconds for first, second in pairs if first.seconds and second.seconds]
    return f"{min(ratios):.2f}-{max(ratios):.2f}" if len(ratios) > 1 else ""


def rate_cell(row: Row, name: str) -> str:
    seconds = row.seconds(name)
    return f"{row.moved_bytes / seconds / 1e6:.3g}" if row.moved_bytes and seconds else ""


def table(rows: Sequence[Row], base: str, ours: str) -> str:
    """A line for each row; times are medians, memory is the most of all runs, CPU that of the mount's process."""
    header = ["RTT ms", "workload", f"{base} s", f"{ours} s", "ratio", "spread", "MB/s", "", "CPU s", "", "peak MB", ""]
    lines = [header]
    for row in rows:
        line = [f"{row.rtt_ms:g}", row.title, cell(row, base), cell(row, ours)]
        line += [ratio_cell(row, base, ours), spread_cell(row, base, ours)]
        line += [rate_cell(row, base), rate_cell(row, ours)]
        for name in (base, ours):
            line.append(f"{row.cpu_s(name):.2f}")
        for name in (base, ours):
            line.append(f"{row.peak_rss_bytes(name) / 1e6:.0f}")
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    # The workload's name is text and goes to the left, numbers to the right.
    text = [
        "  ".join(
            field.ljust(width) if number == 1 else field.rjust(width)
            for number, (field, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    text.insert(1, "-" * len(text[0]))
    explained = (
        f"ratio: how many times as fast as {base} {ours} is; of two figures under one heading the first is {base}'s"
    )
    faults = [
        f"{row.workload} at {row.rtt_ms:g} ms, {name}: {fault}"
        for row in rows
        for name in (base, ours)
        for fault in row.faults(name)
    ]
    return "\n".join(line.rstrip() for line in [*text, explained, *faults])


def document(
    rows: Sequence[Row], base: str, ours: str, about: Mapping[str, object], misses: Sequence[str]
) -> dict[str, object]:
    """Everything measured, for a program to read: medians, ratios, and every sample."""
    results = []
    for row in rows:
        contenders = {
            name: {
                "median_s": row.seconds(name),
                "over_limit": row.over(name),
                "cpu_s": row.cpu_s(name),
                "machine_cpu_s": row.machine_cpu_s(name),
                "peak_rss_bytes": row.peak_rss_bytes(name),
                "samples": [dataclasses.asdict(sample) for sample in row.samples[name]],
            }
            for name in (base, ours)
        }
        results.append(
            {
                "rtt_ms": row.rtt_ms,
                "workload": row.workload,
                "title": row.title,
                "moved_bytes": row.moved_bytes,
                "ratio": row.ratio(base, ours),
                "ratio_is_a_minimum": row.over(base),
                "contenders": contenders,
            }
        )
    return {"about": dict(about), "base": base, "ours": ours, "rows": results, "misses": list(misses)}

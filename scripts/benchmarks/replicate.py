"""Replication beside rsync and btrfs send: seconds, CPU seconds, bytes on the wire."""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from dataclasses import asdict
from pathlib import Path

from candidates import Missing
from copiers import COPIERS, Cost
from machine import touch_memory
from replicated import DataSet, data_sets

WARM_BYTES = 4 << 30
"""So much memory a copy may need at most, for both sides of what it copies."""

Figures = dict[str, dict[str, Cost]]
"""By case, then by copier."""


def measure(home: Path, name: str, data: DataSet) -> dict[str, Cost]:
    """One copier on one data set: the costs of the initial copy and of each change."""
    costs: dict[str, Cost] = {}
    chance = random.Random(data.name)
    with COPIERS[name](home) as copier:
        for case, step in {"initial copy": data.fill, **data.changes}.items():
            copier.change(lambda tree, step=step: step(tree, chance))  # type: ignore[misc]
            touch_memory(WARM_BYTES)
            costs[case] = copier.update()
    return costs


def show(case: str, costs: dict[str, Cost]) -> None:
    """A line for each copier; ratios say how many times as much as the first one it takes."""
    print(case)
    ours = next(iter(costs.values()))
    for name, cost in costs.items():
        ratios = "".join(
            f"{theirs / mine if mine else 0:>9.2f}"
            for theirs, mine in (
                (cost.seconds, ours.seconds),
                (cost.durable_seconds, ours.durable_seconds),
                (cost.cpu_seconds, ours.cpu_seconds),
                (cost.wire_bytes, ours.wire_bytes),
            )
        )
        print(
            f"  {name:14}{cost.seconds:>10.3f}{cost.durable_seconds:>10.3f}"
            f"{cost.cpu_seconds:>10.2f}{cost.wire_bytes:>15,}{ratios}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="1: 50,000 files, 1 GiB (0.01-10)")
    parser.add_argument("--only", help="data sets whose name contains this")
    parser.add_argument("--copiers", help=f"separated by semicolons, of: {'; '.join(COPIERS)}")
    parser.add_argument("--dir", type=Path, help="where (default: a temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the figures")
    options = parser.parse_args()
    names = options.copiers.split(";") if options.copiers else list(COPIERS)
    sets = [data for data in data_sets(options.scale) if (options.only or "") in data.name]
    if unknown := [name for name in names if name not in COPIERS]:
        parser.error(f"no such copier: {unknown[0]}")
    if not 0.001 <= options.scale <= 10:
        parser.error("--scale is 0.001 to 10")
    if not sets:
        parser.error("no such data set")
    print(f"{'':16}{'seconds':>10}{'durable':>10}{'CPU s':>10}{'wire bytes':>15}", end="")
    print(f"{'ratios':>9}{'durable':>9}{'CPU':>9}{'wire':>9}")
    saved: list[dict[str, object]] = []
    for data in sets:
        figures: Figures = {}
        for name in names:
            with tempfile.TemporaryDirectory(dir=options.dir) as home:
                try:
                    costs = measure(Path(home), name, data)
                except Missing as missing:
                    print(f"without {name}: {missing}")
                    continue
            for case, cost in costs.items():
                figures.setdefault(case, {})[name] = cost
        for case, costs in figures.items():
            show(f"{data.name}: {case}", costs)
            saved += [
                {"data": data.name, "case": case, "copier": name, **asdict(cost)}
                for name, cost in costs.items()
            ]
    if options.json:
        options.json.write_text(json.dumps(saved, indent=1))


if __name__ == "__main__":
    main()

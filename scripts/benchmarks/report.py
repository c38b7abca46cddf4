"""Figures of the runs, and the table that they make."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

OURS = "nasfs"

Pick = Callable[[Iterable[float]], float]
"""Which of the rounds counts: `statistics.median`, or `min` on a noisy machine."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One workload on one candidate, once; times of all its operations, in seconds."""

    workload: str
    candidate: str
    operations: int
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds of one operation: on the clock, and of the serving process."""

    time: float
    cpu: float


def cost(rounds: Sequence[Figure], pick: Pick) -> Cost:
    return Cost(
        pick(figure.seconds / figure.operations * 1e6 for figure in rounds),
        pick(figure.cpu_seconds / figure.operations * 1e6 for figure in rounds),
    )


class Table:
    """A line for each workload, printed at once, and what they come to.

    A ratio says how many times faster than another we are: its time by ours.

    Args:
        show: takes a line.
        cpu: with the serving processes' time.
    """

    def __init__(self, names: Sequence[str], *, cpu: bool, show: Callable[[str], object]) -> None:
        self._names = names
        self._cpu = cpu
        self._show = show
        self._ratios: dict[str, list[float]] = {name: [] for name in names}

    def head(self) -> None:
        self._line("us per operation", [(name, "cpu", "ratio") for name in self._names])

    def add(self, workload: str, costs: Mapping[str, Cost]) -> None:
        cells = []
        ours = costs.get(OURS)
        for name in self._names:
            mine = costs[name]
            ratio = ""
            if ours is not None and name != OURS:
                self._ratios[name].append(mine.time / ours.time)
                ratio = f"{mine.time / ours.time:.2f}"
            cells.append((f"{mine.time:.1f}", f"{mine.cpu:.1f}" if mine.cpu else "", ratio))
        self._line(workload, cells)

    def foot(self) -> None:
        ratios = [self._ratios[name] for name in self._names]
        means = [f"{statistics.geometric_mean(of):.2f}" if of else "" for of in ratios]
        wins = [f"{sum(ratio > 1 for ratio in of)}/{len(of)}" if of else "" for of in ratios]
        self._line("geometric mean", [("", "", mean) for mean in means])
        self._line("we are faster in", [("", "", won) for won in wins])

    def _line(self, title: str, cells: Sequence[tuple[str, str, str]]) -> None:
        texts = (
            f"{time:>14}" + (f"{cpu:>9}" if self._cpu else "") + f"{ratio:>7}"
            for time, cpu, ratio in cells
        )
        self._show(f"{title:17}{''.join(texts)}".rstrip())

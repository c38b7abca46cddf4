"""A wire between two network name spaces: a pair of veth devices, as fast as a token bucket lets.

The name spaces live in processes that end with this one, so nothing of them stays.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

ADDRESSES = ("10.177.0.1", "10.177.0.2")
DEVICE = "wire"


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


class Wire:
    """Its two ends are 0 and 1."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        near, far = (("name", DEVICE, "netns", str(pid)) for pid in pids)
        _run("ip", "link", "add", *near, "type", "veth", "peer", *far)
        for end, address in enumerate(ADDRESSES):
            self.at(end, "ip", "address", "add", f"{address}/30", "dev", DEVICE)
            self.at(end, "ip", "link", "set", "lo", "up")
            self.at(end, "ip", "link", "set", DEVICE, "up")

    def inside(self, end: int) -> tuple[str, ...]:
        """The beginning of a command line that runs the rest at that end."""
        return ("nsenter", f"--net=/proc/{self._pids[end]}/ns/net")

    def at(self, end: int, *words: str) -> str:
        return _run(*self.inside(end), *words)

    def limit(self, rate: str) -> None:
        """In both directions; as tc(8) writes rates."""
        for end in range(2):
            self.at(
                end, "tc", "qdisc", "replace", "dev", DEVICE, "root", "tbf",
                "rate", rate, "burst", "64kb", "latency", "100ms",
            )  # fmt: skip

    def cut(self) -> None:
        self.at(1, "ip", "link", "set", DEVICE, "down")

    def mend(self) -> None:
        self.at(1, "ip", "link", "set", DEVICE, "up")

    def reset(self) -> None:
        """Break every TCP connection over it."""
        self.at(0, "ss", "-K", "dst", ADDRESSES[1])

    def sent(self, end: int) -> int:
        """Bytes that went into the wire there, headers and repetitions included."""
        (found,) = json.loads(self.at(end, "ip", "-s", "-j", "link", "show", "dev", DEVICE))
        return int(found["stats64"]["tx"]["bytes"])


@contextmanager
def wire() -> Iterator[Wire]:
    """Needs root."""
    spaces = [
        subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    try:
        for space in spaces:
            assert space.stdout is not None
            space.stdout.readline()
        yield Wire([space.pid for space in spaces])
    finally:
        for space in spaces:
            space.communicate()

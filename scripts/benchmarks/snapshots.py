"""Seal and delta of a volume, at a tenth of the files and at all of them: neither may grow."""

from __future__ import annotations

import argparse
import json
import random
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from nasfs.volume import (
    ROOT_INO,
    Access,
    Epoch,
    Ino,
    create_pool,
    create_volume,
    open_volume,
    volume_path,
)

A_DIRECTORY = 1000
CHANGED = 1000


def milliseconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1e3


def measure(home: Path, files: int) -> dict[str, float]:
    """Figures of a fresh volume with that many files; times in milliseconds."""
    pool = create_pool(home / f"pool-{files}")
    create_volume(pool, "v", size=1 << 42)
    path = volume_path(pool, "v")
    figures: dict[str, float] = {"files": files}
    with open_volume(path) as volume:
        inos: list[Ino] = []
        began = time.perf_counter()
        for number in range(files):
            if number % A_DIRECTORY == 0:
                name = b"d%d" % number
                parent = volume.mkdir(ROOT_INO, name, 0o755, uid=0, gid=0).ino
            made = volume.mknod(parent, b"f%d" % number, stat.S_IFREG | 0o644, uid=0, gid=0)
            inos.append(made.ino)
        figures["create, us a file"] = (time.perf_counter() - began) / files * 1e6
        volume.commit()
        figures["seal"] = milliseconds(lambda: volume.seal("one"))
        for ino in random.Random(1).sample(inos, CHANGED):
            volume.setattr(ino, mode=0o600)
        volume.commit()
        figures[f"seal after {CHANGED} changes"] = milliseconds(lambda: volume.seal("two"))
        one, two = (snapshot.epoch for snapshot in volume.snapshots())
        with open_volume(path, Access.READ_ONLY) as reader:

            def read(base: Epoch, target: Epoch) -> None:
                delta = reader.delta(base, target)
                figures["rows"] = sum(1 for _ in delta.rows())
                figures["extents"] = sum(1 for _ in delta.extents())

            figures["delta of everything"] = milliseconds(lambda: read(Epoch(0), one))
            figures[f"delta of {CHANGED} changes"] = milliseconds(lambda: read(one, two))
        volume.setattr(inos[0], mode=0o755)
        volume.destroy_snapshot("one")

        def reclaim() -> None:
            while volume.reclaim_step() or volume.changed:
                volume.commit()

        figures["destroy and reclaim"] = milliseconds(reclaim)
    figures["open"] = milliseconds(lambda: open_volume(path).close())
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--dir", type=Path, help="where (default: a temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as home:
        measure(Path(home) / "warm", 10_000)
        small = measure(Path(home), options.files // 10)
        large = measure(Path(home), options.files)
    print(f"{'':28}{small['files']:>12.0f}{large['files']:>12.0f}  ratio   (milliseconds)")
    for name in large:
        ratio = large[name] / small[name] if small[name] else 0.0
        print(f"{name:28}{small[name]:>12.2f}{large[name]:>12.2f}{ratio:>7.2f}")
    if options.json:
        options.json.write_text(json.dumps([small, large], indent=1))


if __name__ == "__main__":
    main()

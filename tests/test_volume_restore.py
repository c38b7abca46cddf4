"""A file or tree comes back as it was, sharing blocks where it can; the accounts stay exact."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from nasfs.volume import check_volume, open_volume

from .crash_disk import Log, RecordingMedia, write_image
from .crash_history import History, fresh, place_in_memory, reclaim_all
from .crash_model import look
from .test_volume_model import layer_bytes


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with place_in_memory(monkeypatch) as directory:
        yield directory


@pytest.mark.parametrize(
    ("seeds", "steps"),
    [(range(12), 250), pytest.param(range(12, 300), 600, marks=pytest.mark.soak)],
)
def test_random_histories_with_restores_keep_every_view_and_every_account(
    place: Path, seeds: range, steps: int
) -> None:
    """Each step compares the live tree, and the end every snapshot, with plain values."""
    done: Counter[str] = Counter()
    image, start = fresh(place)
    for seed in seeds:
        path = place / f"run{seed}"
        write_image(image, path)
        history = History(random.Random(seed), start, RecordingMedia(Log(path)))
        history.run(steps)
        done += history.done
        assert [str(finding) for finding in check_volume(path)] == []
        with open_volume(path) as volume:
            for snapshot in volume.snapshots():
                if random.Random(seed).random() < 0.5:
                    volume.destroy_snapshot(snapshot.name)
            reclaim_all(volume)
            state = look(volume)
            used = volume.statfs().used
        assert layer_bytes(path) == used
        assert [str(finding) for finding in check_volume(path)] == []
        with open_volume(path) as volume:
            for snapshot in volume.snapshots():
                volume.destroy_snapshot(snapshot.name)
            reclaim_all(volume)
            assert look(volume).live == state.live
            assert volume.statfs().used == volume.statfs().live
        assert [str(finding) for finding in check_volume(path)] == []
    assert done["restore_over"] > 20
    assert done["restore_new"] > 10

"""Names of scheduled snapshots: ``POLICY-2026.11.22-16.00.00``, in UTC.  Labels, not identities.

The time is the second in which the snapshot is taken: who looks for what was there at 16:00 finds
no later bytes under that name.
"""

from __future__ import annotations

from collections.abc import Container
from datetime import UTC, datetime

from .rhythm import SECOND_NS

FORMAT = "%Y.%m.%d-%H.%M.%S"


def snapshot_name(policy: str, time_ns: int, taken: Container[str] = ()) -> str:
    """A name that is not among *taken*.

    A second one of the same second gets ``-2``, and so on: after a clock was set back the same
    labels come again.
    """
    label = datetime.fromtimestamp(time_ns // SECOND_NS, UTC).strftime(FORMAT)
    name = base = f"{policy}-{label}"
    number = 1
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    return name

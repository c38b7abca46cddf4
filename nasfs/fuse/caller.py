"""What a request does not tell of its caller: supplementary groups and capabilities.

The kernel checks all access by itself; these are asked only where it leaves a decision to the file
system, and only for the few files that it matters for.
"""

from __future__ import annotations

from pathlib import Path

from pyfuse3 import RequestContext

CAP_FSETID = 4
CAP_SYS_ADMIN = 21


def is_member(ctx: RequestContext, gid: int) -> bool:
    """Whether the caller is in a group; its supplementary groups count."""
    return ctx.gid == gid or str(gid) in _status(ctx).get("Groups", "").split()


def is_capable(ctx: RequestContext, capability: int) -> bool:
    """Whether the caller has a capability; where that can't be found out: whether it is root."""
    effective = _status(ctx).get("CapEff")
    if effective is None:
        return bool(ctx.uid == 0)
    return bool(int(effective, 16) >> capability & 1)


def _status(ctx: RequestContext) -> dict[str, str]:
    """Of the calling thread, which waits for us; {} if it is out of our sight."""
    try:
        text = Path(f"/proc/{ctx.pid}/status").read_text()
    except OSError:
        return {}
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)

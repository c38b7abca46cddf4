"""Which suites of smbtorture are about files, which of them are left out and why."""

from __future__ import annotations

from collections.abc import Mapping

GROUPS = ("base.", "smb2.")

LEFT_OUT: Mapping[str, str] = {
    "base.bench-holdcon": "measures, and has no end",
    "base.bench-holdopen": "measures, and has no end",
    "base.bench-readwrite": "measures, and has no end",
    "base.bench-torture": "measures, and has no end",
    "base.iometer": "measures, and has no end",
    "base.scan-ioctl": "asks for every number that there is",
    "base.scan-maxfid": "asks how many files smbd can have open",
    "base.scan-pipe_number": "asks for every number that there is",
    "base.trans2-scan": "asks for every number that there is",
    "base.nttrans": "asks for every number that there is",
    "base.casetable": "asks for every letter that there is",
    "base.utable": "asks for every letter that there is",
    "base.smb1-twrp-openroot": "wants a snapshot of a name of its own",
    "smb2.bench": "measures, and has no end",
    "smb2.scan": "asks for every number that there is",
    "smb2.maxfid": "asks how many files smbd can have open",
    "smb2.hold-oplock": "holds what others are to break",
    "smb2.hold-sharemode": "holds what others are to break",
    "smb2.check-sharemode": "wants to be told files by options",
    "smb2.twrp": "wants a snapshot of a name of its own",
    "smb2.aio_delay": "wants smbd with a module that delays",
    "smb2.async_dosmode": "wants smbd with a module that delays",
    "smb2.durable-v2-delay": "wants smbd with a module that delays",
    "smb2.change_notify_disabled": "wants an smbd without change notifications",
    "smb2.kernel-oplocks": "wants an smbd with kernel oplocks",
    "smb2.session-require-signing": "is about sessions, not about files",
    "smb2.multichannel": "is about interfaces, not about files",
    "smb2.fileid_unique": "wants smbd with a module for it",
}

_NO_PUNCH = "punches a hole: fallocate(2), which a file system by pyfuse3 is never asked for"
_FAR = "times are kept in nanoseconds of 64 bits: until April 2262 (those of ext4 end in 2446)"

EXCEPTIONS: Mapping[str, str] = {
    f"smb2.ioctl.{name}": _NO_PUNCH
    for name in (
        "sparse_punch", "sparse_hole_dealloc", "sparse_copy_chunk", "sparse_punch_invalid",
        "sparse_perms", "sparse_lock", "sparse_qar_ob1", "sparse_qar_multi",
    )
} | {
    f"smb2.timestamps.time_t_{seconds}": _FAR for seconds in (15032385535, 10000000000)
}  # fmt: skip
"""Tests that pass on the disk and can't on the volume, with the reason."""

QUICK = (
    "base.attr", "base.dir1", "base.mangle", "base.openattr", "smb2.acls.CREATOR",
    "smb2.acls.OWNER", "smb2.create.multi", "smb2.dir.find", "smb2.lock.valid-request",
    "smb2.mkdir", "smb2.rename.simple", "smb2.rw.rw1", "smb2.streams.dir", "smb2.streams.rename",
)  # fmt: skip
"""For the test suite: some that are done within seconds."""

"""The mount process in the background: ``python -m nasfs.fuse.background FD ORDER``.

Started by `nasfs.fuse.mount.mount_in_background`, never by hand.  It detaches itself, runs the
mount, and reports one JSON line to the descriptor FD: that it serves, or why not.
"""

from __future__ import annotations

import errno
import logging
import logging.handlers
import os
import sys
from pathlib import Path

import msgspec

from nasfs.errors import ConfigError, Failed, NasError, Refused, Unreachable
from nasfs.fuse.identity import IdentityMap

log = logging.getLogger(__name__)


class Order(msgspec.Struct, frozen=True):
    """The arguments of `run_mount`, paths absolute."""

    volume_path: str
    mountpoint: str
    snapshot: str | None
    control: str | None
    fsname: str
    commit_interval_s: float
    allow_other: bool
    flags: tuple[str, ...]
    log_file: str | None
    list_snapshots: bool | None = None
    identities: IdentityMap | None = None
    follow: bool = False


def order_of(pid: int) -> Order | None:
    """What a running mount process was started with; None if it is not one of this module."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
        found = words.index(__name__.encode())
        return msgspec.json.decode(words[found + 2], type=Order)
    except (OSError, ValueError, IndexError, msgspec.MsgspecError):
        return None


class Report(msgspec.Struct, frozen=True):
    """How it went: serving, or an error."""

    pid: int
    message: str = ""
    hint: str = ""
    exit_code: int = 0


def outcome(line: bytes) -> int:
    """The process number out of a report; its error is raised."""
    if not line:
        raise Failed("the mount process ended before it served", hint="see its log")
    report = msgspec.json.decode(line, type=Report)
    match report.exit_code:
        case 0:
            return report.pid
        case 2:
            raise ConfigError(report.message, report.hint)
        case 3:
            raise Refused(report.message, report.hint)
        case 4:
            raise Unreachable(report.message, report.hint)
        case _:
            raise Failed(report.message, report.hint)


class _Reporter:
    """Writes one report, once."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd

    def send(self, report: Report) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with open(fd, "wb") as pipe:
                pipe.write(msgspec.json.encode(report) + b"\n")

    def serving(self) -> None:
        self.send(Report(os.getpid()))


def configure_logging(log_file: str | None) -> None:
    """To the file, or to syslog where there is one, as one line of text per event."""
    handler: logging.Handler
    if log_file is not None:
        handler = logging.FileHandler(log_file)
        stamp = "%(asctime)s "
    elif os.path.exists("/dev/log"):
        handler = logging.handlers.SysLogHandler("/dev/log")
        stamp = ""
    else:
        handler = logging.NullHandler()
        stamp = ""
    handler.setFormatter(
        logging.Formatter(f"{stamp}nasfs[%(process)d] %(levelname)s %(name)s: %(message)s")
    )
    handler.addFilter(is_news)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def is_news(record: logging.LogRecord) -> bool:
    """Not that an answer came too late: the kernel had given the request up, see fuse(4), ENOENT.

    Mostly it was unmounted right behind a close, whose answer nobody waits for.
    """
    return not (
        record.name == "pyfuse3"
        and "fuse_reply_*" in str(record.msg)
        and record.args == (os.strerror(errno.ENOENT),)
    )


def main(arguments: list[str]) -> int:
    """Detach, mount, report; the exit code is that of the error."""
    reporter = _Reporter(int(arguments[0]))
    order = msgspec.json.decode(arguments[1], type=Order)
    if os.fork():
        os._exit(0)  # the caller waits for this one; the mount belongs to init from now on
    try:
        configure_logging(order.log_file)
        # Only now: who waits for the fork above need not wait for these imports.
        from nasfs.fuse.mount import run_mount

        run_mount(
            Path(order.volume_path),
            Path(order.mountpoint),
            snapshot=order.snapshot,
            control=None if order.control is None else Path(order.control),
            fsname=order.fsname,
            commit_interval_s=order.commit_interval_s,
            allow_other=order.allow_other,
            flags=order.flags,
            list_snapshots=order.list_snapshots,
            identities=order.identities,
            follow=order.follow,
            on_ready=reporter.serving,
        )
    except NasError as exc:
        log.error("%s", exc)
        reporter.send(Report(os.getpid(), str(exc), exc.hint, exc.exit_code))
        return exc.exit_code
    except Exception as exc:
        log.critical("the mount process failed", exc_info=True)
        reporter.send(Report(os.getpid(), f"internal error: {exc!r}", exit_code=1))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

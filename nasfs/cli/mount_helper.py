"""``/sbin/mount.fuse.nasfs`` and ``/sbin/umount.fuse.nasfs``: what mount(8) and umount(8) call.

They speak the language of those commands, not that of ``nasfs``: their arguments, and their exit
codes.  docs/mounting.md tells what an fstab line may say.
"""

from __future__ import annotations

import getopt
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nasfs.errors import ConfigError, Failed, NasError
from nasfs.node.places import Places

from .mount_options import MountOptions, parse_options

if TYPE_CHECKING:
    from nasfs.fuse.background import Order

OK = 0
USAGE = 1
SYSTEM = 2
BUG = 4
INTERRUPTED = 8
MOUNT_FAILED = 32
"""Exit codes of mount(8)."""

MOUNT_S = 600.0
"""So long a mount may take: after a crash the host may have much to write.  systemd has a limit
of its own (x-systemd.mount-timeout=)."""


class UsageError(ConfigError):
    """Arguments that we cannot make sense of, or a caller who may not do this."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a helper."""

    words: tuple[str, ...]
    options: str
    letters: frozenset[str]
    namespace: str


def parse_call(arguments: Sequence[str], letters: str) -> Call:
    """Arguments as mount(8) and umount(8) pass them; *letters* are the flags without a value.

    Raises:
        UsageError: there are others.
    """
    try:
        options, words = getopt.gnu_getopt(list(arguments), f"{letters}o:t:N:")
    except getopt.GetoptError as exc:
        raise UsageError(str(exc)) from exc
    given = [(name[1:], value) for name, value in options]
    return Call(
        words=tuple(words),
        options=",".join(value for name, value in given if name == "o"),
        letters=frozenset(name for name, _ in given if name in letters),
        namespace=next((value for name, value in given if name == "N"), ""),
    )


# mounting


def mount(arguments: Sequence[str]) -> None:
    """``mount.fuse.nasfs SOURCE DIR [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]``.

    Returns when the volume is mounted, or, for a remount, when its flags are changed.
    """
    call = parse_call(arguments, "sfnv")
    if len(call.words) != 2:
        raise UsageError("usage: mount.fuse.nasfs SOURCE DIR [-sfnv] [-o OPTIONS]")
    _check_root("mount")
    _enter(call.namespace, arguments)
    options = parse_options(call.options, sloppy="s" in call.letters)
    say = _speaker("mount.fuse.nasfs", call)
    fake = "f" in call.letters
    source, directory = call.words[0], Path(call.words[1])
    if options.remount:
        _remount(source, directory, options, fake=fake, say=say)
    else:
        _mount(source, directory, options, fake=fake, say=say)


def _mount(
    source: str, directory: Path, options: MountOptions, *, fake: bool, say: Callable[[str], None]
) -> None:
    from nasfs.fuse.mount import mount_in_background
    from nasfs.fuse.mountpoint import check_mountpoint
    from nasfs.node.mount_source import find_source

    directory = check_mountpoint(directory)
    found = find_source(
        Places.find(options.root), source, snapshot=options.snapshot, follow=options.follow
    )
    if fake:
        say(f"{source} could be mounted on {directory}")
        return
    process = mount_in_background(
        found.path,
        directory,
        snapshot=found.snapshot,
        control=found.control,
        fsname=source,  # as it was said: `mount -a` tells by it what is mounted already
        commit_interval_s=options.commit_interval_s or found.commit_interval_s,
        allow_other=options.allow_other,
        flags=options.flags,
        list_snapshots=options.list_snapshots,
        identities=found.identities,
        follow=found.follow,
        log_file=Path(options.log_file) if options.log_file else found.log_file,
        timeout_s=MOUNT_S,
    )
    say(f"{source} mounted on {directory} by process {process}")


def _remount(
    source: str, directory: Path, options: MountOptions, *, fake: bool, say: Callable[[str], None]
) -> None:
    """Change the kernel's flags; what the mount process was started with stays."""
    from nasfs.fuse.background import order_of
    from nasfs.fuse.mountpoint import FSTYPE, find_mount, process_of, resolve, watch

    path = resolve(directory)
    mounted = find_mount(path)
    if mounted is None or mounted.fstype != FSTYPE:
        raise Failed(f"no nasfs volume is mounted at {path}")
    connection = watch(mounted)
    if connection is None:
        raise Failed(f"the mount process of {path} is gone", hint=f"umount {path}; mount {path}")
    with connection:
        order = order_of(process_of(connection))
    snapshot = mounted.source.rpartition("/")[2].partition("@")[2]
    if order is not None:
        snapshot = order.snapshot or ""
        _check_same(options, order, snapshot)
    is_snapshot = bool(snapshot) or (order is not None and order.follow)
    if is_snapshot and "ro" not in options.flags:
        raise Failed(f"{path} is a snapshot: it cannot be remounted read-write")
    if fake:
        return
    access = "ro" if "ro" in options.flags else "rw"
    flags = ",".join(["remount", access, *sorted(options.flags - {"ro"})])
    # With both source and directory mount(8) adds nothing from fstab or the mount table.
    _run(["mount", "--internal-only", "-o", flags, mounted.source, str(path)])
    if "ro" in options.flags and not is_snapshot:
        _commit(path)
    say(f"{source} remounted on {path}")


def _check_same(options: MountOptions, order: Order, snapshot: str) -> None:
    """Raises UsageError for an option that a remount cannot change."""
    asked = {
        "commit": (options.commit_interval_s, order.commit_interval_s),
        "snapshot": (options.snapshot or None, snapshot),
        "follow": (options.follow or None, order.follow),
        "log": (options.log_file or None, order.log_file),
        "noallow_other": (False if not options.allow_other else None, order.allow_other),
        "list_snapshots": (options.list_snapshots, order.list_snapshots),
    }
    for name, (wanted, running) in asked.items():
        if wanted is not None and wanted != running:
            raise UsageError(
                f"a remount cannot change the option {name}",
                hint="unmount and mount again, or leave it as it was when it was mounted",
            )


def _commit(path: Path) -> None:
    """Make durable what was written before the volume became read-only."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# unmounting


def umount(arguments: Sequence[str]) -> None:
    """``umount.fuse.nasfs DIR [-nlfvr] [-N NAMESPACE] [-t TYPE]``.

    Returns when everything is durable; with -l (lazy) at once: then the volume is unmounted when
    nobody uses it any more.
    """
    from nasfs.fuse.mount import unmount
    from nasfs.fuse.mountpoint import detach_dead, resolve
    from nasfs.node.kept_mounts import check_not_kept

    call = parse_call(arguments, "nlfvr")
    if len(call.words) != 1:
        raise UsageError("usage: umount.fuse.nasfs DIR [-nlfvr]")
    _check_root("unmount")
    _enter(call.namespace, arguments)
    path = resolve(Path(call.words[0]))
    say = _speaker("umount.fuse.nasfs", call)
    if "l" in call.letters:
        detach_dead(path)
        say(f"{path} detached; it is unmounted when nobody uses it any more")
        return
    try:
        if "f" not in call.letters:
            check_not_kept(Places.find(None), path)
        unmount(path, force="f" in call.letters)
    except Failed:
        if "r" not in call.letters:
            raise
        _run(["mount", "--internal-only", "-o", "remount,ro", str(path)])
        _commit(path)
        say(f"{path} is busy: remounted read-only")
        return
    say(f"{path} unmounted")


# both


def _check_root(doing: str) -> None:
    if os.geteuid() != 0:
        raise UsageError(
            f"only root can {doing} a nasfs volume",
            hint="the options user, users, owner and group of fstab do not change that",
        )


def _enter(namespace: str, arguments: Sequence[str]) -> None:
    """For ``mount -N``: start again inside that mount namespace; does not return then."""
    if not namespace:
        return
    rest = list(arguments)
    at = next(i for i, word in enumerate(rest) if word.startswith("-N"))
    del rest[at : at + (2 if rest[at] == "-N" else 1)]
    # Our own descriptor: its path goes through this process, which exec leaves as it is.
    descriptor = os.open(namespace, os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    command = ["nsenter", f"--mount=/proc/self/fd/{descriptor}", "--", sys.argv[0], *rest]
    os.execvp(command[0], command)


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise Failed(done.stderr.strip() or f"{command[0]} ended with {done.returncode}")


def _speaker(name: str, call: Call) -> Callable[[str], None]:
    def say(sentence: str) -> None:
        if "v" in call.letters:
            print(f"{name}: {sentence}")

    return say


def run(name: str, helper: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> int:
    """The exit code of a helper; its errors become text."""
    try:
        helper(arguments)
    except NasError as exc:
        print(f"{name}: {exc}", file=sys.stderr)
        if exc.hint:
            print(f"hint: {exc.hint}", file=sys.stderr)
        return USAGE if isinstance(exc, ConfigError) else MOUNT_FAILED
    except OSError as exc:
        print(f"{name}: {exc}", file=sys.stderr)
        return SYSTEM
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        return BUG
    return OK


def run_mount() -> None:
    sys.exit(run("mount.fuse.nasfs", mount, sys.argv[1:]))


def run_umount() -> None:
    sys.exit(run("umount.fuse.nasfs", umount, sys.argv[1:]))

"""The servers themselves: what their checkers say of a configuration, and telling them to read it.

A server is reloaded, never restarted: clients keep their files open.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from nasfs.errors import Failed, Refused
from sharecfg.exports import parse_exports
from sharecfg.ganesha import parse_ganesha

from .share_files import Server, ShareFile, read_text

TOOL_S = 60.0
"""So long a tool may take (seconds)."""
_SAID = ("Unknown parameter", "Ignoring", "ERROR", "rror loading", "Bad ", "Invalid")
"""Words by which testparm complains of a line that it then ignores."""


def check_text(file: ShareFile, text: str) -> None:
    """Raises Refused if the server would not take *text* as our part of its configuration."""
    match file.server:
        case Server.SAMBA:
            _check_samba(file, text)
        case Server.KERNEL:  # exportfs has no check: it is read as exports(5) says
            complaints = parse_exports(text, file.own.name).complaints
            if complaints:
                raise Refused("\n".join(map(str, complaints)))
        case Server.GANESHA:  # nor has Ganesha
            complaints = parse_ganesha(text, file.own.name).complaints
            if complaints:
                raise Refused("\n".join(map(str, complaints)))


def _check_samba(file: ShareFile, text: str) -> None:
    """testparm reads the whole configuration, with our part as it would be."""
    if shutil.which("testparm") is None:
        raise Failed("testparm is not installed: it checks what Samba is told", "install samba")
    with tempfile.TemporaryDirectory(prefix="nasfs-") as name:
        ours = Path(name) / "samba.conf"
        ours.write_text(text, encoding="utf-8", errors="surrogateescape")
        main = _without(file)
        before = _testparm(Path(name) / "before.conf", main)
        after = _testparm(Path(name) / "after.conf", f"{main}\ninclude = {ours}\n")
    new = [line for line in after.stderr.splitlines() if line not in before.stderr.splitlines()]
    wrong = [line for line in new if any(word in line for word in _SAID)]
    if after.returncode != 0 and before.returncode != 0:
        raise Refused(
            f"testparm refuses {file.main} as it is: {_last(after.stderr)}",
            hint=f"correct it: testparm -s {file.main}",
        )
    if after.returncode != 0 or wrong:
        said = "; ".join(wrong) or _last(after.stderr)
        raise Refused(f"Samba would not take that: {said}", hint="nothing was changed")


def _without(file: ShareFile) -> str:
    """The administrator's part."""
    line = "".join(file.include_line.split())
    kept = [one for one in read_text(file.main).splitlines() if "".join(one.split()) != line]
    return "\n".join(kept) + "\n"


def _testparm(path: Path, text: str) -> subprocess.CompletedProcess[str]:
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    return run_tool(["testparm", "-s", str(path)])


def run_tool(argv: Sequence[str], *, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """A tool of the system, to its end.  Raises Failed if it can't be run, or hangs."""
    try:
        return subprocess.run(
            argv,
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TOOL_S,
            check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
    except FileNotFoundError as exc:
        raise Failed(f"{argv[0]} is not installed") from exc
    except subprocess.TimeoutExpired as exc:
        raise Failed(f"{argv[0]} did not end within {TOOL_S:.0f} s") from exc
    except OSError as exc:
        raise Failed(f"cannot run {argv[0]}: {exc.strerror}") from exc


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def reload(file: ShareFile, gone: Sequence[str] = ()) -> str:
    """Have the server read its configuration again.

    Args:
        gone: names of SMB shares that are no longer there: who is connected to them is cut off.

    Returns:
        What is to be known about it; empty if all is well.
    """
    match file.server:
        case Server.SAMBA:
            return _reload_samba(file, gone)
        case Server.KERNEL:
            return _tool_note(["exportfs", "-ra"])
        case Server.GANESHA:
            return _hang_up(file)


def _reload_samba(file: ShareFile, gone: Sequence[str]) -> str:
    base = ["smbcontrol", "-s", str(file.main)]
    note = _tool_note([*base, "smbd", "reload-config"])
    if "find pid" in note or "not running" in note:
        return "smbd does not run"
    for name in gone if not note else ():
        note = note or _tool_note([*base, "smbd", "close-share", name])
    return note


def _tool_note(argv: Sequence[str]) -> str:
    try:
        done = run_tool(argv)
    except Failed as exc:
        return str(exc)
    if done.returncode == 0:
        return ""
    return f"{argv[0]} says: {_last(done.stderr + done.stdout)}"


def _hang_up(file: ShareFile) -> str:
    """SIGHUP: Ganesha adds, changes and removes exports, and keeps the others."""
    try:
        pid = int(read_text(file.pid_file).split()[0])
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        if not name.startswith("ganesha"):
            return "Ganesha does not run"
        os.kill(pid, signal.SIGHUP)
    except (IndexError, ValueError, FileNotFoundError, ProcessLookupError):
        return "Ganesha does not run"
    except PermissionError:
        return "Ganesha can't be told: no permission"
    return ""

"""The runbook: its commands are run as they are written, on two real nodes."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cut_link import linked
from tests.node_world import NodeWorld, wait_until
from tests.role_world import Pair, made_pair

pytestmark = pytest.mark.mount

PAGE = Path(__file__).parents[1] / "docs/runbook.md"


class Runbook:
    """A section of the page after the other; its blocks of commands in their order."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.words: dict[str, str] = {}
        """What the page writes in capitals, or means in another place on this machine."""
        self.ran: list[str] = []

    def run(self, section: str, *blocks: int) -> str:
        """All blocks of a section, or some; what the last command says."""
        text = PAGE.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
        found = re.findall(r"```\n(.*?)```", text, re.DOTALL)
        said = ""
        for number, block in enumerate(found):
            if not blocks or number in blocks:
                for line in block.splitlines():
                    said = self._line(line)
        return said

    def _line(self, line: str) -> str:
        where, command, *words = line.split()
        assert (where in ("a$", "b$"), command) == (True, "nasfs"), line
        node = self.pair.a if where == "a$" else self.pair.b
        self.ran.append(line)
        if words[:2] == ["node", "init"]:  # a new machine
            self.pair.a = node = rebuilt(node)
            self.words["/srv/pool"] = str(node.root / "pool")
            return ""
        for old, new in self.words.items():
            words = [word.replace(old, new) for word in words]
        said = node.run(*words)
        if words[:2] == ["pair", "invite"]:
            self.words["CODE"] = said.strip()
        if match := re.search(r"diverged-\S+", said):
            self.words["DIVERGED"] = match[0]
        return said


def rebuilt(old: NodeWorld) -> NodeWorld:
    """The machine anew, with nothing on its disks."""
    old.close()
    old.daemon = None
    shutil.rmtree(old.root)
    old.root.mkdir()
    made = NodeWorld(old.root, old.name)
    made.start()
    return made


@contextmanager
def runbook(where: Path) -> Iterator[tuple[Runbook, Path]]:
    """A pair with two snap groups; the live volume on a."""
    with made_pair(where, "home") as pair:
        home = pair.a.mountpoint("tank/home")
        (home / "lost.txt").write_text("good")
        pair.replicate("one")
        try:
            yield Runbook(pair), home
        finally:
            pair.a.close()  # also if it is another one by now


def write(path: Path, text: str) -> None:
    """Durable on return."""
    with path.open("w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())


def role(node: NodeWorld) -> str:
    return str(node.json("group", "show", "office")["role"])


def test_a_site_is_lost_and_comes_back(tmp_path: Path) -> None:
    with runbook(tmp_path) as (book, home):
        a, b = book.pair.a, book.pair.b
        book.run("Before anything happens")
        write(home / "lost.txt", "not replicated")
        a.kill_all()
        book.run("The primary's site is lost", 0)
        there = b.mountpoint("safe/home")
        assert (there / "lost.txt").read_text() == "good"
        (there / "new").touch()
        a.start()
        wait_until(lambda: role(a) == "stale", "it steps down")
        book.run("The primary's site is lost", 1)
        assert role(a) == "passive"
        assert "lost.txt" in book.run("The primary's site is lost", 2)
        book.run("The primary's site is lost", 3)
        assert (home / "new").exists()
        assert (home / "lost-on-a.txt").read_text() == "not replicated"
        book.run("The primary must go down for a while")
        assert (role(a), role(b)) == ("active", "passive")
        book.run("The link is lost")
        book.run("The pair shall end")
        assert b.json("group", "list") == []


def test_files_are_spoilt(tmp_path: Path) -> None:
    with runbook(tmp_path) as (book, home):
        a, b = book.pair.a, book.pair.b
        (home / "lost.txt").unlink()
        book.run("Somebody deleted or spoilt files")
        assert (home / "lost.txt").read_text() == (home / "old.txt").read_text() == "good"
        (home / "lost.txt").write_text("encrypted")
        book.pair.replicate("spoilt")
        book.run("Ransomware")
        assert (home / "lost.txt").read_text() == "good"
        assert not (home / "old.txt").exists()
        assert (role(a), role(b)) == ("active", "passive")


def test_a_node_is_rebuilt(tmp_path: Path) -> None:
    with runbook(tmp_path) as (book, home):
        book.pair.a.kill_all()
        book.run("The primary's site is lost", 0)
        book.run("A node is rebuilt from nothing")
        assert (home / "lost.txt").read_text() == "good"
        assert role(book.pair.a) == "active"
        assert role(book.pair.b) == "passive"
        book.pair.b.run("failback", "office")  # it is the original primary of the new pair
        assert role(book.pair.b) == "active"


def test_the_primary_was_restarted(tmp_path: Path) -> None:
    with runbook(tmp_path) as (book, home):
        a, b = book.pair.a, book.pair.b
        b.kill()
        a.kill_all()
        a.start()
        assert a.json("volume", "show", "tank/home")["mount_state"] == "waiting"
        book.run("The primary was restarted, and b does not answer")
        wait_until((home / "lost.txt").exists, "it goes on")
        b.start()


SPLIT = "Both were written to (split brain)"


@contextmanager
def both_write(where: Path) -> Iterator[tuple[Runbook, Path, Path]]:
    """Both live, and see each other again; the live volumes."""
    with runbook(where) as (book, home), linked(book.pair) as link:
        a, b = book.pair.a, book.pair.b
        link.cut()
        b.run("failover", "office", "--force", "--lose-unreplicated")
        there = b.mountpoint("safe/home")
        write(home / "lost.txt", "of a")
        write(there / "lost.txt", "of b")
        link.restore()
        wait_until(lambda: role(a) == "stale", "it steps down")
        yield book, home, there


def test_both_were_written_to_and_become_one(tmp_path: Path) -> None:
    with both_write(tmp_path) as (book, home, there):
        book.run(SPLIT, 0)
        assert (role(book.pair.a), role(book.pair.b)) == ("passive", "active")
        assert (there / "lost.txt").read_text() == "of b"
        book.run(SPLIT, 1)
        assert (role(book.pair.a), role(book.pair.b)) == ("active", "passive")
        assert (home / "lost.txt").read_text() == "of a"
        assert (home / "lost-on-a.txt").read_text() == "of a"
        names = [view["name"] for view in book.pair.a.json("snapshot", "list", "tank/home")]
        assert any("@before-restore-" in name for name in names), "what b had is kept"


def test_both_were_written_to_and_part(tmp_path: Path) -> None:
    with both_write(tmp_path) as (book, home, there):
        book.run(SPLIT, 2)
        assert (role(book.pair.a), role(book.pair.b)) == ("active", "active")
        wait_until((home / "lost.txt").exists, "it is mounted again")
        assert (home / "lost.txt").read_text() == "of a"
        assert (there / "lost.txt").read_text() == "of b"


def test_every_command_of_the_page_is_one_of_ours() -> None:
    lines = [
        line
        for block in re.findall(r"```\n(.*?)```", PAGE.read_text(), re.DOTALL)
        for line in block.splitlines()
    ]
    assert lines
    assert all(re.match(r"[ab]\$ nasfs \w", line) for line in lines)

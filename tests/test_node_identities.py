"""Whom files belong to, on this node and on the partner, asked while there is time."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sharecfg.identities import Meaning, Names, compare
from tests.node_world import wait_until
from tests.separate_nodes import replicate, separate_pair


@pytest.mark.parametrize(
    ("active", "passive", "meaning", "wrong"),
    [
        ({"alice": 7}, {"alice": 7}, Meaning.SAME, False),
        ({}, {}, Meaning.UNNAMED, False),
        ({"alice": 7}, {}, Meaning.MISSING, False),
        ({"DOM\\alice": 7}, {}, Meaning.MISSING, True),
        ({"alice": 7}, {"bob": 7}, Meaning.OTHER_NAME, True),
        ({}, {"bob": 7}, Meaning.OTHER_NAME, True),
        ({"alice": 7}, {"alice": 8}, Meaning.OTHER_NUMBER, True),
        ({"alice": 7}, {"alice": 8, "bob": 7}, Meaning.OTHER_NUMBER, True),
    ],
)
def test_what_a_number_means(
    active: dict[str, int], passive: dict[str, int], meaning: Meaning, wrong: bool
) -> None:
    def names(known: dict[str, int]) -> Names:
        local = frozenset(name for name in known if "\\" not in name)
        return Names(by_number={n: name for name, n in known.items()}, by_name=known, local=local)

    (found,) = compare("user", [7], [], names(active), names(passive))
    assert (found.meaning, found.wrong) == (meaning, wrong)
    assert "7" in str(found)


@pytest.mark.mount
def test_the_partner_is_asked_whom_numbers_mean_there(tmp_path: Path) -> None:
    users = (
        [("alice", 4001), ("carol", 4003), ("dave", 4004)],
        [("zoe", 4003), ("dave", 4404)],
    )
    with separate_pair(tmp_path, users) as (a, b):
        home = a.mountpoint("tank/home")
        (home / "hers").touch()
        os.chown(home / "hers", 4001, 4001)
        replicate(a, "one")
        listed = {(one["kind"], one["number"]): one for one in a.json("identity", "list", "office")}
        assert listed["user", 4001]["name"] == "alice"
        assert listed["user", 4001]["source"] == "local"
        assert listed["user", 4001]["files"] == 1
        check = a.json("identity", "check", "office")
        assert check["ok"]
        meanings = {one["name"]: one["meaning"] for one in check["compared"]}
        assert meanings == {"root": "same", "alice": "missing there"}
        assert check["directory"] == []

        a.shell("setfacl", "-m", "u:carol:r,g:dave:rw", str(a.inner("tank/home") / "hers"))
        a.run("share", "add", "office", "tank/home", "--user", "dave")
        (b.etc / "nsswitch.conf").write_text("passwd: files nis\ngroup: files\n")
        replicate(a, "two")
        assert a.json("identity", "list", "tank/home") == a.json("identity", "list", "office")
        listed = {(one["kind"], one["number"]): one for one in a.json("identity", "list", "office")}
        assert listed["user", 4003]["acl_entries"] == 1
        for node in (a, b):
            done = node.nasfs("identity", "check", "office", "--json")
            assert done.returncode == 1
            check = json.loads(done.stdout)
            assert (check["active"], check["passive"]) == ("a", "b")
            told = {one["told"] for one in check["compared"] if one["wrong"]}
            assert told == {
                "user carol (4003): the number is zoe's there",
                "user dave (4004) has the number 4404 there",
                "group dave (4004) has the number 4404 there",
            }
            assert any(line.startswith("passwd: ") for line in check["directory"])
            assert not check["directory_wrong"]
        b.kill()
        wait_until(lambda: a.nasfs("identity", "check", "office").returncode == 4, "not reachable")

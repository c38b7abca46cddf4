"""The identity map: one to one, both ways, in owners, ACLs and security descriptors."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasfs.fuse.identity import NT_ACL, IdentityMap, Numbers, completed, machine_prefix
from nasfs.fuse.ntacl import Subject, _digests
from nasfs.volume import acl
from nasfs.volume.acl import Entry, Tag

numbers = st.integers(0, 12)
wishes = st.dictionaries(numbers, numbers, max_size=6).filter(
    lambda wanted: len(set(wanted.values())) == len(wanted)
)
A, B = "S-1-5-21-1-2-3", "S-1-5-21-4294967295-2-4"


@given(wishes)
def test_what_is_wanted_becomes_a_permutation(wanted: dict[int, int]) -> None:
    mapped = Numbers(completed(wanted))
    here = [mapped.to_here(stored) for stored in range(20)]
    assert sorted(here) == list(range(20))
    assert [mapped.to_stored(number) for number in here] == list(range(20))
    assert all(mapped.to_here(stored) == shown for stored, shown in wanted.items())


@given(wishes, wishes, st.sets(numbers), st.sets(numbers))
def test_acls_are_translated_and_stay_valid(
    uids: dict[int, int], gids: dict[int, int], users: set[int], groups: set[int]
) -> None:
    mapped = IdentityMap(Numbers(completed(uids)), Numbers(completed(gids)))
    stored = acl.encode(
        (
            Entry(Tag.USER_OBJ, 7),
            *(Entry(Tag.USER, 4, user) for user in sorted(users)),
            Entry(Tag.GROUP_OBJ, 5),
            *(Entry(Tag.GROUP, 6, group) for group in sorted(groups)),
            Entry(Tag.MASK, 7),
            Entry(Tag.OTHER, 0),
        )
    )
    shown = mapped.value_here(acl.ACCESS, stored)
    found = acl.decode(shown)
    assert {e.id for e in found if e.tag is Tag.USER} == {mapped.uids.to_here(n) for n in users}
    assert {e.id for e in found if e.tag is Tag.GROUP} == {mapped.gids.to_here(n) for n in groups}
    assert mapped.value_stored(acl.ACCESS, shown) == stored
    assert mapped.value_here(acl.ACCESS, b"nonsense") == b"nonsense"
    assert mapped.value_here(b"user.x", stored) == stored


@given(wishes, st.lists(st.tuples(st.sampled_from([A, B, "S-1-5-21-9-9-9"]), numbers)))
def test_sids_change_places_both_ways(rids: dict[int, int], named: list[tuple[str, int]]) -> None:
    mapped = IdentityMap(rids=Numbers(completed(rids)), machine_stored=A, machine_here=B)

    def descriptor(sids: list[tuple[str, int]]) -> bytes:
        parts = [machine_prefix(sid) + struct.pack("<I", rid) for sid, rid in sids]
        return b"\n\n".join([b"head", *parts])

    stored = descriptor(named)
    places = {A: B, B: A}
    shown = [
        (places.get(sid, sid), mapped.rids.to_here(rid) if sid == A else rid) for sid, rid in named
    ]
    assert mapped.value_here(NT_ACL, stored) == descriptor(shown)
    assert mapped.value_stored(NT_ACL, descriptor(shown)) == stored


def test_a_map_of_nothing_is_empty() -> None:
    assert IdentityMap().is_empty
    assert IdentityMap(machine_stored=A, machine_here=A).is_empty
    assert not IdentityMap(machine_stored=A, machine_here=B).is_empty
    value = os.urandom(500)
    assert IdentityMap(machine_stored=A, machine_here=B).value_here(NT_ACL, value) == value


# descriptors as smbd 4.17 wrote them: of a file, and of a directory with a default list

FILE = bytes.fromhex(
    "0400040000000200040002000100ab3a73c5ff27318a53d43762cb866dfd9fb42004501ef68dea4c74d58a0b"
    "23600000000000000000000000000000000000000000000000000000000000000000706f7369785f61636c00"
    "1ae2cd5f677bdd01c1dc7efe64bf15bfeb8c863d48ed3bfcfe5c045993b3505e108116d942eb49ae00000000"
    "0000000000000000000000000000000000000000000000000000000001000480b4000000d000000000000000"
    "ec000000010500000000000515000000da0e341c412de2bf07678197e8030000010500000000000515000000"
    "da0e341c412de2bf0767819701020000020088000400000001002400ff011f00010500000000000515000000"
    "da0e341c412de2bf07678197e903000000001400a900120001010000000000010000000000002400a9001200"
    "010500000000000515000000da0e341c412de2bf076781970102000000002400ff011f000105000000000005"
    "15000000da0e341c412de2bf07678197e8030000"
)
DIRECTORY = bytes.fromhex(
    "0400040000000200040002000100ee4816b23d87ad0c64fa4022069f3b000429193cca81b24111b42a7b0a89"
    "09200000000000000000000000000000000000000000000000000000000000000000706f7369785f61636c00"
    "cef9de5f677bdd01ecab308b4d0b4eebe8a900e2bcdef2cd55958cefdd580201824d8122f418d40f00000000"
    "0000000000000000000000000000000000000000000000000000000001000480b4000000d000000000000000"
    "e0000000010500000000000515000000da0e341c412de2bf07678197e8030000010200000000001602000000"
    "3c000000020004010900000000031400a9001200010100000000000100000000000b1400ff011f0001010000"
    "0000000300000000000b1400a900120001010000000000030100000000001800a90012000102000000000016"
    "020000003c00000000031800a90012000102000000000016020000003c00000000002400ff011f0001050000"
    "0000000515000000da0e341c412de2bf07678197e803000000032400ff011f00010500000000000515000000"
    "da0e341c412de2bf07678197e803000000002400ff011f00010500000000000515000000da0e341c412de2bf"
    "07678197e9030000000b2400ff011f00010500000000000515000000da0e341c412de2bf07678197e9030000"
)
OF_FILE = Subject(
    5,
    60,
    0o100775,
    (
        Entry(Tag.USER_OBJ, 7),
        Entry(Tag.USER, 7, 5),
        Entry(Tag.USER, 0, 9),
        Entry(Tag.GROUP_OBJ, 5),
        Entry(Tag.GROUP, 5, 60),
        Entry(Tag.MASK, 7),
        Entry(Tag.OTHER, 5),
    ),
)
_OPEN = tuple(entry._replace(permissions=7) if entry.id == 9 else entry for entry in OF_FILE.access)
OF_DIRECTORY = Subject(5, 60, 0o40775, _OPEN, _OPEN)
SWAPPED = IdentityMap(Numbers(completed({5: 9})), Numbers(completed({60: 61})))


def digests(subject: Subject) -> set[bytes]:
    return set(_digests(subject))


@pytest.mark.parametrize(("value", "subject"), [(FILE, OF_FILE), (DIRECTORY, OF_DIRECTORY)])
def test_a_descriptor_of_sambas_counts_for_the_numbers_that_are_shown(
    value: bytes, subject: Subject
) -> None:
    here = subject.translated(SWAPPED.uids.to_here, SWAPPED.gids.to_here)
    assert (here.uid, here.gid, [e.id for e in here.access if e.tag is Tag.USER]) == (9, 61, [5, 9])
    shown = SWAPPED.descriptor_here(value, subject)
    assert any(digest in value for digest in digests(subject))
    assert any(digest in shown for digest in digests(here))
    assert not any(digest in shown for digest in digests(subject))
    assert SWAPPED.descriptor_stored(shown, subject) == value
    other = subject._replace(mode=subject.mode ^ 1)  # not valid before, and not made so
    kept = SWAPPED.descriptor_here(value, other)
    assert any(digest in kept for digest in digests(subject))


def test_a_directory_without_a_default_list_has_none_or_an_empty_one() -> None:
    found = digests(OF_DIRECTORY._replace(default=()))
    assert len(found) == 2
    assert len(digests(OF_FILE)) == 1


def test_who_has_no_account_of_sambas_is_translated_too() -> None:
    def sid(kind: int, number: int) -> bytes:
        return bytes((1, 2, 0, 0, 0, 0, 0, 22)) + struct.pack("<II", kind, number)

    stored = b"head" + sid(1, 5) + sid(2, 60) + sid(1, 60) + sid(3, 5) + b"tail"
    shown = b"head" + sid(1, 9) + sid(2, 61) + sid(1, 60) + sid(3, 5) + b"tail"
    assert SWAPPED.descriptor_here(stored, OF_FILE) == shown
    assert SWAPPED.descriptor_stored(shown, OF_FILE) == stored

"""The identity map: one to one, both ways, in owners, ACLs and security descriptors."""

from __future__ import annotations

import os
import struct

from hypothesis import given
from hypothesis import strategies as st

from nasfs.fuse.identity import NT_ACL, IdentityMap, Numbers, completed, machine_prefix
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

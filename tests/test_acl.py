"""Access control lists as values: their bytes, what is valid, and what they do to modes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasfs.volume import acl
from nasfs.volume.acl import Acl, Entry, Tag

TAGS = {"u": (Tag.USER_OBJ, Tag.USER), "g": (Tag.GROUP_OBJ, Tag.GROUP)}
OTHERS = {"m": Tag.MASK, "o": Tag.OTHER}


def parse(text: str) -> Acl:
    """``u::rw- u:5:r-- g::r-- m::rw- o::---``, in that order, whether it is valid or not."""
    entries = []
    for word in text.split():
        letter, who, permissions = word.split(":")
        tag = OTHERS.get(letter) or TAGS[letter][bool(who)]
        bits = sum(4 >> place for place, char in enumerate(permissions) if char != "-")
        entries.append(Entry(tag, bits, int(who)) if who else Entry(tag, bits))
    return tuple(entries)


permission_bits = st.integers(0, 7)
ids = st.lists(st.integers(0, 0xFFFFFFFE), unique=True, max_size=5)


@st.composite
def acls(draw: st.DrawFn) -> Acl:
    users = [Entry(Tag.USER, draw(permission_bits), number) for number in draw(ids)]
    groups = [Entry(Tag.GROUP, draw(permission_bits), number) for number in draw(ids)]
    mask = bool(users or groups) or draw(st.booleans())
    return (
        Entry(Tag.USER_OBJ, draw(permission_bits)),
        *users,
        Entry(Tag.GROUP_OBJ, draw(permission_bits)),
        *groups,
        *([Entry(Tag.MASK, draw(permission_bits))] if mask else []),
        Entry(Tag.OTHER, draw(permission_bits)),
    )


@given(acls())
def test_a_list_survives_its_bytes(entries: Acl) -> None:
    assert acl.decode(acl.encode(entries)) == entries


def test_the_bytes_are_those_of_the_kernel() -> None:
    entries = parse("u::rw- u:7:r-- g::r-- m::rw- o::---")
    assert acl.encode(entries) == bytes.fromhex(
        "02000000 0100 0600 ffffffff  0200 0400 07000000  0400 0400 ffffffff"
        " 1000 0600 ffffffff  2000 0000 ffffffff"
    )


def test_ids_of_entries_without_a_name_do_not_matter() -> None:
    entries = parse("u::rw- g::r-- o::r--")
    raw = bytearray(acl.encode(entries))
    raw[8:12] = struct.pack("<I", 123)
    assert acl.decode(bytes(raw)) == entries


def test_a_header_alone_is_the_empty_list() -> None:
    assert acl.decode(struct.pack("<I", 2)) == ()


@pytest.mark.parametrize(
    "text",
    [
        "u::rwx g::r-x o::---",
        "u::rwx g::r-x m::--- o::---",
        "u::--- u:5:rwx g::--- m::rwx o::---",
        "u::--- u:9:r-- u:5:rwx g::--- g:5:r-- g:0:--- m::rwx o::---",
    ],
)
def test_valid_lists(text: str) -> None:
    entries = parse(text)
    assert acl.decode(acl.encode(entries)) == entries


@pytest.mark.parametrize(
    "text",
    [
        "u::rwx",
        "u::rwx g::r-x",
        "u::rwx o::r-x",
        "g::rwx o::r-x",
        "g::r-x u::rwx o::---",
        "u::rwx o::--- g::r-x",
        "u::rwx g::r-x o::--- m::rwx",
        "u::rwx g::r-x u:5:r-- m::rwx o::---",
        "u::rwx g:5:r-x g::r-- m::rwx o::---",
        "u::rwx u::rwx g::r-x o::---",
        "u::rwx g::r-x g::r-x o::---",
        "u::rwx g::r-x m::rwx m::rwx o::---",
        "u::rwx g::r-x o::--- o::---",
        "u::rwx u:5:r-- g::r-x o::---",
        "u::rwx g::r-x g:5:r-- o::---",
        "u::rwx u:5:r-- u:5:rw- g::r-x m::rwx o::---",
        f"u::rwx u:{0xFFFFFFFF}:r-- g::r-x m::rwx o::---",
    ],
)
def test_lists_that_say_too_little_or_too_much(text: str) -> None:
    with pytest.raises(ValueError):
        acl.decode(acl.encode(parse(text)))


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\2\0\0",
        b"\1\0\0\0",
        b"\3\0\0\0",
        b"\2\0\0\0" + b"\1\0\7\0\0\0\0",
        acl.encode(parse("u::rwx g::r-x o::---"))[:-1],
        acl.encode((*parse("u::rwx g::r-x"), Entry(Tag.OTHER, 8))),
        acl.encode(parse("u::rwx g::r-x o::---")).replace(b"\x20\0", b"\x40\0"),
    ],
)
def test_bytes_that_are_no_list(value: bytes) -> None:
    with pytest.raises(ValueError):
        acl.decode(value)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_list_or_refused(value: bytes) -> None:
    for candidate in (value, b"\2\0\0\0" + value):
        try:
            entries = acl.decode(candidate)
        except ValueError:
            continue
        assert acl.decode(acl.encode(entries)) == entries


def test_as_many_entries_as_the_kernel_hands_over() -> None:
    def with_users(count: int) -> bytes:
        users = " ".join(f"u:{number}:rwx" for number in range(count))
        return acl.encode(parse(f"u::rwx {users} g::r-x m::rwx o::---"))

    assert len(acl.decode(with_users(507))) == acl.ENTRIES_MAX
    assert len(with_users(507)) <= 4096
    with pytest.raises(ValueError):
        acl.decode(with_users(508))


@pytest.mark.parametrize(
    ("text", "mode", "minimal"),
    [
        ("u::rwx g::r-x o::--x", 0o751, True),
        ("u::rwx g::r-x m::-w- o::--x", 0o721, False),
        ("u::r-- u:5:rwx g::rwx m::--x o::---", 0o410, False),
    ],
)
def test_the_group_bits_are_the_mask(text: str, mode: int, minimal: bool) -> None:
    assert acl.permissions(parse(text)) == mode
    assert acl.is_minimal(parse(text)) == minimal


@given(acls(), st.integers(0, 0o7777))
def test_chmod_sets_what_the_mode_says_and_nothing_else(entries: Acl, mode: int) -> None:
    changed = acl.with_permissions(entries, mode)
    assert acl.permissions(changed) == mode & 0o777
    tags = {Tag.USER_OBJ, Tag.OTHER}
    tags.add(Tag.MASK if Tag.MASK in {e.tag for e in entries} else Tag.GROUP_OBJ)
    for old, new in zip(entries, changed, strict=True):
        assert (old.tag, old.id) == (new.tag, new.id)
        if old.tag not in tags:
            assert old == new


@given(acls(), st.integers(0, 0o777))
def test_what_is_inherited_allows_no_more_than_the_mode_and_the_list(
    default: Acl, mode: int
) -> None:
    access = acl.inherited(default, mode)
    assert acl.permissions(access) == acl.permissions(default) & mode
    for given_, asked in zip(access, default, strict=True):
        assert given_.permissions & ~asked.permissions == 0
        if asked.tag in (Tag.USER, Tag.GROUP):
            assert given_ == asked


@pytest.mark.parametrize(
    ("default", "mode", "access"),
    [
        ("u::rwx g::r-x o::---", 0o666, "u::rw- g::r-- o::---"),
        (
            "u::rwx u:5:rwx g::r-x m::rwx o::r--",
            0o644,
            "u::rw- u:5:rwx g::r-x m::r-- o::r--",
        ),
        ("u::rwx g::r-x m::rwx o::r--", 0o777, "u::rwx g::r-x m::rwx o::r--"),
    ],
)
def test_inheritance(default: str, mode: int, access: str) -> None:
    assert acl.inherited(parse(default), mode) == parse(access)

"""Pairing: codes that people carry, and two nodes that come to know each other."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasfs.errors import ConfigError
from replication.client import open_connection, peer_status
from replication.errors import (
    NotAuthenticated,
    PeerUnreachable,
    RefusedByPeer,
    RemoteProtocolError,
)
from replication.pair import (
    INVITATION_S,
    Code,
    check_identity,
    check_secret,
    create_credentials,
    fingerprint,
    invite,
    join,
    parse_code,
)
from tests.replication_world import GROUP, Node, error_of

CODE = Code("east.example:4000", bytes(range(32)), "00ff" * 8)


@pytest.fixture
def east(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "east", "east")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def west(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "west", "west")
    made.start()
    yield made
    made.stop()


def invitation_of(node: Node) -> Code:
    code, _ = invite(node.address, node.identity.certificate, 0)
    node.secret = code.secret
    return code


# codes


def test_a_code_survives_mail_and_shouting() -> None:
    text = str(CODE)
    assert parse_code(text) == CODE
    assert parse_code(f"  {text[:40].upper()}\n {text[40:]}\n") == CODE


@given(st.data())
def test_a_typo_is_recognised_at_once(data: st.DataObject) -> None:
    text = str(CODE)
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(
        st.sampled_from("abcdefghijklmnopqrstuvwxyz234567-!é").filter(text[at].__ne__)
    )
    wrong = data.draw(
        st.sampled_from(
            [text[:at] + other + text[at + 1 :], text[:at] + other + text[at:], text[:at]]
        )
    )
    error = error_of(lambda: parse_code(wrong))
    assert isinstance(error, ConfigError)
    assert error.exit_code == 2
    assert error.hint


def test_bits_that_the_last_letter_does_not_carry_are_no_way_around() -> None:
    text = str(CODE)
    for letter in set("abcdefghijklmnopqrstuvwxyz234567") - {text[-1]}:
        assert isinstance(error_of(partial(parse_code, text[:-1] + letter)), ConfigError)


@pytest.mark.parametrize("text", ["", "nasfs1-", "hello", "nasfs1-aaaa", "nasfs2-" + str(CODE)[7:]])
def test_what_is_no_code_is_recognised(text: str) -> None:
    assert isinstance(error_of(lambda: parse_code(text)), ConfigError)


def test_the_inviting_node_keeps_no_secret(east: Node) -> None:
    code, invitation = invite(east.address, east.identity.certificate, 7)
    assert code.secret.encode() not in msgspec.msgpack.encode(invitation)
    assert bytes.fromhex(code.secret) not in msgspec.msgpack.encode(invitation)
    assert code.fingerprint == fingerprint(east.identity.certificate)
    ends = 7 + INVITATION_S * 10**9
    check_secret(invitation, code.secret, ends)
    for wrong in (
        lambda: check_secret(invitation, code.secret, ends + 1),
        lambda: check_secret(invitation, "00" * 16, 7),
        lambda: check_secret(None, code.secret, 7),
    ):
        error = error_of(wrong)
        assert isinstance(error, NotAuthenticated)
        assert "nasfs pair invite" in error.hint


def test_two_codes_are_never_the_same(east: Node) -> None:
    codes = {str(invite(east.address, east.identity.certificate, 0)[0]) for _ in range(10)}
    assert len(codes) == 10


# keys


def test_the_private_key_is_for_its_owner_only_and_never_replaced(tmp_path: Path) -> None:
    credentials = create_credentials(tmp_path, "north" * 100)
    assert stat.S_IMODE(credentials.key.stat().st_mode) == 0o600
    before = credentials.key.read_bytes()
    with pytest.raises(FileExistsError):
        create_credentials(tmp_path, "north")
    assert credentials.key.read_bytes() == before


def test_a_file_that_is_no_certificate_is_a_configuration_error() -> None:
    assert isinstance(error_of(lambda: fingerprint("hello")), ConfigError)


@pytest.mark.parametrize("field", ["certificate", "address"])
def test_an_identity_that_is_none_is_the_strangers_fault(east: Node, field: str) -> None:
    wrong = msgspec.structs.replace(east.identity, **{field: "hello"})
    assert isinstance(error_of(lambda: check_identity(wrong)), RemoteProtocolError)


# joining


def test_after_joining_both_know_and_believe_each_other(east: Node, west: Node) -> None:
    peer = join(str(invitation_of(east)), west.identity)
    assert peer == east.identity
    assert east.partner == west.identity
    west.partner = peer
    with open_connection(west.identity, west.credentials, peer) as connection:
        assert peer_status(connection, GROUP).term == 1
    with open_connection(east.identity, east.credentials, west.identity) as connection:
        assert peer_status(connection, GROUP).term == 1


def test_the_address_that_worked_is_remembered(east: Node, west: Node) -> None:
    code = invitation_of(east)
    east.identity = msgspec.structs.replace(east.identity, address="0.0.0.0:4000")
    assert join(str(code), west.identity).address == code.address


def test_a_wrong_secret_pairs_nobody(east: Node, west: Node) -> None:
    wrong = msgspec.structs.replace(invitation_of(east), secret="00" * 16)
    error = error_of(lambda: join(str(wrong), west.identity))
    assert isinstance(error, NotAuthenticated)
    assert error.hint
    assert east.partner is None
    assert isinstance(east.outcome(), NotAuthenticated)


def test_a_code_works_once(east: Node, west: Node, tmp_path: Path) -> None:
    code = invitation_of(east)
    join(str(code), west.identity)
    third = Node(tmp_path / "third", "third")
    error = error_of(lambda: join(str(code), third.identity))
    third.stop()
    assert isinstance(error, RefusedByPeer)
    assert error.exit_code == 3
    assert east.partner == west.identity


def test_a_secret_is_never_told_to_another_node_than_the_one_of_the_code(
    east: Node, west: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = invitation_of(east)
    told: list[str] = []
    monkeypatch.setattr(west, "accept_pairing", lambda secret, candidate: told.append(secret))
    misled = msgspec.structs.replace(code, address=west.address)
    error = error_of(lambda: join(str(misled), east.identity))
    assert isinstance(error, NotAuthenticated)
    assert told == []


def test_a_stranger_with_a_broken_certificate_is_not_remembered(east: Node, west: Node) -> None:
    code = invitation_of(east)
    broken = msgspec.structs.replace(west.identity, certificate="hello")
    assert isinstance(error_of(lambda: join(str(code), broken)), RemoteProtocolError)
    assert east.partner is None
    assert east.secret == code.secret


def test_joining_a_node_that_is_down_is_unreachable(east: Node, west: Node) -> None:
    code = invitation_of(east)
    east.stop()
    assert isinstance(error_of(lambda: join(str(code), west.identity)), PeerUnreachable)

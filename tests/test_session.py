"""The transition table is the protocol; both ends use the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.errors import LocalProtocolError, RemoteProtocolError
from replication.frames import Kind
from replication.session import NEXT, Session, Side, State, advance

C, S = Side.CLIENT, Side.SERVER
GREETING = [(C, Kind.HELLO), (S, Kind.HELLO)]
TRANSFER = [
    *GREETING,
    (C, Kind.OFFER),
    (S, Kind.STATE),
    (C, Kind.BEGIN),
    (S, Kind.RESUME),
    (C, Kind.ROWS),
    (C, Kind.DATA),
    (S, Kind.ACK),
    (C, Kind.DATA),
    (C, Kind.SEAL),
    (S, Kind.ACK),
    (S, Kind.ACK),
    (S, Kind.SEALED),
]


def play(events: list[tuple[Side, Kind]]) -> State:
    """Both ends see every event; they always agree."""
    client, server = Session(C), Session(S)
    for side, kind in events:
        sender, other = (client, server) if side is C else (server, client)
        sender.sent(kind)
        other.received(kind)
        assert client.state is server.state
    return client.state


@pytest.mark.parametrize(
    ("events", "ends"),
    [
        (GREETING, State.READY),
        (TRANSFER, State.OFFERED),
        ([*TRANSFER, *TRANSFER[4:]], State.OFFERED),
        ([*TRANSFER, *TRANSFER[2:]], State.OFFERED),
        ([*GREETING, (C, Kind.PAIR), (S, Kind.PAIRED)], State.READY),
        ([*GREETING, (C, Kind.CREATE), (S, Kind.CREATED), *TRANSFER[2:]], State.OFFERED),
        ([*GREETING, (C, Kind.STATUS_QUERY), (S, Kind.STATUS)], State.READY),
        ([*GREETING, (C, Kind.OPERATE), (S, Kind.OPERATED)], State.READY),
        ([*TRANSFER, (C, Kind.STATUS_QUERY), (S, Kind.STATUS)], State.READY),
        ([*TRANSFER[:4], (C, Kind.CREATE), (S, Kind.CREATED), *TRANSFER[2:]], State.OFFERED),
        ([*TRANSFER[:8], (S, Kind.PING), (C, Kind.PING)], State.TRANSFER),
        ([*TRANSFER[:8], (S, Kind.REFUSAL)], State.CLOSED),
        ([(C, Kind.HELLO), (S, Kind.REFUSAL)], State.CLOSED),
    ],
)
def test_sound_conversations(events: list[tuple[Side, Kind]], ends: State) -> None:
    assert play(events) is ends


@pytest.mark.parametrize(
    "events",
    [
        [(S, Kind.HELLO)],
        [(C, Kind.PAIR)],
        [(C, Kind.PING)],
        [*GREETING, (C, Kind.HELLO)],
        [*GREETING, (C, Kind.DATA)],
        [*GREETING, (C, Kind.BEGIN)],
        [*GREETING, (S, Kind.OFFER)],
        [*TRANSFER[:5], (C, Kind.DATA)],
        [*TRANSFER[:8], (S, Kind.SEALED)],
        [*TRANSFER[:11], (C, Kind.DATA)],
        [*TRANSFER, (S, Kind.ACK)],
        [*GREETING, (S, Kind.REFUSAL), (S, Kind.REFUSAL)],
        [*GREETING, (S, Kind.REFUSAL), (C, Kind.PING)],
    ],
)
def test_unsound_last_words_are_the_fault_of_who_says_them(
    events: list[tuple[Side, Kind]],
) -> None:
    *sound, (side, kind) = events
    speaker, hearer = Session(side), Session(side.other)
    state = play(sound)
    speaker.state = hearer.state = state
    with pytest.raises(LocalProtocolError):
        speaker.sent(kind)
    with pytest.raises(RemoteProtocolError):
        hearer.received(kind)
    assert speaker.state is hearer.state is state


@given(st.sampled_from(State), st.sampled_from(Side), st.sampled_from(Kind))
def test_nothing_leaves_the_closed_state_and_a_refusal_always_leads_there(
    state: State, side: Side, kind: Kind
) -> None:
    assert advance(State.CLOSED, side, kind) is None
    if state is not State.CLOSED:
        assert advance(state, side, Kind.REFUSAL) is State.CLOSED


def test_every_state_and_every_kind_is_reached() -> None:
    assert {state for state, _, _ in NEXT} == set(State) - {State.CLOSED}
    assert {kind for _, _, kind in NEXT} == set(Kind) - {Kind.PING, Kind.REFUSAL}

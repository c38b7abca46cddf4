"""What a send process tells the daemon: one JSON object per line on its standard output."""

from __future__ import annotations

import msgspec


class Running(msgspec.Struct, frozen=True, tag="running"):
    """How far it is with the present snapshot; amounts before compression."""

    phase: str = ""
    snapshot: str = ""
    rows_done: int = 0
    rows_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    wire_bytes: int = 0
    seconds: float = 0.0
    bytes_left: int = 0
    """Of everything that was waiting when it last looked, the present snapshot included."""
    snapshots_left: int = 0
    level: int = 0
    """Of compression, now; 0: none."""


class Both(msgspec.Struct, frozen=True, tag="both"):
    """The newest snap group that both sides have whole; how far the partner's clock is ahead."""

    snap_group: str
    name: str
    time_ns: int
    skew_ns: int = 0


class Done(msgspec.Struct, frozen=True, tag="done"):
    """Everything that was waiting is on the partner."""

    snapshots: int = 0
    rows: int = 0
    bytes: int = 0
    wire_bytes: int = 0
    seconds: float = 0.0
    skipped: int = 0
    """Snap groups that were left out, because it was too far behind."""


class Held(msgspec.Struct, frozen=True, tag="held"):
    """It was broken off on purpose, and goes on when it may."""

    reason: str


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """It did not work; `transient`: the same may work a little later."""

    message: str
    hint: str = ""
    exit_code: int = 1
    transient: bool = False
    fenced: bool = False


Report = Running | Both | Done | Held | Failure
_decoder: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)
_encoder = msgspec.json.Encoder()


def read_report(line: bytes) -> Report:
    """Raises msgspec.ValidationError or DecodeError: a bug on our side."""
    return _decoder.decode(line)


def write_report(report: Report) -> bytes:
    return _encoder.encode(report) + b"\n"

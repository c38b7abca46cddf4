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


class Done(msgspec.Struct, frozen=True, tag="done"):
    """Everything that was waiting is on the partner."""

    snapshots: int = 0
    rows: int = 0
    bytes: int = 0
    wire_bytes: int = 0
    seconds: float = 0.0


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """It did not work; `transient`: the same may work a little later."""

    message: str
    hint: str = ""
    exit_code: int = 1
    transient: bool = False
    fenced: bool = False


Report = Running | Done | Failure
_decoder: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)
_encoder = msgspec.json.Encoder()


def read_report(line: bytes) -> Report:
    """Raises msgspec.ValidationError or DecodeError: a bug on our side."""
    return _decoder.decode(line)


def write_report(report: Report) -> bytes:
    return _encoder.encode(report) + b"\n"

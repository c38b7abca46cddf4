"""Making a node, and what commands need to know of it without its daemon."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from nasfs.errors import ConfigError

from .config import VERSION, Config, default_name, parse_address, read_config, write_config
from .context import Node
from .database import Database
from .messages import NodeView
from .places import Places
from .records import VolumeRow
from .state import State, new_uuid
from .words import VolumeName, check_name


def init_node(places: Places, *, name: str, listen: str) -> NodeView:
    """Identity, TLS key, node.db and configuration; what exists is kept.

    *name* and *listen* change the configuration where they are not empty.
    """
    from replication.pair import create_credentials

    if name:
        check_name(name, "node")
    if listen:
        try:
            parse_address(listen)
        except ValueError as exc:
            raise ConfigError(str(exc)) from exc
    places.make()
    before = (
        read_config(places.config) if places.config.exists() else Config(VERSION, default_name())
    )
    config = msgspec.structs.replace(
        before, name=name or before.name, listen=listen or before.listen
    )
    if not (places.key.exists() and places.certificate.exists()):
        for half in (places.key, places.certificate):  # an interrupted attempt: nobody knows it
            with contextlib.suppress(FileNotFoundError):
                half.unlink()
        create_credentials(places.state, config.name)
    database = Database(places.database)
    try:
        state = State(database)
        state.set_node_uuid(new_uuid())
        if config != before or not places.config.exists():
            write_config(places.config, config)
        return NodeView(config.name, state.node_uuid(), config.listen)
    finally:
        database.close()


@dataclass(frozen=True, slots=True)
class LocalVolume:
    """A volume as a command sees it that needs no daemon."""

    row: VolumeRow
    path: Path


def local_volume(places: Places, name: VolumeName) -> LocalVolume:
    """Raises Failed if there is no node, pool or volume of that name here."""
    with Node.open(places) as node:
        row = node.state.volume(name)
        return LocalVolume(row, node.volume_path(row))

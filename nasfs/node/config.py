"""The configuration that people edit: ``nasfs.yaml``."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Literal

import msgspec
import yaml

from nasfs.errors import ConfigError, Failed

VERSION = 1


class ShareServers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who serves the shares; what is empty stands where Debian has it, below the node's root."""

    smb_conf: str = ""
    """The administrator's smb.conf; without that file there is no Samba here."""
    ganesha_conf: str = ""
    """His ganesha.conf; without that file there is no Ganesha here."""
    ganesha_pid: str = ""
    ganesha_address: str = ""
    """Where the Ganeshas that nasfs runs listen; empty: at every address of the node."""
    ganesha_more: str = ""
    """A file that they read, too; empty: none."""
    kernel_nfs: Literal["auto", "on", "off"] = "auto"
    """The kernel's NFS server; auto: if there is an /etc/exports."""
    rules: dict[str, str] = msgspec.field(default_factory=dict)
    """What is done at a failover about conflicts: ``name: take-staged`` and so on."""
    networks: dict[str, str] = msgspec.field(default_factory=dict)
    """Of the partner's site, and what stands for each at this one."""


class Failover(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a primary does that comes back while its partner does not answer."""

    without_partner: Literal["wait", "mount"] = "wait"
    """mount: it serves again after some seconds, although it may have been replaced."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a node is told by its administrator."""

    version: int = VERSION
    name: str = ""
    """How people call this node."""
    listen: str = ""
    """HOST:PORT for the partner's replication; empty: this node is not reachable for a partner."""
    commit_interval_s: float = 5.0
    """Seconds until what was written, but not synced, is on disk."""
    shares: ShareServers = ShareServers()
    failover: Failover = Failover()

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"version {self.version}: this release reads version {VERSION}")
        if not 0.05 <= self.commit_interval_s <= 3600:
            raise ValueError("commit_interval_s must be between 0.05 and 3600 seconds")
        if self.listen:
            parse_address(self.listen)


def parse_address(text: str) -> tuple[str, int]:
    """HOST:PORT, [IPV6]:PORT or :PORT.

    Raises:
        ValueError: it is none of them.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not port.isascii() or not port.isdigit() or (":" in host and not bracketed):
        raise ValueError(f"{text!r} is not HOST:PORT")
    if not 0 < int(port) < 65536:
        raise ValueError(f"{text!r}: a port is a number from 1 to 65535")
    return (host[1:-1] if bracketed else host), int(port)


def read_config(path: Path) -> Config:
    """The configuration at *path*; a missing file is the default.

    Raises:
        ConfigError: it is not YAML or says something we do not know.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Config(name=default_name())
    except OSError as exc:
        raise Failed(f"cannot read {path}: {exc.strerror}") from exc
    try:
        config = msgspec.convert(yaml.safe_load(text) or {}, Config)
    except (yaml.YAMLError, msgspec.ValidationError, ValueError) as exc:
        raise ConfigError(f"{path}: {exc}", hint=f"correct it: {path}") from exc
    return config if config.name else msgspec.structs.replace(config, name=default_name())


def write_config(path: Path, config: Config) -> None:
    """Replace the file in one durable step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    with temporary.open("w", encoding="utf-8") as out:
        yaml.safe_dump(msgspec.to_builtins(config), out, sort_keys=False)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)


def default_name() -> str:
    return socket.gethostname().partition(".")[0] or "node"

"""What people write on the command line, and where a node keeps its things."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasfs.errors import ConfigError
from nasfs.node.config import Config, parse_address, read_config, write_config
from nasfs.node.places import Places
from nasfs.node.sockets import bind_unix, short_path
from nasfs.node.words import (
    VolumeName,
    parse_size,
    parse_snapshot,
    parse_target,
    parse_volume,
    render_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("500M", 500 << 20),
        ("100G", 100 << 30),
        ("1.5T", 3 << 39),
        ("2k", 2048),
        ("1GiB", 1 << 30),
        ("3 G", 3 << 30),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1G", "G", "10Q", "1e3", "9999999999E", "0.1", "1G1"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_size(text)


@given(st.integers(1, 1 << 60))
def test_a_rendered_size_is_nearly_the_size(size: int) -> None:
    assert parse_size(render_size(size)) == pytest.approx(size, rel=0.06)


def test_targets() -> None:
    assert parse_volume("tank/home") == VolumeName("tank", "home")
    assert parse_target("tank/home@s").volume == VolumeName("tank", "home")
    assert parse_target("office@s").group == "office"
    assert str(parse_target("tank/home@2026-11-23_02:00")) == "tank/home@2026-11-23_02:00"


@pytest.mark.parametrize(
    "text", ["tank", "/home", "tank/", "tank/../x", "tank/a b", "tank/-a", "a/b/c", "t/.hidden"]
)
def test_bad_volumes(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_volume(text)


@pytest.mark.parametrize("text", ["tank/home", "tank/home@", "@s", "tank/home@a/b", "a@b@c"])
def test_bad_snapshots(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_snapshot(text)


@given(st.text(max_size=30))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for parse in (parse_target, parse_snapshot, parse_volume, parse_size):
        try:
            parse(text)
        except ConfigError:
            continue


@pytest.mark.parametrize("text", ["host", "host:", "host:0", "host:65536", "::1:80", "host:x"])
def test_bad_addresses(text: str) -> None:
    with pytest.raises(ValueError):
        parse_address(text)


def test_addresses() -> None:
    assert parse_address("[::1]:80") == ("::1", 80)
    assert parse_address("east:7801") == ("east", 7801)


def test_configuration_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "etc/nasfs.yaml"
    config = Config(name="east", listen="127.0.0.1:7801")
    write_config(path, config)
    assert read_config(path) == config


@pytest.mark.parametrize(
    "text", ["name: [", "nonsense: 1", "version: 2", "listen: nowhere", "- 1", "name: 5"]
)
def test_bad_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "nasfs.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        read_config(path)


def test_everything_is_below_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places.find(tmp_path)
    for path in (places.config, places.database, places.key, places.api_socket):
        assert path.is_relative_to(tmp_path)
    monkeypatch.setenv("NASFS_ROOT", str(tmp_path))
    assert Places.find(None) == places
    monkeypatch.delenv("NASFS_ROOT")
    assert Places.find(None).config == Path("/etc/nasfs/nasfs.yaml")


def test_sockets_at_long_paths(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * 100) / ("y" * 100)
    directory.mkdir(parents=True)
    path = directory / "api.sock"
    for _ in range(2):  # the second time a left-over file is in the way
        with bind_unix(path) as server, socket.socket(socket.AF_UNIX) as client:
            with short_path(path) as name:
                client.connect(name)
            connection, _ = server.accept()
            connection.close()

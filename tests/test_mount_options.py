"""Options of fstab lines: what each word comes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from nasfs.cli.mount_options import OURS, MountOptions, parse_options
from nasfs.errors import ConfigError
from nasfs.fuse.mount import KERNEL_FLAGS

DOCUMENT = Path(__file__).parents[1] / "docs" / "mounting.md"


def flags(*words: str) -> MountOptions:
    return MountOptions(flags=frozenset(words))


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("", flags()),
        ("rw", flags()),
        ("defaults", flags()),
        ("ro", flags("ro")),
        ("ro,rw", flags()),
        ("rw,ro", flags("ro")),
        ("noexec,nosuid,nodev,user", flags("noexec", "nosuid", "nodev")),
        ("noexec,nosuid,nodev,user,exec,suid,dev", flags()),
        ("noatime,sync", flags("noatime", "sync")),
        ("noatime,sync,atime,async", flags()),
        ("rw,relatime,nodiratime,strictatime,lazytime,acl,noacl,user_xattr", flags()),
        ("nofail,_netdev,auto,noauto,users,owner,group,user=eve,silent", flags()),
        ("x-systemd.automount,x-systemd.requires-mounts-for=/srv,X-mount.mkdir=0700", flags()),
        ('comment=hello,context="system_u:object_r:tmp_t:s0:c127,c456",seclabel', flags()),
        ("user_id=0,group_id=0,default_permissions,allow_other,max_read=131072", flags()),
        ("remount,ro", MountOptions(flags=frozenset({"ro"}), remount=True)),
        ("snapshot=monday", MountOptions(snapshot="monday")),
        ("commit=30", MountOptions(commit_interval_s=30.0)),
        ("commit=0.5", MountOptions(commit_interval_s=0.5)),
        ("commit=30,commit=7", MountOptions(commit_interval_s=7.0)),
        ("commit=0", MountOptions()),
        ("noallow_other", MountOptions(allow_other=False)),
        ("list_snapshots", MountOptions(list_snapshots=True)),
        ("list_snapshots,nolist_snapshots", MountOptions(list_snapshots=False)),
        ("log=/var/log/nasfs.log", MountOptions(log_file="/var/log/nasfs.log")),
        ('log="/var/log/a,b.log",ro', MountOptions(frozenset({"ro"}), log_file="/var/log/a,b.log")),
        ("root=/nodes/east", MountOptions(root="/nodes/east")),
    ],
)
def test_a_word_is_for_the_kernel_ours_or_for_somebody_else(
    text: str, meaning: MountOptions
) -> None:
    assert parse_options(text) == meaning
    assert meaning.flags <= KERNEL_FLAGS


@pytest.mark.parametrize(
    "text",
    [
        "errors=remount-ro",
        "usrquota",
        "dirsync",
        "allow_root",
        "fsname=x",
        "snapshot",
        "ro=1",
        "commit",
        "defaults,typo,ro",
    ],
)
def test_an_unknown_word_is_an_error_unless_asked_to_be_sloppy(text: str) -> None:
    with pytest.raises(ConfigError, match="unknown option"):
        parse_options(text)
    parse_options(text, sloppy=True)


@pytest.mark.parametrize(
    "text",
    ["commit=soon", "commit=-1", "commit=0.01", "commit=86400", "commit=", "snapshot=", "log=",
     "log=relative", "root=relative", "commit=nan", "commit=1e3"],
)  # fmt: skip
def test_a_value_without_sense_is_an_error_however_sloppy(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_options(text, sloppy=True)


def test_the_document_tells_every_option() -> None:
    text = DOCUMENT.read_text()
    for option in [*OURS.split(", "), *sorted(KERNEL_FLAGS)]:
        assert f"`{option}`" in text, option

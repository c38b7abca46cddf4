"""Who may import whom, and which modules do no I/O: read from the syntax trees."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("nasfs", "replication", "sharecfg")
MODULES = sorted(path for top in OURS for path in (ROOT / top).rglob("*.py"))

ALLOWED = {
    "nasfs.errors": (),
    "nasfs.volume": ("nasfs.errors",),
    "nasfs.fuse": ("nasfs.errors", "nasfs.volume"),
    "nasfs.schedule": ("nasfs.errors", "nasfs.volume"),
    "nasfs.node": ("nasfs", "replication", "sharecfg"),
    "nasfs.cli": ("nasfs", "replication", "sharecfg"),
    "replication": ("nasfs.errors",),
    "replication.local": ("nasfs.errors", "nasfs.volume"),
    "replication.rebase": ("nasfs.errors", "nasfs.volume"),
    "replication.witness": ("nasfs.errors", "nasfs.volume"),
    "sharecfg": ("nasfs.errors",),
}
"""For each part, what it may import beside itself.  The longest name counts."""

LOCAL = ("replication.local", "replication.rebase", "replication.witness")
"""The endpoints on top of the engine."""

PURE = [
    "nasfs/schedule/clock.py",
    "nasfs/schedule/naming.py",
    "nasfs/schedule/policy.py",
    "nasfs/schedule/retention.py",
    "nasfs/schedule/rhythm.py",
    "nasfs/schedule/spans.py",
    "nasfs/volume/blockmap.py",
    "nasfs/volume/types.py",
    "replication/digests.py",
    "replication/endpoint.py",
    "replication/errors.py",
    "replication/frames.py",
    "replication/link.py",
    "replication/pacing.py",
    "replication/plan.py",
    "replication/roles.py",
    "replication/session.py",
    "replication/verify.py",
    "replication/wire.py",
    "sharecfg/accounts.py",
    "sharecfg/checks.py",
    "sharecfg/collisions.py",
    "sharecfg/complaints.py",
    "sharecfg/document.py",
    "sharecfg/exports.py",
    "sharecfg/ganesha.py",
    "sharecfg/identities.py",
    "sharecfg/merge.py",
    "sharecfg/merge_accounts.py",
    "sharecfg/model.py",
    "sharecfg/payload.py",
    "sharecfg/placed.py",
    "sharecfg/samba.py",
    "sharecfg/smbconf.py",
    "sharecfg/steps.py",
    "sharecfg/tighter.py",
    "sharecfg/unmerge.py",
]
DOES_IO = {"trio", "sqlite3", "os", "socket", "ssl", "time", "logging", "pyfuse3", "subprocess"}

DISK_CALLS = {"open", "pread", "pwrite", "pwritev", "fsync", "fdatasync", "unlink", "fallocate"}
BESIDE_THE_SEAM = {"media.py", "lock.py", "pool.py", "store.py"}
"""The seam itself; the lock; making and destroying whole volumes; syncing SQLite's log."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Absolute names of all imported modules (`from a import b` counts as a and, if ours, a.b)."""
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            found.add(base)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                if (ROOT / (inner.replace(".", "/") + ".py")).exists():
                    found.add(inner)
    return found


def inside(module: str, part: str) -> bool:
    return module == part or module.startswith(part + ".")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_in_their_direction(path: Path) -> None:
    part = max((p for p in ALLOWED if inside(name_of(path), p)), key=len, default=None)
    if part is None:  # nasfs/__init__.py itself: only the version
        assert imports(path) & set(OURS) == set()
        return
    home = part.split(".")[0] if part in LOCAL else part
    for module in imports(path):
        if module.split(".")[0] in OURS and module != "nasfs":
            allowed = (home, *ALLOWED[part])
            assert any(inside(module, other) for other in allowed), f"{name_of(path)}: {module}"


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_do_no_io(module: str) -> None:
    assert {name.split(".")[0] for name in imports(ROOT / module)} & DOES_IO == set()


def test_the_engine_touches_the_disk_through_one_seam() -> None:
    for path in (ROOT / "nasfs" / "volume").glob("*.py"):
        if path.name in BESIDE_THE_SEAM:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert not (node.value.id == "os" and node.attr in DISK_CALLS), path.name
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "open", path.name


def test_nobody_imports_the_local_endpoint_but_the_node() -> None:
    for path in MODULES:
        if imports(path) & set(LOCAL) and name_of(path) not in LOCAL:
            assert inside(name_of(path), "nasfs.node"), name_of(path)

"""The tree of a volume as plain values, and what of its past may be found after a power cut.

`Past` holds what was committed, what was acknowledged and which bytes were written when.  What is
found has to be one of the states from the last acknowledged one to the last begun one, snapshots
to the byte.  The content of the live files may be newer than the state where blocks were
overwritten in place since, in the state's own epoch; a byte that was never written at its place is
never there.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from nasfs.volume import ROOT_INO, Ino, View, Volume

PathName = tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """What an inode is, at one moment."""

    ino: Ino
    mode: int
    nlink: int = 1
    data: bytes = b""
    """A file's content, or a symlink's target."""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


Picture = dict[PathName, Node]
"""A whole tree, by path."""


def picture(view: View) -> Picture:
    """A view, read through and through."""
    found: Picture = {}

    def walk(path: PathName, ino: Ino) -> None:
        inode = view.getattr(ino)
        data = view.read(ino, 0, inode.size) if inode.is_file else inode.target or b""
        xattrs = tuple((name, view.getxattr(ino, name)) for name in view.listxattr(ino))
        found[path] = Node(inode.ino, inode.mode, inode.nlink, data, xattrs)
        if inode.is_dir:
            for entry, _ in view.readdir(ino, 0, 1000):
                walk((*path, entry.name), entry.ino)

    walk((), ROOT_INO)
    return found


def pictures(volume: Volume) -> dict[str, Picture]:
    """All snapshots, by name."""
    return {s.name: picture(volume.view(s.epoch)) for s in volume.snapshots()}


class Model:
    """A tree of plain values; hard links are names of one number."""

    def __init__(self, given: Picture) -> None:
        self.nodes = {node.ino: node for node in given.values()}
        self.names = {path: node.ino for path, node in given.items()}

    def picture(self) -> Picture:
        links = Counter(self.names.values())
        dirs = Counter(p[:-1] for p, ino in self.names.items() if p and self.nodes[ino].is_dir)
        return {
            path: replace(
                self.nodes[ino], nlink=2 + dirs[path] if self.nodes[ino].is_dir else links[ino]
            )
            for path, ino in self.names.items()
        }

    def node(self, path: PathName) -> Node:
        return self.nodes[self.names[path]]

    def change(self, ino: Ino, **changes: object) -> None:
        self.nodes[ino] = replace(self.nodes[ino], **changes)  # type: ignore[arg-type]

    def paths(self, wanted: Callable[[Node], bool]) -> list[PathName]:
        return [path for path in self.names if path and wanted(self.node(path))]

    def directories(self) -> list[PathName]:
        return [(), *self.paths(lambda node: node.is_dir)]

    def below(self, path: PathName) -> list[PathName]:
        return [name for name in self.names if len(name) > len(path) and name[: len(path)] == path]

    def move(self, path: PathName, to: PathName) -> None:
        for name in [path, *self.below(path)]:
            self.names[to + name[len(path) :]] = self.names.pop(name)


def restored(live: Model, then: Picture, source: PathName, target: PathName) -> Picture:
    """What the live tree becomes when *source* of a snapshot takes the place of *target*."""
    apart = 1 << 50  # so that what comes back is nobody else, whatever numbers it gets
    names = {path: ino for path, ino in live.names.items() if path[: len(target)] != target}
    nodes = dict(live.nodes)
    for path, node in then.items():
        if path[: len(source)] == source:
            ino = Ino(node.ino + apart)
            names[target + path[len(source) :]] = ino
            nodes[ino] = replace(node, ino=ino)
    model = Model({})
    model.names, model.nodes = names, nodes
    return model.picture()


def shape(tree: Picture) -> dict[PathName, tuple[Node, frozenset[PathName]]]:
    """A tree without its numbers: each path with what it is, and what else is the same inode."""
    same: dict[Ino, set[PathName]] = {}
    for path, node in tree.items():
        same.setdefault(node.ino, set()).add(path)
    return {
        path: (replace(node, ino=Ino(0)), frozenset(same[node.ino])) for path, node in tree.items()
    }


@dataclass(frozen=True, slots=True)
class State:
    """What a volume holds at one moment: at a COMMIT, or when somebody looked."""

    index: int
    """Operations on the disk before."""
    epoch: int
    live: Picture
    snapshots: dict[str, Picture]


def look(volume: Volume) -> State:
    """What a volume holds now."""
    return State(0, volume.epoch, picture(volume), pictures(volume))


@dataclass(frozen=True, slots=True)
class Touch:
    """Bytes of a file that were changed, and when."""

    index: int
    epoch: int
    ino: Ino
    offset: int
    data: bytes


@dataclass
class Past:
    """What is known of a volume's history: enough to judge any power cut in it."""

    states: list[State] = field(default_factory=list)
    durable: list[tuple[int, int]] = field(default_factory=list)
    """(operations on the disk, state): from then on that state is acknowledged."""
    touches: list[Touch] = field(default_factory=list)
    numbers: list[tuple[int, Ino]] = field(default_factory=list)
    """(operations on the disk, inode number): from then on it was given."""

    def given(self, cut: int) -> set[Ino]:
        """The inode numbers that somebody may have seen."""
        return {ino for index, ino in self.numbers if index <= cut}

    def candidates(self, cut: int) -> list[State]:
        """The states that may be found after a power cut before operation *cut*, newest first."""
        oldest = max(state for index, state in self.durable if index <= cut)
        return [state for state in self.states[oldest:] if state.index <= cut][::-1]

    def match(self, cut: int, found: State) -> None:
        """What was found after a power cut before operation *cut* is one of the candidates."""
        problems = []
        for state in self.candidates(cut):
            problem = self._mismatch(state, cut, found)
            if problem is None:
                return
            problems.append(f"state {self.states.index(state)}: {problem}")
        raise AssertionError(f"cut before operation {cut}: " + "; ".join(problems))

    def _mismatch(self, state: State, cut: int, found: State) -> str | None:
        if found.epoch != state.epoch:
            return f"epoch {found.epoch}, not {state.epoch}"
        if found.snapshots.keys() != state.snapshots.keys():
            return f"snapshots {sorted(found.snapshots)}, not {sorted(state.snapshots)}"
        for name, tree in found.snapshots.items():
            if tree != state.snapshots[name]:
                return f"snapshot {name}: {difference(state.snapshots[name], tree)}"
        if _without_content(found.live) != _without_content(state.live):
            return difference(state.live, found.live)
        for path, node in found.live.items():
            expected = state.live[path].data
            if node.data != expected:
                if len(node.data) != len(expected):
                    return f"{path} has {len(node.data)} bytes, not {len(expected)}"
                foreign = self._foreign(state, cut, node, expected)
                if foreign is not None:
                    return f"{path}: byte {foreign} was never written there"
        return None

    def _foreign(self, state: State, cut: int, node: Node, expected: bytes) -> int | None:
        """A byte of a file that nobody wrote there, neither before the state nor since."""
        known = bytearray(a == b for a, b in zip(node.data, expected, strict=True))
        for touch in self.touches:
            if (touch.ino, touch.epoch) != (node.ino, state.epoch):
                continue  # other epochs write to other layers
            if not state.index <= touch.index < cut:
                continue
            for position, byte in enumerate(touch.data, touch.offset):
                if position < len(known) and node.data[position] == byte:
                    known[position] = 1
        unknown = known.find(0)
        return None if unknown < 0 else unknown


def _without_content(tree: Picture) -> Picture:
    return {path: replace(node, data=b"") if node.is_file else node for path, node in tree.items()}


def difference(expected: Picture, found: Picture) -> str:
    for path in sorted(expected.keys() | found.keys()):
        if expected.get(path) != found.get(path):
            return f"at {path}: {short(found.get(path))}, not {short(expected.get(path))}"
    return "the same"


def short(node: Node | None) -> str:
    if node is None:
        return "nothing"
    return f"{replace(node, data=node.data[:20])} with {len(node.data)} bytes"

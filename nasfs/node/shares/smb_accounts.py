"""Samba's own accounts of this node: read, taken in, taken away, through its own tools.

Hashes of passwords pass through files of mode 0600, never through a command line or a log.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from nasfs.errors import Failed
from sharecfg.payload import SmbAccount, check_hashes

from ..context import Node
from .share_files import Server, share_files
from .share_servers import run_tool

_SID = re.compile(r"S-1-5-21(-\d+){3}")


class Samba:
    """The accounts of the Samba that an smb.conf names."""

    def __init__(self, smb_conf: Path) -> None:
        self._conf = smb_conf

    @classmethod
    def of(cls, node: Node) -> Samba | None:
        """None: there is no Samba on this node."""
        file = share_files(node.places, node.config.shares).get(Server.SAMBA)
        return cls(file.main) if file else None

    def machine_sid(self) -> str:
        """What begins the SIDs of its local accounts."""
        said = self._run(["net", "-s", str(self._conf), "getlocalsid"])
        found = _SID.search(said)
        if found is None:
            raise Failed("net getlocalsid tells no SID")
        return found[0]

    def accounts(self) -> tuple[SmbAccount, ...]:
        """Those of people, by name; accounts of machines are left out."""
        rids = self.rids()
        found = []
        for line in self._pdbedit("-L", "-w").splitlines():
            name, _, rest = line.partition(":")
            _, _, hashes = rest.partition(":")
            if name in rids and not name.endswith("$") and check_hashes(hashes):
                found.append(SmbAccount(name=name, rid=rids[name], hashes=hashes))
        return tuple(sorted(found, key=lambda one: one.name))

    def rids(self) -> dict[str, int]:
        """The last number of each account's SID."""
        rids: dict[str, int] = {}
        name = ""
        for line in self._pdbedit("-L", "-v").splitlines():
            key, _, value = line.partition(":")
            if key == "Unix username":
                name = value.strip()
            elif key == "User SID" and name:
                rids[name] = int(value.strip().rpartition("-")[2])
        return rids

    def take_in(self, account: SmbAccount, uid: int) -> None:
        """An account with the password it has elsewhere; one that is there gets it.

        Its number is that of the other node's if it is free here.  Again: the same.

        Raises:
            Failed: Samba does not take it.
        """
        for problem in self.take_all_in([(account, uid)]).values():
            raise problem

    def take_all_in(self, accounts: Sequence[tuple[SmbAccount, int]]) -> dict[str, Failed]:
        """`take_in` of many, each with its UID, by few runs of Samba's tool; why, of those left.

        Raises:
            Failed: Samba does not tell its accounts.
        """
        why = {
            account.name: Failed(f"SMB account {account.name} came without its password")
            for account, _ in accounts
            if not check_hashes(account.hashes)
        }
        wanted = [(account, uid) for account, uid in accounts if account.name not in why]
        if not wanted:
            return why
        before = self.rids()
        lines = [f"{account.name}:{uid}:{account.hashes}\n" for account, uid in wanted]
        try:
            self._import(lines)
        except Failed:  # of one of them: the others each by itself
            for line in lines:
                with suppress(Failed):
                    self._import([line])
        after = self.rids()
        for account, _ in wanted:
            if account.name not in after:
                why[account.name] = Failed(f"Samba did not take account {account.name}")
                continue
            number = before.get(account.name, account.rid)
            if after[account.name] != number and number not in after.values():
                try:
                    self._pdbedit("-r", "-u", account.name, "-U", str(number))
                except Failed as exc:
                    why[account.name] = exc
                else:
                    after[account.name] = number
        return why

    def _import(self, lines: list[str]) -> None:
        """Lines as in smbpasswd(5)."""
        with tempfile.TemporaryDirectory(prefix="nasfs-") as name:  # mode 0700
            file = Path(name) / "smbpasswd"
            file.touch(mode=0o600)
            file.write_text("".join(lines), encoding="utf-8")
            self._pdbedit("-i", f"smbpasswd:{file}")

    def take_away(self, name: str) -> None:
        """Nothing if it is not there."""
        if name in self.rids():
            self._pdbedit("-x", "-u", name)

    def _pdbedit(self, *words: str) -> str:
        return self._run(["pdbedit", "-s", str(self._conf), *words])

    def _run(self, argv: Sequence[str]) -> str:
        done = run_tool(argv)
        if done.returncode != 0:
            # Of pdbedit not what it printed: that may be hashes.
            said = done.stderr.strip().rpartition("\n")[2] if argv[0] == "net" else ""
            why = f" ({said.strip()})" if said else ""
            raise Failed(f"{argv[0]} {argv[3]} ended with {done.returncode}{why}")
        return done.stdout

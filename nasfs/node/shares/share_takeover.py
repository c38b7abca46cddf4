"""The merge of staged shares and accounts at a failover (`share_handback` takes it back).

    lines = preview(node, group)         what a failover would do; for --dry-run
    told = take_over(node, group)        once the group is active here, before it is mounted

Both may be called again at any time: each observes, plans and does what is left.  What a merge has
done stands in node.db: what it will do to accounts before it does it, what it did to shares in the
transaction that did it.  So whenever the process is killed the shares are the old ones or the new
ones, and what was made is known to be ours to take away.  No problem with a share or an account
stops a failover: it is told.
"""

from __future__ import annotations

import grp
import logging
import pwd
from collections.abc import Callable
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from nasfs.errors import ConfigError, NasError
from nasfs.fuse.identity import IdentityMap, Numbers, completed
from sharecfg.accounts import Accounts, User
from sharecfg.accounts import Group as LocalGroup
from sharecfg.collisions import plan_numbers, with_numbers
from sharecfg.collisions import tell as tell_numbers
from sharecfg.merge import Here, MergePlan, plan_merge
from sharecfg.payload import Payload, SmbAccount
from sharecfg.steps import RULES, AddMember, CreateGroup, CreateUser, Kind, Rule

from ..context import Node
from ..inventory import WRITABLE_ROLES
from ..messages import PlanView, StepView
from ..records import Group
from . import account_tools as tools
from . import staging
from .identity_counts import volume_counts
from .local_accounts import networks, read_accounts
from .merges import Merge, applied, keep, merge_of, more, one_at_a_time, serve
from .share_files import Server, share_files
from .sharing import foreign
from .smb_accounts import Samba

log = logging.getLogger(__name__)

T = TypeVar("T")
K = TypeVar("K")

NOTHING = "the primary's shares as they were last are not staged: shares stay as they are here"
MOUNTS = "mount "
"""How the step of a plan begins before which shares are merged."""


class _Observed(msgspec.Struct, frozen=True):
    """What is staged, and what merging it would do now."""

    payload: Payload
    """With the numbers of this node."""
    staged: Payload
    """As it came."""
    uids: dict[int, int]
    gids: dict[int, int]
    plan: MergePlan
    smb: tuple[SmbAccount, ...]
    """Accounts that Samba lacks here."""
    told: tuple[str, ...]

    def lines(self) -> list[str]:
        steps = [*map(str, self.plan.accounts)]
        steps += [f"create SMB account {one.name} with its password" for one in self.smb]
        return [*steps, *map(str, self.plan.changes)]


def preview(node: Node, group: Group) -> tuple[list[str], list[str]]:
    """The steps that a merge would take now, and what else is to be known."""
    try:
        observed = _observe(node, group)
    except NasError as exc:
        return [], [f"shares can't be merged: {exc}"]
    if observed is None:
        return [], [NOTHING]
    return observed.lines(), list(observed.told)


def with_shares(node: Node, group: Group, view: PlanView) -> PlanView:
    """The view of a plan that is not begun, with what becomes of shares and accounts."""
    mounts = [n for n, step in enumerate(view.steps) if step.text.startswith(MOUNTS)]
    if not mounts or group.role != "passive":
        return view
    lines, told = preview(node, group)
    steps = list(view.steps)
    steps[mounts[0] : mounts[0]] = [StepView(line, False) for line in lines]
    return replace(view, steps=tuple(steps), notes=(*view.notes, *told))


def take_over(node: Node, group: Group) -> list[str]:
    """Merge what is staged.  What did not go well, or was decided, is returned; never fails.

    Shares are served when their volumes are mounted.
    """
    try:
        with one_at_a_time:
            observed = _observe(node, group)
            if observed is not None:
                return [*_execute(node, group, observed), *observed.told]
            told = [NOTHING]  # a primary that never could tell them
    except NasError as exc:
        told = [f"shares can't be merged: {exc}"]
    _note_problems(node, group, told)
    return told


def _note_problems(node: Node, group: Group, problems: list[str]) -> None:
    merge = merge_of(node, group.uuid)
    for problem in set(problems) - set(merge.problems):
        node.state.note("daemon", "shares not merged", group.name, problem)
    keep(node, group.uuid, replace(merge, problems=tuple(problems)))


def merge_staged(node: Node, group_uuid: str) -> None:
    """`take_over` of a group that has just become active here."""
    group = node.state.find_group(group_uuid)
    if group is not None:
        take_over(node, group)


def serve_shares(node: Node, group_uuid: str, view: PlanView) -> PlanView:
    """Tell the servers, now that volumes are mounted; the view with what is to be known."""
    told = serve(node) if node.shares.all() else []
    return replace(view, notes=(*view.notes, *merge_of(node, group_uuid).problems, *told))


# observing and planning


def _observe(node: Node, group: Group) -> _Observed | None:
    found = staging.newest(node, group)
    last = group.term - (group.role in WRITABLE_ROLES)  # in which the partner was active
    if found is None or found[0].term < last:
        return None
    staged = found[1]
    known = _known(read_accounts(), staged.accounts)
    counted = [volume_counts(node, row) for row in node.state.members(group.uuid)]
    uids, gids = plan_numbers(
        known,
        staged.accounts,
        {uid for counts in counted for uid in counts.uids()},
        {gid for counts in counted for gid in counts.gids()},
    )
    there = with_numbers(staged.accounts, lambda n: uids.get(n, n), lambda n: gids.get(n, n))
    payload = replace(staged, accounts=there)
    theirs = foreign(node)
    here = Here(
        shares=node.shares.all(),
        volumes=frozenset(row.uuid for row in node.state.volumes()),
        accounts=known,
        sections=frozenset(theirs.sections),
        export_ids=theirs.export_ids,
        has_ganesha=Server.GANESHA in share_files(node.places, node.config.shares),
        networks=networks(),
    )
    plan = plan_merge(
        here,
        payload.shares,
        payload.accounts,
        origin=_origin(node),
        rules=rules_of(node),
        networks=node.config.shares.networks,
        volumes=frozenset(row.uuid for row in node.state.members(group.uuid)),
    )
    smb, told = _smb_missing(node, payload, plan)
    told += tell_numbers(staged.accounts, uids, gids)
    return _Observed(payload, staged, uids, gids, plan, smb, (*map(str, plan.conflicts), *told))


def _origin(node: Node) -> str:
    peer = node.bond.peer()
    return peer.name if peer else "partner"


def rules_of(node: Node) -> dict[Kind, Rule]:
    """As nasfs.yaml says.

    Raises:
        ConfigError: it names a conflict or a rule that there is not.
    """
    found = {}
    for kind, rule in node.config.shares.rules.items():
        try:
            if Kind(kind) not in RULES:  # there is nothing to choose
                raise ValueError(kind)
            found[Kind(kind)] = Rule(rule)
        except ValueError as exc:
            raise ConfigError(
                f"nasfs.yaml: shares.rules: {kind}: {rule}",
                hint=f"of {', '.join(k.value for k in RULES)}; {', '.join(r.value for r in Rule)}",
            ) from exc
    return found


def _known(local: Accounts, staged: Accounts) -> Accounts:
    """With those whom only the name service knows: their names and numbers are taken, too."""
    users = list(local.users)
    for user in staged.users:
        for found in (_look(pwd.getpwnam, user.name), _look(pwd.getpwuid, user.uid)):
            if found is not None and local.user(found.pw_name) is None:
                users.append(User(name=found.pw_name, uid=found.pw_uid, gid=found.pw_gid))
    groups = list(local.groups)
    for group in staged.groups:
        for there in (_look(grp.getgrnam, group.name), _look(grp.getgrgid, group.gid)):
            if there is not None and local.group(there.gr_name) is None:
                groups.append(LocalGroup(name=there.gr_name, gid=there.gr_gid))
    return Accounts(users=tuple(users), groups=tuple(groups))


def _look(call: Callable[[K], T], key: K) -> T | None:
    try:
        return call(key)
    except (KeyError, ValueError, OverflowError):
        return None


def _smb_missing(
    node: Node, payload: Payload, plan: MergePlan
) -> tuple[tuple[SmbAccount, ...], list[str]]:
    """Accounts that can be made in this node's Samba; what stands in the way of the others."""
    samba = Samba.of(node)
    if samba is None:
        none = ["there is no Samba on this node: SMB accounts are not taken over"]
        return (), none if payload.smb_accounts else []
    here = {account.name: account for account in samba.accounts()}
    local = read_accounts()
    made = {step.user.name: step.user for step in plan.accounts if isinstance(step, CreateUser)}
    found, told = [], []
    for account in payload.smb_accounts:
        staged = payload.accounts.user(account.name)
        user = local.user(account.name) or made.get(account.name)
        mine = here.get(account.name)
        if mine is not None:
            if mine.hashes.split(":")[:3] != account.hashes.split(":")[:3]:
                told.append(f"SMB account {account.name}: another password; left as it is here")
        elif staged is None or user is None or user.uid != staged.uid:
            told.append(f"SMB account {account.name}: the user is not the same here; left out")
        else:
            found.append(account)
    return tuple(found), told


# executing


def _execute(node: Node, group: Group, observed: _Observed) -> list[str]:
    merge = _intend(node, group, observed)
    problems = []
    for step in observed.plan.accounts:
        try:
            _make(step)
        except NasError as exc:
            problems.append(f"{step}: {exc}")
    samba = Samba.of(node)
    problems += _take_smb_in(samba, observed.smb)
    try:
        identities = _identities(observed, samba)
    except NasError as exc:
        problems.append(f"SIDs are not translated: {exc}")
        identities = _identities(observed, None)
    with node.state.change():
        before = node.shares.all()
        after = applied(before, observed.plan.changes)
        node.shares.change(before, after)
        merge = replace(
            merge,
            changes=(*merge.changes, *observed.plan.changes),
            identities=identities,
            problems=tuple(problems),
        )
        keep(node, group.uuid, merge)
    if observed.lines():
        node.note("shares merged", group.name, "; ".join((*observed.lines(), *observed.told)))
    for problem in problems:
        node.note("shares not merged", group.name, problem)
    return problems


def _take_smb_in(samba: Samba | None, accounts: tuple[SmbAccount, ...]) -> list[str]:
    """Those whose users are here; why not, of the others."""
    users = read_accounts()
    found = [(one, user.uid) for one in accounts if (user := users.user(one.name)) is not None]
    here = {account.name for account, _ in found} if samba else set()
    why: dict[str, object] = {
        one.name: "the user is not here" for one in accounts if one.name not in here
    }
    try:
        if samba is not None and found:
            why |= samba.take_all_in(found)
    except NasError as exc:
        why |= dict.fromkeys(here, exc)
    return [f"create SMB account {name}: {problem}" for name, problem in why.items()]


def _identities(observed: _Observed, samba: Samba | None) -> IdentityMap:
    """What the mounts translate from now on."""
    uids, gids = (Numbers(completed(wanted)) for wanted in (observed.uids, observed.gids))
    if samba is None or not observed.staged.machine_sid:
        return IdentityMap(uids, gids)
    here = {account.name: account.rid for account in samba.accounts()}
    rids = {
        account.rid: here[account.name]
        for account in observed.staged.smb_accounts
        if account.name in here
    }
    return IdentityMap(
        uids, gids, Numbers(completed(rids)), observed.staged.machine_sid, samba.machine_sid()
    )


def _intend(node: Node, group: Group, observed: _Observed) -> Merge:
    """What is going to be made is ours to take away: known before it is there."""
    steps = observed.plan.accounts
    merge = merge_of(node, group.uuid)
    accounts = observed.payload.accounts
    merge = replace(
        merge,
        origin=_origin(node),
        groups=more(merge.groups, (s.group for s in steps if isinstance(s, CreateGroup))),
        users=more(merge.users, (s.user for s in steps if isinstance(s, CreateUser))),
        members=more(merge.members, ((s.group, s.user) for s in steps if isinstance(s, AddMember))),
        smb_accounts=more(merge.smb_accounts, (account.name for account in observed.smb)),
        needs=frozenset((*(u.name for u in accounts.users), *(g.name for g in accounts.groups))),
    )
    keep(node, group.uuid, merge)
    return merge


def _make(step: CreateGroup | CreateUser | AddMember) -> None:
    match step:
        case CreateGroup(group):
            tools.create_group(group)
        case CreateUser(user):
            tools.create_user(user)
        case AddMember(group_name, user_name):
            tools.add_member(group_name, user_name)

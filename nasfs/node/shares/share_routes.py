"""The API of shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from ..messages import Nothing
from . import identities, shares, staging_views
from .share_messages import ShareConnect, ShareCreate, ShareImport, ShareSet


@dataclass(frozen=True, slots=True)
class ShareRoute:
    """Method, path, type of the body, what to do, and its parameters of the path or query."""

    method: str
    path: str
    body: type[msgspec.Struct]
    does: Callable[..., Any]
    names: tuple[str, ...] = ()


SHARES = (
    ShareRoute("GET", "/v1/shares", Nothing, shares.share_views),
    ShareRoute("POST", "/v1/shares", ShareCreate, shares.create_share),
    ShareRoute("POST", "/v1/shares/set", ShareSet, shares.set_share),
    ShareRoute("POST", "/v1/shares/import", ShareImport, shares.import_shares),
    ShareRoute("POST", "/v1/shares/connect", ShareConnect, shares.connect),
    ShareRoute("GET", "/v1/shares/export", Nothing, shares.export_shares),
    ShareRoute("GET", "/v1/shares/render/{server}", Nothing, shares.render_shares, ("server",)),
    ShareRoute("GET", "/v1/shares/show/{name}", Nothing, shares.share_view, ("name",)),
    ShareRoute("POST", "/v1/shares/delete/{name}", Nothing, shares.delete_share, ("name",)),
    ShareRoute(
        "GET", "/v1/staged/{group}", Nothing, staging_views.staged_view, ("group", "number")
    ),
    ShareRoute("GET", "/v1/identities", Nothing, identities.identity_list, ("target",)),
    ShareRoute(
        "GET", "/v1/identities/check/{group}", Nothing, identities.identity_check, ("group",)
    ),
)

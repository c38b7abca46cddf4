"""Options that several commands have in common: each field of a dataclass is one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints


def with_options(options: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command for typer whose parameter `options` is of that dataclass: one option per field.

    The fields are annotated as typer's parameters are, and default to None: not given.
    """
    hints = get_type_hints(options, include_extras=True)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            if parameter.name == "options":
                parameters += [
                    inspect.Parameter(name, kind, default=None, annotation=hint)
                    for name, hint in hints.items()
                ]
            else:
                parameters.append(parameter.replace(kind=kind))

        @functools.wraps(command)
        def run(**values: object) -> None:
            given = {name: values.pop(name) for name in hints}
            command(**values, options=options(**given))

        # typer looks at both.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate

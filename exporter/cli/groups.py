"""Options that several commands share, taken as one parameter: a dataclass of Typer options."""

import dataclasses
import functools
import inspect
from collections.abc import Callable


def ungrouped(function: Callable[..., int]) -> Callable[..., int]:
    """Return `function` as Typer needs it: each parameter that is a dataclass becomes its fields.

    Args:
        function: A command; its parameters and the fields of its dataclasses have distinct names,
            and every field has a default.
    """
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    for parameter in inspect.signature(function).parameters.values():
        kind = parameter.annotation
        if not dataclasses.is_dataclass(kind):
            parameters.append(parameter)
            continue
        groups[parameter.name] = kind  # type: ignore[assignment]
        parameters += [
            inspect.Parameter(
                field.name, parameter.KEYWORD_ONLY, annotation=field.type, default=field.default
            )
            for field in dataclasses.fields(kind)
        ]

    @functools.wraps(function)
    def run(*args: object, **values: object) -> int:
        for name, kind in groups.items():
            fields = [field.name for field in dataclasses.fields(kind)]
            values[name] = kind(**{field: values.pop(field) for field in fields})
        return function(*args, **values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run

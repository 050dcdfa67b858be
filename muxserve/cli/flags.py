"""Flags of a command from the fields of a pydantic model, so each setting is defined once."""

import inspect
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.core import TyperCommand

_WIDTHS = "--num-instances"


def flags_of(
    model: type[BaseModel], *, leave_out: frozenset[str] = frozenset()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one flag for each field of ``model``; it gets them as keyword arguments.

    A flag that is not given is None, so a file's setting can take its place.

    Args:
        model: the model.
        leave_out: fields that get no flag.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            one
            for one in inspect.signature(command).parameters.values()
            if one.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        flags = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=typer.Option(None, help=_help(field), show_default=False),
                annotation=_optional(field.annotation),
            )
            for name, field in model.model_fields.items()
            if name not in leave_out
        ]
        signature = inspect.Signature([*own, *flags])
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {
            one.name: one.annotation for one in signature.parameters.values()
        }
        return command

    return decorate


def _help(field: FieldInfo) -> str:
    text = field.description or ""
    if field.is_required() or field.default is None or field.default is False:
        return text
    return f"{text.removesuffix('.')}; default {field.default}."


class SeveralWidths(TyperCommand):
    """A command whose option ``--num-instances`` takes every number that follows it.

    Numbers elsewhere are left alone.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give the parser each of the numbers as an option of its own."""
        given: list[str] = []
        taking = False
        for place, one in enumerate(args):
            is_first = taking and args[place - 1] == _WIDTHS
            if taking and not is_first and one.isdecimal():
                given.append(_WIDTHS)
            elif not is_first:
                taking = one == _WIDTHS or one.startswith(f"{_WIDTHS}=")
            given.append(one)
        return super().parse_args(ctx, given)


def _optional(annotation: Any) -> Any:
    if get_origin(annotation) is not None and type(None) in get_args(annotation):
        return annotation
    return Union[annotation, None]  # noqa: UP007 - the type is known at run time only

"""How `--help` shows the parameters of a command."""

from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup

METAVARS = {"str": "TEXT", "int": "INTEGER", "float": "NUMBER", "Path": "PATH", "bool": ""}


class Command(TyperCommand):
    """A command whose help fits into 80 columns: short types, none for flags, and no braces in the usage line."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _with_short_types(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [one.metavar or one.name.upper() for one in self.get_params(ctx) if isinstance(one, TyperArgument)]
        return ["[OPTIONS]", *arguments]


class Group(TyperGroup):
    """The same for a group of commands that has options."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _with_short_types(super().get_params(ctx))


def _with_short_types(params: list[Any]) -> list[Any]:
    for param in params:
        if isinstance(param, TyperArgument):
            param.display_type_rich = lambda **_: None  # type: ignore[method-assign]
        elif param.metavar is None:
            choices = param.type_descriptor.choices
            name = param.bare_type()
            param.metavar = "|".join(map(_value, choices)) if choices else _metavar(name)
    return params


def _metavar(type_name: str) -> str:
    return METAVARS.get(type_name, type_name.upper())


def _value(choice: Any) -> str:
    return str(getattr(choice, "value", choice))

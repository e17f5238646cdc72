"""A group of commands: an unknown one is refused with the nearest name, none at all shows the help."""

from typing import Any

import typer
from typer.core import TyperGroup

from nestling._util.spelling import nearest
from nestling.errors import UsageError


class Verbs(TyperGroup):
    """The class of `nestling` and `nestling eval` for the parser."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - the parser's own context
        """Show the help, as wrong usage, when there is nothing to parse."""
        if not args:
            typer.echo(ctx.get_help())
            raise typer.Exit(2)
        return super().parse_args(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401 - the parser's own classes
        """The verb of this name."""
        found = super().get_command(ctx, cmd_name)
        if found is None:
            raise UsageError(f"no such command {cmd_name}{nearest(cmd_name, self.commands)}")
        return found

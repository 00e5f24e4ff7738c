"""The command line: it mounts commands by name, and loads one when it is called.

``curation --help`` therefore imports no ray, torch, datasets or pyarrow; a module in ``COMMANDS`` must keep what
is heavy inside its functions.
"""

import json
import os
import sys
import traceback
from collections import UserDict
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from curation.errors import CurationError

COMMANDS = {
    "run": "curation.pipelines.cli:run",
    "reselect": "curation.pipelines.cli:reselect",
    "verify": "curation.cli.commands:verify",
    "inspect": "curation.cli.commands:inspect",
    "explain": "curation.cli.commands:explain",
    "recipes": "curation.cli.commands:recipes",
    "schema": "curation.cli.commands:schema",
    "version": "curation.cli.commands:version",
    "serve": "curation.service.cli:serve",
    "trace": "curation.service.trace_command:trace",
    "token": "curation.service.access.commands:token",
    "owner": "curation.service.access.commands:owner",
    "audit": "curation.service.access.commands:audit",
    "store": "curation.service.store.maintenance.cli:store",
}

INTERRUPTED = 130

EPILOG = (
    "Exit codes: 0 done · 1 another error · 2 wrong usage · 3 the recipe is wrong · 4 an input cannot be read · "
    "5 a step cannot do its work · 6 the output cannot be written, or is someone else's · 7 verify found a "
    "difference · 130 interrupted: the same command again goes on."
)


class _Mounted(UserDict[str, Any]):
    """Commands by name; the module of one is imported when it is asked for."""

    def __getitem__(self, name: str) -> Any:
        target = self.data[name]
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            target = self.data[name] = _command(name, getattr(import_module(module), attribute))
        return target


class _Commands(TyperGroup):
    """The group of all commands; turns the project's errors into one message and an exit code."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Mounted(COMMANDS)

    def invoke(self, ctx: Any) -> Any:
        machine = "--json" in ctx.args
        try:
            return super().invoke(ctx)
        except CurationError as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            _tell(type(error).__name__, str(error), error.exit_code, machine)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            _tell("interrupted", "interrupted; run the same command again to go on", INTERRUPTED, machine)
            raise typer.Exit(INTERRUPTED) from None


def _command(name: str, target: Any) -> Any:
    if isinstance(target, typer.Typer):
        command = typer.main.get_command(target)
        command.name = name
        return command
    single = typer.Typer(add_completion=False)
    single.command(name)(target)
    return typer.main.get_command(single)


def _tell(kind: str, message: str, code: int, machine: bool) -> None:
    if machine:
        print(json.dumps({"error": kind, "message": message, "exit_code": code}), file=sys.stderr)
        return
    from curation.cli.terminal import complain

    complain(message)


app = typer.Typer(
    cls=_Commands,
    name="curation",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="CURATION_DEBUG", help="Show where in the code an error came from.")
    ] = False,
) -> None:
    """Decides what the next training step should see: scores, selects and groups training data."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; never returns."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    command = typer.main.get_command(app)
    command.main(args=None if arguments is None else list(arguments), prog_name="curation")

"""Commands on the store, ``curation store``: backup, vacuum and check, beside a server that runs."""

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from curation.service.cli import ConfigOption, StoreOption, opened_store

store = typer.Typer(no_args_is_help=True, help="Backups of the service's store, and its upkeep; a server may run.")

_Json = Annotated[bool, typer.Option("--json", help="One line of JSON on standard output.")]
_DIFFERENT = 7


@store.command("backup")
def backup(
    file: Annotated[Path, typer.Argument(help="Where the copy goes; it must not exist.")],
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: _Json = False,
) -> None:
    """Copy the store as it is now. To go back to it, stop the server and put the copy in its place."""
    from curation.service.store.maintenance.backup import make_backup

    with closing(opened_store(store, config)) as opened:
        done = make_backup(opened, file)
    size = done.bytes / 2**20
    _tell(done._asdict(), f"{done.file}: {done.sessions} sessions, {size:.1f} MiB, {done.seconds:.1f} s", as_json)


@store.command("vacuum")
def vacuum(store: StoreOption = None, config: ConfigOption = None, as_json: _Json = False) -> None:
    """Give the space of what was removed back to the file system."""
    from curation.service.store.maintenance.vacuum import vacuum_store

    with closing(opened_store(store, config)) as opened:
        done = vacuum_store(opened)
    before, after = done.bytes_before / 2**20, done.bytes_after / 2**20
    beside = ", beside a server" if done.online else ""
    _tell(done._asdict(), f"{before:.1f} MiB before, {after:.1f} MiB now, {done.seconds:.1f} s{beside}", as_json)


@store.command("check")
def check(store: StoreOption = None, config: ConfigOption = None, as_json: _Json = False) -> None:
    """Look whether all of the store fits together; exit code 7 where it does not."""
    from curation.service.store.maintenance.check import check_store

    with closing(opened_store(store, config)) as opened:
        found = check_store(opened)
    problems = [problem._asdict() for problem in found.problems]
    lines = [f"{problem.session or 'the store'}: {problem.what}" for problem in found.problems]
    summary = f"{found.sessions} sessions, {found.epochs} epochs, {found.reports} reports: "
    summary += f"{len(problems)} problems" if problems else "all fits together"
    _tell({**found._asdict(), "problems": problems}, "\n".join([*lines, summary]), as_json)
    if problems:
        raise typer.Exit(_DIFFERENT)


def _tell(facts: dict[str, Any], words: str, as_json: bool) -> None:
    typer.echo(json.dumps(facts) if as_json else words)

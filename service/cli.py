"""Commands of the service, ``curation serve`` and ``curation token``, which :mod:`curation.cli` mounts by name."""

from pathlib import Path
from typing import Annotated, Any

import typer

_Config = Annotated[Path | None, typer.Option(help="YAML file of settings; flags and CURATION_* go before it.")]
_Store = Annotated[
    str | None, typer.Option(help="sqlite:///file or postgresql+psycopg://user@host/database.", show_default=False)
]


def serve(
    config: _Config = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on [default: 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0: any that is free [default: 8765].")] = None,
    store: _Store = None,
    datasets: Annotated[
        list[Path] | None, typer.Option(help="A folder whose subfolders are curated datasets; may be repeated.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error [default: info].")] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Deploy on Ray Serve, over PostgreSQL, and wait.")] = False,
    replicas: Annotated[int, typer.Option(min=1, help="Replicas on Ray Serve.")] = 2,
) -> None:
    """Serve batches over HTTP. Stops on Ctrl-C or SIGTERM, after open requests are answered."""
    from curation.service.server import run

    settings = _settings(config, host=host, port=port, store=store, datasets=datasets or None, log_level=log_level)
    if ray:
        from curation.service.ray_serve import run_on_ray

        run_on_ray(settings, replicas)
    else:
        run(settings)


token = typer.Typer(no_args_is_help=True, help="Bearer tokens of the service.")


@token.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Who or what it is for.")],
    scope: Annotated[list[str], typer.Option(help="read, select or admin; may be repeated.")] = ["select"],  # noqa: B006
    store: _Store = None,
    config: _Config = None,
) -> None:
    """Make a token. It is shown once: the store keeps only its hash."""
    from curation.service.auth import issue_token

    try:
        record, secret = issue_token(_open(store, config), name, frozenset(scope))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--scope") from error
    typer.echo(f"token {record.id} for {record.name}: {' '.join(sorted(record.scopes))}. Keep it now:", err=True)
    typer.echo(secret)


@token.command("list")
def list_tokens(store: _Store = None, config: _Config = None) -> None:
    """Show all tokens, without their secrets."""
    from datetime import UTC, datetime

    from rich.console import Console
    from rich.table import Table

    table = Table("id", "name", "scopes", "created", "revoked")
    for record in _open(store, config).tokens():
        times = (record.created, record.revoked)
        days = [f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}" if at else "" for at in times]
        table.add_row(record.id, record.name, " ".join(sorted(record.scopes)), *days)
    Console().print(table)


@token.command("revoke")
def revoke(
    id: Annotated[str, typer.Argument(help="The token's id, as `list` shows it.")],
    store: _Store = None,
    config: _Config = None,
) -> None:
    """Make a token invalid; running servers notice within their token_seconds (2 by default)."""
    if not _open(store, config).revoke_token(id):
        raise typer.BadParameter(f"there is no valid token {id!r}", param_hint="ID")
    typer.echo(f"token {id} is revoked")


def _settings(config: Path | None, **flags: Any) -> Any:
    from pydantic import ValidationError

    from curation.service.settings import load_settings

    try:
        return load_settings(config, **flags)
    except ValidationError as error:
        mistakes = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise typer.BadParameter(mistakes) from error
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _open(store: str | None, config: Path | None) -> Any:
    from curation.service.store.opening import open_store

    return open_store(_settings(config, store=store).store)

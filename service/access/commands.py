"""Commands ``curation token``, ``owner`` and ``audit``, which :mod:`curation.cli` mounts by name."""

import json
import os
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from curation.service.cli import ConfigOption, StoreOption, opened_store

token = typer.Typer(no_args_is_help=True, help="Bearer tokens of the service.")
owner = typer.Typer(no_args_is_help=True, help="Owners of sessions and tokens, and what each may use.")

_Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
_TokenId = Annotated[str, typer.Argument(help="The token's id, as `list` shows it.")]
_Owner = Annotated[str, typer.Argument(help="The owner's name, such as a team's.")]
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_DEFAULT = "default"
_WIDE = 1000  # a file or a pipe has no width to keep to
_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def _duration(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if not found:
        raise typer.BadParameter(f"{text!r} is no length of time: write 90d, 12h, 30m, 45s or 2w")
    return float(found[1]) * _SECONDS[found[2]]


def _rate(text: str) -> float | str:
    from curation.service.session.account import MIN_RATE

    if text == _DEFAULT:
        return text
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)", text)
    if not found or float(found[1]) < MIN_RATE:
        raise typer.BadParameter(f"{text!r} is no rate: write a number such as 500 or 10M, or {_DEFAULT}")
    return float(found[1]) * _FACTORS[found[2]]


def _count(text: str) -> int | str:
    if text == _DEFAULT:
        return text
    if not re.fullmatch(r"\d{1,18}", text):
        raise typer.BadParameter(f"{text!r} is no number of sessions: write one such as 100, or {_DEFAULT}")
    return int(text)


_Duration = typer.Option(parser=_duration, metavar="TIME", help="Such as 90d, 12h or 30m; without: never.")


@token.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Who or what it is for.")],
    owner: Annotated[
        str | None, typer.Option(help="Whose sessions it makes and uses (default: its own only).", show_default=False)
    ] = None,
    scope: Annotated[list[str], typer.Option(help="read, read-all, select or admin; may be repeated.")] = ["select"],  # noqa: B006
    expires: Annotated[Any, _Duration] = None,
    adopt: Annotated[
        bool | None,
        typer.Option("--adopt/--no-adopt", help="Whether the owner gets the sessions that were made without a token."),
    ] = None,
    as_json: _Json = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Make a token. It is shown once: the store keeps only its hash."""
    from curation.service.access.tokens import issue_token
    from curation.service.store.owners import count_ownerless

    opened = opened_store(store, config, make=True)
    record, secret = issue_token(
        opened, name, frozenset(scope), owner=owner, lasts=expires, adopt=adopt, caller=_operator()
    )
    _show_secret(record, secret, as_json)
    if owner is None and record.scopes == {"read"}:
        typer.echo("It shows no session: name an --owner, or use --scope read-all to show everybody's.", err=True)
    with opened.engine.connect() as connection:
        ownerless = count_ownerless(connection)
    if ownerless:
        typer.echo(
            f"{ownerless} sessions have no owner, and only admin tokens may use them: --adopt gives them to one.",
            err=True,
        )


@token.command("rotate")
def rotate(
    id: _TokenId,
    grace: Annotated[
        Any, typer.Option(parser=_duration, metavar="TIME", help="How long the present secret stays good.")
    ] = "1d",
    expires: Annotated[Any, _Duration] = None,
    as_json: _Json = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Give a token a new secret; its owner, scopes and sessions stay. Without --expires it ends when it would have."""
    from curation.service.access.tokens import renew_token

    record, secret = renew_token(opened_store(store, config), id, grace=grace, lasts=expires, caller=_operator())
    _show_secret(record, secret, as_json)
    if record.old_until is not None:
        typer.echo(f"The secret before this one is good until {_time(record.old_until)} UTC.", err=True)


@token.command("list")
def list_tokens(as_json: _Json = False, store: StoreOption = None, config: ConfigOption = None) -> None:
    """Show all tokens, without their secrets."""
    from curation.service.store.tokens import read_tokens

    records = read_tokens(opened_store(store, config))
    if as_json:
        typer.echo(json.dumps([_token_facts(record) for record in records]))
        return
    times = ("created", "expires", "used", "revoked")
    _print_table(
        ("id", "name", "owner", "scopes", *times),
        [
            (
                *(record.id, record.name, record.owner, " ".join(sorted(record.scopes))),
                *(_time(getattr(record, name)) for name in times),
            )
            for record in records
        ],
    )


@token.command("revoke")
def revoke(id: _TokenId, store: StoreOption = None, config: ConfigOption = None) -> None:
    """Make a token invalid; running servers notice within their token_seconds (2 by default)."""
    from curation.service.store.tokens import revoke_token

    if not revoke_token(opened_store(store, config), _operator(), id):
        raise typer.BadParameter(f"there is no valid token {id!r}", param_hint="ID")
    typer.echo(f"token {id} is revoked")


@owner.command("set")
def set_owner(
    name: _Owner,
    sessions: Annotated[
        Any, typer.Option(parser=_count, metavar="N|default", help="How many sessions it may have.")
    ] = None,
    requests_per_second: Annotated[
        Any, typer.Option(parser=_rate, metavar="N|default", help="How many requests it may send each replica.")
    ] = None,
    bytes_per_second: Annotated[
        Any, typer.Option(parser=_rate, metavar="N|default", help="How many bytes of bodies, such as 10M.")
    ] = None,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Set an owner's quotas; those not named stay. Running servers notice within their token_seconds."""
    from curation.service.access.tokens import check_owner
    from curation.service.store.owners import set_quota

    check_owner(name)
    given = {
        "sessions": sessions,
        "requests_per_second": requests_per_second,
        "bytes_per_second": bytes_per_second,
    }
    changes = {limit: None if value == _DEFAULT else value for limit, value in given.items() if value is not None}
    quota = set_quota(opened_store(store, config, make=True), _operator(), name, changes)
    limits = (f"{limit} {_DEFAULT if value is None else f'{value:g}'}" for limit, value in quota._asdict().items())
    typer.echo(f"owner {name}: {', '.join(limits)}")


@owner.command("list")
def list_owners(as_json: _Json = False, store: StoreOption = None, config: ConfigOption = None) -> None:
    """Show every owner that has a token, a session or a quota. A quota that is not set is the server's default."""
    from curation.service.store import owners

    found = owners.list_owners(opened_store(store, config))
    if as_json:
        typer.echo(json.dumps([{**use._asdict(), "quota": use.quota._asdict()} for use in found]))
        return
    limits = ("requests/s", "bytes/s")
    _print_table(
        ("owner", "sessions", "at most", *limits, "tokens"),
        [
            (
                use.name,
                str(use.sessions),
                *("" if value is None else f"{value:g}" for value in use.quota),
                str(use.tokens),
            )
            for use in found
        ],
    )


@owner.command("rename")
def rename(
    old: _Owner,
    new: Annotated[str, typer.Argument(help="Its new name; an owner of that name takes over what OLD has.")],
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Give an owner's sessions and tokens to another one."""
    from curation.service.access.tokens import check_owner
    from curation.service.store.owners import rename_owner

    check_owner(new)
    sessions, tokens = rename_owner(opened_store(store, config), _operator(), old, new)
    if not sessions and not tokens:
        raise typer.BadParameter(f"owner {old!r} has neither sessions nor tokens", param_hint="OLD")
    typer.echo(f"{sessions} sessions and {tokens} tokens of {old} are {new}'s now")


def audit(
    session: Annotated[str | None, typer.Option(help="Only acts on this session.", show_default=False)] = None,
    owner: Annotated[str | None, typer.Option(help="Only acts of this owner's tokens.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 100,
    as_json: _Json = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Show who made, changed and deleted what."""
    from curation.service.store.audit import read_audit

    entries = read_audit(opened_store(store, config), session=session, owner=owner, limit=limit)
    if as_json:
        typer.echo(json.dumps([entry._asdict() for entry in entries]))
        return
    _print_table(
        ("time", "act", "session", "owner", "token", "from", "request", "detail"),
        [
            (
                _time(entry.at, seconds=True),
                entry.act,
                *(value or "" for value in (entry.session, entry.owner, entry.token, entry.peer, entry.request)),
                " ".join(f"{name}={value}" for name, value in entry.detail.items() if value is not None),
            )
            for entry in entries
        ],
    )


def _operator() -> Any:
    """Who runs a command, for the audit trail."""
    import getpass
    from dataclasses import replace

    from curation.service.session.caller import ANYONE

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        user = str(os.getuid())
    return replace(ANYONE, peer=f"command line of {user}"[:100])


def _show_secret(record: Any, secret: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({**_token_facts(record), "token": secret}))
        return
    until = "" if record.expires is None else f", until {_time(record.expires)} UTC"
    scopes = " ".join(sorted(record.scopes))
    typer.echo(f"token {record.id} for {record.name}, owner {record.owner}: {scopes}{until}. Keep it now:", err=True)
    typer.echo(secret)


def _token_facts(record: Any) -> dict[str, Any]:
    facts = {name: value for name, value in record._asdict().items() if not name.endswith("hash")}
    return {**facts, "scopes": sorted(record.scopes)}


def _time(at: float | None, *, seconds: bool = False) -> str:
    if at is None:
        return ""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M")


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(value) for value in row))
    Console(width=None if sys.stdout.isatty() else _WIDE).print(table)

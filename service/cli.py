"""Command ``curation serve``, which :mod:`curation.cli` mounts by name, and what the service's other commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer

ConfigOption = Annotated[Path | None, typer.Option(help="YAML file of settings; flags and CURATION_* go before it.")]
StoreOption = Annotated[
    str | None, typer.Option(help="sqlite:///file or postgresql://user@host/name.", show_default=False)
]


def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (default: 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0: any that is free (default: 8765).")] = None,
    store: StoreOption = None,
    datasets: Annotated[
        list[Path] | None, typer.Option(help="A folder whose subfolders are curated datasets; may be repeated.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error (default: info).")] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Deploy on Ray Serve, over PostgreSQL, and wait.")] = False,
    replicas: Annotated[int, typer.Option(min=1, help="Replicas on Ray Serve.")] = 2,
) -> None:
    """Serve batches over HTTP. Stops on Ctrl-C or SIGTERM, after open requests are answered."""
    from curation.service.server import run

    settings = read_settings(config, host=host, port=port, store=store, datasets=datasets or None, log_level=log_level)
    if ray:
        from curation.service.ray_serve import run_on_ray

        run_on_ray(settings, replicas)
    else:
        run(settings)


def read_settings(config: Path | None, **flags: Any) -> Any:
    """Settings of a file, the environment and flags; a mistake in them is one of the command line."""
    from pydantic import ValidationError

    from curation.service.settings import load_settings

    try:
        return load_settings(config, **flags)
    except ValidationError as error:
        mistakes = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise typer.BadParameter(mistakes) from error
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def opened_store(store: str | None, config: Path | None, *, make: bool = False) -> Any:
    """The store that a command works on; ``make``: a SQLite file that is not there is made."""
    from curation.service.store.opening import open_store

    return open_store(read_settings(config, store=store).store, make=make)

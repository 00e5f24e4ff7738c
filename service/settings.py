"""Settings of the service: flags, then environment (``CURATION_*``), then a YAML file, then defaults."""

from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource
from yaml import YAMLError

from curation.service.logs import AccessMode
from curation.service.session.account import MIN_RATE


class Settings(BaseSettings):
    """Every setting, with its default.

    A name in the environment is the upper-case name after ``CURATION_``; lists and dicts there are JSON:
    ``CURATION_DATASETS='["/data/curated"]'``.
    """

    model_config = SettingsConfigDict(env_prefix="CURATION_", extra="forbid", frozen=True)

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8765, ge=0, le=65_535)
    store: str = Field(default="sqlite:///curation.db", description="sqlite:///file or postgresql+psycopg://...")
    auth: Literal["auto", "required"] = Field(
        default="auto",
        description="auto: tokens are asked for as soon as the store has one; required: always",
    )
    datasets: list[Path] = Field(default=[], description="folders whose subfolders are curated datasets")
    dataset_owners: dict[Path, list[str]] = Field(
        default={}, description="the only owners that see a root's datasets, by root; other roots are everybody's"
    )
    owner_sessions: int | None = Field(
        default=10_000, ge=0, description="sessions an owner may have, unless set for it; null: no limit"
    )
    owner_requests_per_second: float | None = Field(
        default=None,
        ge=MIN_RATE,
        description="requests an owner may send each replica, unless set for it; null: no limit",
    )
    owner_bytes_per_second: float | None = Field(
        default=None, ge=MIN_RATE, description="bytes of bodies an owner may send each replica, unless set for it"
    )
    audit_days: float = Field(default=365, gt=0, description="how long the audit trail is kept")
    trusted_proxies: list[str] = Field(
        default=[], description="addresses of proxies whose X-Forwarded-For is taken for the peer's address"
    )
    allowed_hosts: list[str] = Field(
        default=[], description="further names for the Host header while no token is needed, such as a proxy's"
    )
    max_connections: int = Field(
        default=4096, ge=1, description="connections at once; over that, one without a request in work makes room"
    )
    max_peer_connections: int = Field(
        default=2048, ge=1, description="connections of one address; behind a proxy all are of one"
    )
    max_head_bytes: int = Field(default=32 << 10, ge=1024, description="a request's URL and headers")
    head_seconds: float = Field(default=10, gt=0, description="a URL and headers that take longer to arrive get 408")
    idle_seconds: int = Field(default=30, ge=1, description="how long a connection may wait for its next request")
    send_seconds: float = Field(
        default=30, gt=0, description="a connection whose peer takes nothing of an answer for so long is dropped"
    )
    max_body_bytes: int = Field(default=64 << 20, ge=1024, description="larger request bodies are refused")
    max_reports: int = Field(default=4096, ge=1, description="reports in one request for a step")
    max_checkpoint_bytes: int = Field(
        default=16 << 30, ge=1024, description="larger checkpoints are not imported; they wait in TMPDIR meanwhile"
    )
    owner_file_bytes: int = Field(
        default=64 << 30, ge=1024, description="checkpoints in TMPDIR that are on their way at once for one owner"
    )
    request_seconds: float = Field(default=60, gt=0, description="a request that takes longer gets 503")
    body_seconds: float = Field(default=30, gt=0, description="a body that takes longer to arrive gets 408")
    large_bodies: int = Field(
        default=8, ge=1, description="bodies above 1 MiB that are read and parsed at once; of one owner all but one"
    )
    token_seconds: float = Field(default=2, ge=0, description="how long a token's revocation may go unnoticed")
    resident_bytes: int = Field(default=4 << 30, ge=1, description="memory for epochs of open sessions; older ones go")
    part_bytes: int = Field(
        default=1 << 30, ge=0, description="memory for what ranks sent of super-batches; the store takes the rest"
    )
    keep_days: float | None = Field(
        default=None, gt=0, description="sessions that nobody used for so long are removed; null: never"
    )
    keep_epochs: int | None = Field(
        default=None,
        ge=2,
        description="a session's reports are kept of so many epochs, and it can then be rewound to the last but one at "
        "the furthest; null: of all epochs",
    )
    max_texts: int = Field(default=100_000, ge=1, description="texts in one /v1/select/zipfit")
    max_text_pairs: int = Field(default=20_000_000, ge=1, description="texts times targets in one /v1/select/zipfit")
    max_text_bytes: int = Field(
        default=32 << 30, ge=1, description="bytes that one /v1/select/zipfit has to compress: each pair's, added up"
    )
    max_rows: int = Field(default=2_000_000, ge=1, description="scores in one /v1/select/acquire")
    max_pairs: int = Field(
        default=65_536, ge=1, description="pairs in one /v1/select/jest or /b3, and in a session's super-batch"
    )
    select_threads: int = Field(default=2, ge=1, description="choices of sessions of jest computed at once")
    workers: int = Field(default=2, ge=1, description="processes that compute /v1/select and parse JSON above 128 KiB")
    worker_bytes: int = Field(default=4 << 30, ge=64 << 20, description="memory for one piece of such work")
    threads: int = Field(
        default=8, ge=2, description="threads for work on the store and in O(N); of one owner all but one at most"
    )
    stalled_seconds: float = Field(default=300, gt=0, description="how long nobody asks until a session is 'stalled'")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    access_log: AccessMode = Field(
        default="all",
        description="a line of JSON for each request: all; slow (longer than slow_seconds, or failed); errors (400 and "
        "above); off. true and false stand for all and off",
    )
    slow_seconds: float = Field(default=1, ge=0, description="requests that take longer are slow, for access_log")
    ready_seconds: float = Field(default=5, gt=0, description="how long /readyz waits for the store to take a write")
    shutdown_seconds: int = Field(default=10, ge=0, description="how long open requests may take at shutdown")

    @field_validator("access_log", mode="before")
    @classmethod
    def _mode(cls, value: Any) -> Any:
        """YAML reads a bare ``off`` as false, and releases up to 0.1 had a bool here."""
        older = {"true": "all", "1": "all", "false": "off", "0": "off"}
        return older.get(str(value).lower(), value)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings

    @model_validator(mode="after")
    def _check_dataset_owners(self) -> Self:
        roots = {root.resolve() for root in self.datasets}
        for root in self.dataset_owners:
            if root.resolve() not in roots:
                raise ValueError(f"dataset_owners names {root}, which is not among datasets")
        return self

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


def load_settings(file: Path | None = None, **flags: Any) -> Settings:
    """Settings from a file, the environment and flags, the later ones first; a flag that is None was not given.

    Raises:
        ValueError: (pydantic's ``ValidationError``) a name is unknown or a value is not allowed.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if file is None:
        return Settings(**given)

    class FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *sources: PydanticBaseSettingsSource, **named: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            yaml = YamlConfigSettingsSource(settings_cls, yaml_file=file)
            return named["init_settings"], named["env_settings"], yaml

    if not file.is_file():
        raise ValueError(f"{file}: no such settings file")
    try:
        return FromFile(**given)
    except (YAMLError, OSError, TypeError) as error:
        raise ValueError(f"{file}: not a file of settings, `name: value` on each line: {error}") from error

"""The commands of tokens, owners and the audit trail, as their users type them."""

import json
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from curation.cli import app


@pytest.fixture
def run(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CURATION_STORE", f"sqlite:///{tmp_path}/tokens.db")

    def run(*arguments: str, code: int = 0) -> Result:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == code, done.output
        return done

    return run


def test_a_token_from_its_making_to_its_end(run: Any) -> None:
    made = run("token", "create", "trainer", "--owner", "vision", "--expires", "90d")
    secret = made.stdout.strip()
    assert secret.startswith("cur_")
    id = secret.split("_")[1]
    assert "owner vision: select, until " in made.stderr
    rotated = run("token", "rotate", id, "--grace", "12h")
    assert rotated.stdout.strip().startswith(f"cur_{id}_")
    assert rotated.stdout.strip() != secret
    assert "is good until" in rotated.stderr
    listed = run("token", "list").stdout
    assert "vision" in listed
    (facts,) = json.loads(run("token", "list", "--json").stdout)
    assert (facts["id"], facts["owner"], facts["scopes"], facts["used"]) == (id, "vision", ["select"], None)
    assert 89 < (facts["expires"] - facts["created"]) / 86_400 < 91
    for output in (listed, json.dumps(facts)):
        assert secret.split("_", 2)[2] not in output
        assert "hash" not in output
    run("token", "revoke", id)
    run("token", "revoke", id, code=2)
    run("token", "rotate", id, code=2)
    assert [act["act"] for act in json.loads(run("audit", "--json").stdout)] == [
        "token.revoke",
        "token.rotate",
        "token.create",
    ]
    shown = run("audit").stdout
    assert "command line of " in shown
    assert f"id={id}" in shown


def test_json_of_a_new_token(run: Any) -> None:
    made = json.loads(run("token", "create", "grafana", "--scope", "read-all", "--json").stdout)
    assert (made["owner"], made["expires"]) == (made["id"], None)
    assert made["token"].startswith(f"cur_{made['id']}_")


@pytest.mark.parametrize(
    "options",
    [
        ["--scope", "everything"],
        ["--owner", "a b"],
        ["--expires", "soon"],
        ["--expires", "0d"],
    ],
)
def test_wrong_usage(run: Any, options: list[str]) -> None:
    run("token", "create", "first")
    run("token", "create", "x", *options, code=2)
    assert [token["name"] for token in json.loads(run("token", "list", "--json").stdout)] == ["first"]


def test_a_read_token_of_nobody_is_warned_of(run: Any) -> None:
    assert "It shows no session" in run("token", "create", "x", "--scope", "read").stderr
    assert "shows no" not in run("token", "create", "x", "--scope", "read", "--owner", "vision").stderr


def test_owners_and_their_quotas(run: Any) -> None:
    run("token", "create", "x", "--owner", "vision")
    said = run("owner", "set", "vision", "--sessions", "100", "--bytes-per-second", "1.5M").stdout
    assert said == "owner vision: sessions 100, requests_per_second default, bytes_per_second 1.5e+06\n"
    run("owner", "set", "vision", "--requests-per-second", "500", "--bytes-per-second", "default")
    (facts,) = json.loads(run("owner", "list", "--json").stdout)
    assert facts == {
        "name": "vision",
        "quota": {"sessions": 100, "requests_per_second": 500.0, "bytes_per_second": None},
        "sessions": 0,
        "tokens": 1,
    }
    run("owner", "rename", "vision", "sight")
    assert "sight" in run("owner", "list").stdout
    run("owner", "rename", "vision", "sight", code=2)
    for wrong in (
        ["vision", "--sessions", "many"],
        ["vision", "--sessions", "1.5"],
        ["vision", "--requests-per-second", "0"],
        ["a b", "--sessions", "1"],
    ):
        run("owner", "set", *wrong, code=2)


@pytest.mark.parametrize(
    "command", ["serve", "token create", "token rotate", "owner set", "audit", "store backup", "trace"]
)
def test_help_shows_defaults_and_whole_addresses(run: Any, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = run(*command.split(), "--help").stdout
    assert " ." not in shown  # a default in brackets is taken for a style, and left out
    assert "…" not in shown

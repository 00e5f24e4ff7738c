"""Files of configs/ that an operator deploys: they name metrics, settings, ports and paths that the service has."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
import yaml
from prometheus_client.parser import text_string_to_metric_families

import curation.cli
from curation.service.client import Client
from curation.service.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
DOCS = (ROOT / "docs" / "service" / "operations.md").read_text()
BOARD = json.loads((CONFIGS / "grafana" / "curation.json").read_text())
ALERTS = yaml.safe_load((CONFIGS / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
MANIFESTS = {
    manifest["kind"]: manifest
    for manifest in yaml.safe_load_all((CONFIGS / "kubernetes" / "curation.yaml").read_text())
}
_METRIC = re.compile(r"\b(?:curation|process)_\w+")


@pytest.fixture(scope="module")
def metrics(live: Callable[..., Any]) -> set[str]:
    """Names that a server at work answers a scrape with."""
    url = live().url
    with Client(url) as client:
        client.step(client.create_session("infobatch", size=8, batch_size=4, epochs=2).id, 0)
    families = list(text_string_to_metric_families(httpx.get(f"{url}/metrics").text))
    named = {f"{family.name}_total" if family.type == "counter" else family.name for family in families}
    return named | {sample.name for family in families for sample in family.samples}


def _family(name: str) -> str:
    return re.sub(r"_(bucket|count|sum|created|total)$", "", name)


def expressions() -> Iterator[tuple[str, str]]:
    yield from ((rule["alert"], rule["expr"]) for rule in ALERTS)
    for panel in BOARD["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel.get("targets", ()))
    yield "variable", BOARD["templating"]["list"][1]["query"]["query"]


def test_every_metric_of_the_board_and_the_alerts_is_in_a_scrape(metrics: set[str]) -> None:
    used = {name for _, expression in expressions() for name in _METRIC.findall(expression)}
    assert len(used) > 20
    assert used <= metrics


def test_every_metric_is_on_the_board_or_left_out_on_purpose(metrics: set[str]) -> None:
    used = {name for _, expression in expressions() for name in _METRIC.findall(expression)}
    shown = {_family(name) for name in used}
    missing = {name for name in map(_family, metrics) if name.startswith("curation_")} - shown
    assert missing == {"curation_rows", "curation_pool_size", "curation_sessions_in_memory"}


def test_every_metric_is_described(metrics: set[str]) -> None:
    families = set(map(_family, metrics))
    assert not {name for name in families if name.startswith("curation_") and name not in DOCS}


def test_every_alert_has_its_line_in_the_docs() -> None:
    assert [rule["alert"] for rule in ALERTS if f"| `{rule['alert']}` | " not in DOCS] == []
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in ALERTS)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
def test_prometheus_takes_every_expression(tmp_path: Path) -> None:
    rules = [
        {"record": f"expression_{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, (where, expression) in enumerate(expressions())
        if where != "variable"
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    subprocess.run(["promtool", "check", "rules", file, CONFIGS / "prometheus" / "alerts.yml"], check=True)


def test_the_board_is_whole() -> None:
    panels = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    for panel in panels:
        assert panel["description"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert all("[5m]" not in target["expr"] for target in panel["targets"])


def environment() -> Iterator[str]:
    """Names of the environment that the shipped files set."""
    for file in ("systemd/curation.service", "container/Containerfile", "container/compose.yaml"):
        yield from re.findall(r"\bCURATION_\w+(?=[=:] *[^-])", (CONFIGS / file).read_text())
    container = MANIFESTS["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    yield from (variable["name"] for variable in container["env"] if variable["name"].startswith("CURATION_"))


def test_every_setting_in_the_files_is_one(tmp_path: Path) -> None:
    names = {name.removeprefix("CURATION_").lower() for name in environment()}
    assert {"store", "host", "access_log"} <= names
    assert names <= set(Settings.model_fields)
    settings = tmp_path / "service.yaml"
    settings.write_text(MANIFESTS["ConfigMap"]["data"]["service.yaml"])
    assert load_settings(settings).auth == "required"
    assert load_settings(CONFIGS / "service.yaml").port == 8765


def commands() -> Iterator[list[str]]:
    """Arguments of ``curation`` in the shipped files, comments with something to type included."""
    container = MANIFESTS["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    yield container["args"]
    for file in sorted(CONFIGS.rglob("*")):
        if file.is_file() and file.suffix != ".json":
            found = re.findall(r"(?:bin/|`|# )curation ((?:serve|token|owner|store|audit)\b[^`\n]*)", file.read_text())
            yield from (line.split() for line in found)
    yield json.loads((re.findall(r"^CMD (.+)$", (CONFIGS / "container" / "Containerfile").read_text(), re.M))[-1])


def test_every_command_in_the_files_is_one() -> None:
    given = list(commands())
    assert len(given) >= 5
    for arguments in given:
        command: Any = typer.main.get_command(curation.cli.app)
        for word in arguments:
            if hasattr(command, "commands"):
                command = command.commands[word]
            elif word.startswith("--"):
                assert word in {name for option in command.params for name in option.opts}, arguments


def test_ports_labels_and_times_agree() -> None:
    pod = MANIFESTS["Deployment"]["spec"]["template"]
    container = pod["spec"]["containers"][0]
    assert container["ports"] == [{"name": "http", "containerPort": 8765}]
    settings = yaml.safe_load(MANIFESTS["ConfigMap"]["data"]["service.yaml"])
    assert settings["port"] == 8765
    labels = pod["metadata"]["labels"].items()
    selectors = [
        MANIFESTS["Service"]["spec"]["selector"],
        MANIFESTS["Deployment"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels for selector in selectors)
    assert pod["spec"]["terminationGracePeriodSeconds"] > settings["shutdown_seconds"] + 5
    assert container["readinessProbe"]["timeoutSeconds"] > Settings().ready_seconds
    assert container["startupProbe"]["httpGet"]["path"] == container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    unit = (CONFIGS / "systemd" / "curation.service").read_text()
    stop = re.search(r"TimeoutStopSec=(\d+)", unit)
    assert stop is not None
    assert int(stop[1]) > Settings().shutdown_seconds


def test_the_image_has_what_the_wheel_is_made_of() -> None:
    text = (CONFIGS / "container" / "Containerfile").read_text()
    folders = {folder for line in re.findall(r"^COPY (\w+) \w+$", text, re.M) for folder in line.split()}
    assert folders == {"curation", "gpu", "selectors", "pipelines", "service", "configs"}
    assert "USER 10001:10001" in text
    compose = yaml.safe_load((CONFIGS / "container" / "compose.yaml").read_text())
    assert (CONFIGS / "container" / compose["services"]["curation"]["build"]["context"]).resolve() == ROOT
    assert compose["services"]["curation"]["build"]["dockerfile"] == "configs/container/Containerfile"


def test_checkpoints_pass_through_a_disk_and_not_through_memory() -> None:
    folder = re.search(r"TMPDIR=(\S+)", (CONFIGS / "container" / "Containerfile").read_text())
    assert folder is not None
    compose = yaml.safe_load((CONFIGS / "container" / "compose.yaml").read_text())
    assert folder[1] not in {mount.partition(":")[0] for mount in compose["services"]["curation"]["tmpfs"]}
    pod = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
    mounted = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert {"name": mounted[folder[1]], "emptyDir": {}} in pod["volumes"]
    assert "TMPDIR=/var/cache/curation" in (CONFIGS / "systemd" / "curation.service").read_text()


def test_the_proxy_waits_longer_than_the_service_and_takes_the_same_bodies() -> None:
    text = (CONFIGS / "container" / "nginx.conf").read_text()
    waits = [int(seconds) for seconds in re.findall(r"proxy_read_timeout (\d+)s", text)]
    assert min(waits) > Settings().request_seconds
    upstream = re.search(r"upstream curation {[^}]*keepalive_timeout (\d+)s;", text)
    assert upstream is not None
    assert int(upstream[1]) < Settings().idle_seconds
    assert f"client_max_body_size {Settings().max_body_bytes >> 20}m;" in text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    text = (CONFIGS / "systemd" / "curation.service").read_text()
    unit = tmp_path / "curation.service"
    unit.write_text(text.replace("/opt/curation/bin/curation", shutil.which("true") or "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

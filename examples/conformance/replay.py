"""Conformance of a server or a client: a recorded conversation, to send again or to answer from.

    python examples/conformance/replay.py http://127.0.0.1:8765            # a server must answer alike
    python examples/conformance/replay.py http://127.0.0.1:8765 --record   # write its answers down

``exchanges.json`` has the requests in their order, with what was answered; Arrow bodies are the files beside it. A
client in another language sends the same bodies, and reads the same answers. Members that differ from server to
server, such as when a session was created, are left out of what is compared.
"""

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow as pa

ARROW = "application/vnd.apache.arrow.stream"
HERE = Path(__file__).parent
FILE = HERE / "exchanges.json"
VARYING = {"created", "generation", "instance", "resident_bytes", "detail"}


def replay(url: str, *, record: bool = False) -> list[str]:
    """Send every request to a server without these sessions; what it answered otherwise, a line each."""
    exchanges, differences = json.loads(FILE.read_text()), []
    for exchange in exchanges:
        status, kind, body = _send(url, exchange["request"])
        if kind == ARROW:
            name = f"{exchange['name']}.answer.arrow"
            if record:
                (HERE / name).write_bytes(body)
            found = {"status": status, "arrow": name}
            alike = _comparable(body) == _comparable((HERE / name).read_bytes())
        else:
            found = {"status": status, "json": _stable(json.loads(body or b"null"))}
            alike = True
        if record:
            exchange["answer"] = found
        elif not alike or not _contains(found, exchange["answer"]):
            differences.append(f"{exchange['name']}: expected {exchange['answer']}, found {found}")
    if record:
        FILE.write_text(json.dumps(exchanges, indent=1) + "\n")
    return differences


def _send(url: str, request: dict[str, Any]) -> tuple[int, str, bytes]:
    arrow = request.get("arrow")
    body = (HERE / arrow).read_bytes() if arrow else json.dumps(request["json"]).encode() if "json" in request else None
    headers = {
        "Content-Type": ARROW if arrow else "application/json",
        "Accept": request.get("accept", "application/json"),
    }
    asked = urllib.request.Request(url + request["path"], body, headers, method=request["method"])
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status, answer.headers.get("Content-Type", ""), answer.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, "application/problem+json", refused.read()


def _stable(value: Any) -> Any:
    return {name: each for name, each in value.items() if name not in VARYING} if isinstance(value, dict) else value


def _comparable(body: bytes) -> tuple[dict[str, Any], dict[bytes, bytes]]:
    table = pa.ipc.open_stream(body).read_all()
    metadata = table.schema.metadata or {}
    return table.to_pydict(), {key: value for key, value in metadata.items() if key.decode() not in VARYING}


def _contains(found: Any, expected: Any) -> bool:
    """Whether an answer has all that was recorded; a newer server may say more."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return all(name in found and _contains(found[name], each) for name, each in expected.items())
    return bool(found == expected)


if __name__ == "__main__":
    lines = replay(sys.argv[1], record="--record" in sys.argv[2:])
    print("\n".join(lines) or "alike")
    sys.exit(bool(lines))

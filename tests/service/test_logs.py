"""The lines of answered requests: JSON whatever a path holds, written together, and none when nobody listens."""

import asyncio
import io
import json
import logging

import pytest

from curation.service.logs import AccessLog, AccessMode, JsonLines, logger
from curation.service.settings import Settings


def written(level: str, paths: list[str], wait: float) -> list[str]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)

    async def answer() -> None:
        log = AccessLog()
        for path in paths:
            log.add("id-1", "GET", path, 200, 0.00125)
        await asyncio.sleep(wait)

    try:
        asyncio.run(answer())
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    return stream.getvalue().splitlines()


def test_lines_gather_and_are_json_whatever_the_path() -> None:
    paths = ["/v1/sessions", '/"quoted"\\', "/new\nline", "/ünï\x00"]
    assert written("INFO", paths, 0) == []
    lines = [json.loads(line) for line in written("INFO", paths, 3 * AccessLog.LATE)]
    assert [line["path"] for line in lines] == paths
    assert {key: lines[0][key] for key in ("level", "request", "method", "status", "ms")} == {
        **{"level": "info", "request": "id-1", "method": "GET", "status": 200, "ms": 1.25}
    }
    assert written("WARNING", paths, 3 * AccessLog.LATE) == []


@pytest.mark.parametrize(
    ("mode", "seen"),
    [
        ("all", ["quick", "slow", "refused"]),
        ("slow", ["slow", "refused"]),
        ("errors", ["refused"]),
        ("off", []),
    ],
)
def test_which_requests_have_a_line(mode: AccessMode, seen: list[str]) -> None:
    log = AccessLog(mode, slow_seconds=1)
    requests = {"quick": (200, 0.01), "slow": (200, 1.5), "refused": (422, 0.01)}
    assert [name for name, (status, seconds) in requests.items() if log.wants(status, seconds)] == seen


@pytest.mark.parametrize(
    ("given", "mode"), [(True, "all"), (False, "off"), ("true", "all"), ("0", "off"), ("slow", "slow")]
)
def test_the_older_setting_stays_good(given: object, mode: str) -> None:
    assert Settings(access_log=given).access_log == mode

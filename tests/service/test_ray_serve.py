"""Ray Serve with two replicas over PostgreSQL; one of them dies while a sampler trains."""

import os
import re
import socket
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
import yaml

from curation.selectors.infobatch import InfoBatch
from curation.service.auth import InsecureError
from curation.service.client import Client
from curation.service.client.sampler import RemoteBatchSampler
from curation.service.store.sqlite.ownership import StoreError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def test_a_file_is_no_store_for_replicas(tmp_path: Path) -> None:
    from curation.service.ray_serve import build

    with pytest.raises(StoreError, match="replicas cannot share a file"):
        build({"store": f"sqlite:///{tmp_path}/x.db"})


def test_the_shipped_configuration_is_one(database: Any) -> None:
    from ray.serve.schema import ServeDeploySchema

    from curation.service.ray_serve import build

    shipped = yaml.safe_load((Path(__file__).resolve().parents[2] / "configs" / "serve.yaml").read_text())
    deploy = ServeDeploySchema.model_validate(shipped)
    arguments = dict(deploy.applications[0].args)
    arguments["store"] = database.get_uri()
    with pytest.raises(InsecureError, match="curation token create"):
        build(arguments)


@pytest.mark.slow
def test_training_survives_a_replicas_death(database: Any, ray_session: None) -> None:
    # Serve kills a proxy that is not up in 5 seconds, which a busy machine may need.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    from ray import serve

    from curation.service.ray_serve import NAME, build

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build({"store": database.get_uri(), "replicas": 2, "port": port}), name=NAME, route_prefix="/")
    try:
        with Client(f"http://127.0.0.1:{port}", patience=60) as client:
            session = client.create_session("infobatch", size=400, batch_size=10, epochs=3).id
            sampler, info, killed = RemoteBatchSampler(client, session), InfoBatch(size=400, epochs=3), False
            for epoch in range(3):
                given: list[int] = []
                for batch in sampler:
                    losses = torch.sin(torch.tensor(batch) + epoch).abs()
                    assert torch.equal(sampler.update(batch, losses), info_update(info, epoch, batch, losses))
                    given += batch
                    if epoch == 1 and len(given) == 50:
                        killed = kill_one_replica()
                assert given == info.epoch(epoch).indices.tolist()
            assert killed
            total = client.session(session).total_steps
            assert total is not None
            for step in range(total):
                asked = [client.step(session, step).indices for _ in range(3)]
                assert all(np.array_equal(asked[0], again) for again in asked)
            for back in (30, 5):
                generation = client.rewind(session, back).generation
                assert [client.step(session, back, generation=generation).step for _ in range(40)] == [back] * 40
        counters_of_a_replica_never_fall(f"http://127.0.0.1:{port}/metrics")
    finally:
        serve.delete(NAME)
        serve.shutdown()


def info_update(info: InfoBatch, epoch: int, batch: list[int], losses: torch.Tensor) -> torch.Tensor:
    info.epoch(epoch)
    return info.update(torch.tensor(batch), losses)


def counters_of_a_replica_never_fall(url: str) -> None:
    """Each scrape comes to some replica, and says to which."""
    seen: dict[str, float] = {}
    for _ in range(40):
        found = re.search(r'curation_batches_total\{replica="(\w+)"\} (\S+)', httpx.get(url).text)
        assert found is not None
        assert float(found[2]) >= seen.get(found[1], 0)
        seen[found[1]] = float(found[2])
    assert len(seen) == 2


def kill_one_replica() -> bool:
    """SIGKILL one of the replicas that this test's own Ray runs."""
    for process in psutil.Process().children(recursive=True):
        if process.name().startswith("ray::ServeReplica") or "ServeReplica" in " ".join(process.cmdline()):
            process.kill()
            return True
    return False

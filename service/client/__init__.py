"""Clients of the service: blocking and asyncio, and samplers over them. They need no FastAPI."""

from typing import TYPE_CHECKING

from curation.lazy import face

if TYPE_CHECKING:
    from curation.service.client.async_client import AsyncClient as AsyncClient
    from curation.service.client.client import Client as Client
    from curation.service.client.jest_sampler import RemoteJESTBatchSampler as RemoteJESTBatchSampler
    from curation.service.client.requests import ARROW as ARROW
    from curation.service.client.requests import Report as Report
    from curation.service.client.responses import ChosenBatch as ChosenBatch
    from curation.service.client.responses import ServiceError as ServiceError
    from curation.service.client.responses import SessionInfo as SessionInfo
    from curation.service.client.responses import StepBatch as StepBatch
    from curation.service.client.responses import StepRows as StepRows
    from curation.service.client.sampler import RemoteBatchSampler as RemoteBatchSampler

__all__ = [
    "ARROW",
    "AsyncClient",
    "ChosenBatch",
    "Client",
    "RemoteBatchSampler",
    "RemoteJESTBatchSampler",
    "Report",
    "ServiceError",
    "SessionInfo",
    "StepBatch",
    "StepRows",
]

__getattr__ = face(
    __name__,
    {
        "ARROW": "requests",
        "AsyncClient": "async_client",
        "ChosenBatch": "responses",
        "Client": "client",
        "RemoteBatchSampler": "sampler",
        "RemoteJESTBatchSampler": "jest_sampler",
        "Report": "requests",
        "ServiceError": "responses",
        "SessionInfo": "responses",
        "StepBatch": "responses",
        "StepRows": "responses",
    },
)

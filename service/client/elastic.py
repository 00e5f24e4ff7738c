"""Elastic trainings: after ranks died or joined, one of them resizes the session, and all go on together."""

import os
from typing import Any, NamedTuple

from torch import distributed

from curation.service.client.client import Client
from curation.service.client.responses import SessionInfo


class Place(NamedTuple):
    """Where all ranks go on. ``total_steps``: the session's, None where its last epoch is not open yet."""

    generation: int
    step: int
    total_steps: int | None


def is_elastic(rank: int | None, elastic: bool | None) -> bool:
    """Whether the session follows the ranks there are.

    Raises:
        ValueError: it is asked for, and there is no torch.distributed to ask for ranks.
    """
    if elastic is None:
        return rank is None and _initialized() and distributed.is_torchelastic_launched()
    if elastic and (not _initialized() or rank is not None):
        raise ValueError(
            "elastic=True takes ranks from torch.distributed: call init_process_group first, and leave rank out"
        )
    return elastic


def choose_rank() -> int:
    """This rank by torch.distributed, or as torchrun says, or 0."""
    if _initialized():
        return distributed.get_rank()
    launched = distributed.is_available() and distributed.is_torchelastic_launched()
    return int(os.environ.get("RANK", "0")) if launched else 0


def rejoin(client: Client, session: str, step: int | None) -> Place:
    """Agree where to go on: rank 0 resizes the session unless nothing was trained yet. Every rank calls it.

    Args:
        client: rank 0's asks the service.
        session: the session's id.
        step: of rank 0's state; None: the first step that not all ranks reported.

    Raises:
        ServiceError: the service refuses, or cannot be reached for too long; on every rank.
    """
    told: list[Any] = [None]
    if distributed.get_rank() == 0:
        try:
            told = [_resized(client, session, step)]
        except Exception as error:  # whatever it is, the others wait to be told
            told = [error]
    distributed.broadcast_object_list(told, src=0)
    if isinstance(told[0], Exception):
        raise told[0]
    return Place(*told[0])


def _resized(client: Client, session: str, step: int | None) -> Place:
    ranks = distributed.get_world_size()
    info = client.session(session)
    if not step and info.world_size == ranks and _is_fresh(info):
        return Place(info.generation, 0, info.total_steps)
    info = client.resize(session, ranks, generation=info.generation, from_step=step)
    return Place(info.generation, info.from_step, info.total_steps)


def _is_fresh(info: SessionInfo) -> bool:
    return not info.raw.get("segments") and not any(rank["reports"] for rank in info.raw["ranks"])


def _initialized() -> bool:
    return distributed.is_available() and distributed.is_initialized()

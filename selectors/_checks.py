"""What is checked where losses and saved states come in."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from curation.selection import as_positions


def checked_positions(indices: Any, size: int) -> npt.NDArray[np.int64]:
    """int64[b] in ``0..size-1``, from a tensor on any device, an array or a list.

    Raises:
        TypeError: indices are not integers.
        ValueError: one is out of range, or they are not one-dimensional.
    """
    positions = as_positions(indices.cpu() if isinstance(indices, torch.Tensor) else indices, "indices")
    if len(positions) and not 0 <= positions.min() <= positions.max() < size:
        bad = positions[(positions < 0) | (positions >= size)][0]
        raise ValueError(f"index {bad} is out of range: there are {size} examples")
    return positions


def checked_losses(indices: Any, losses: Any, size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Positions int64[b] and one loss for each, float32[b], as numpy.

    Raises:
        TypeError: indices are not integers.
        ValueError: losses are averaged already or have another shape, or an index is out of range.
    """
    positions = checked_positions(indices, size)
    shape = tuple(losses.shape) if isinstance(losses, torch.Tensor) else np.shape(losses)
    if shape == ():
        raise ValueError(
            'losses is a single number: the loss is averaged already. Make it with reduction="none" '
            "(one loss an example), and average what update() returns."
        )
    if shape != positions.shape:
        raise ValueError(
            f"losses has shape {shape}, but indices has {positions.shape}: give one loss an example "
            "(average over tokens or pixels first)"
        )
    if isinstance(losses, torch.Tensor):
        return positions, losses.detach().float().cpu().numpy()
    return positions, np.asarray(losses, np.float32)


def restored(values: Any, dtype: type[Any]) -> npt.NDArray[Any]:
    """A copy of a tensor or array out of a state, as numpy."""
    return torch.as_tensor(values).cpu().numpy().astype(dtype, copy=True)


def check_state(state: Any, keys: set[str], identity: dict[str, Any], owner: str) -> None:
    """Raise ``ValueError`` unless ``state`` has these keys and agrees with ``identity``."""
    if not isinstance(state, dict) or set(state) != keys:
        got = set(state) if isinstance(state, dict) else set()
        raise ValueError(
            f"not a state of {owner}: missing {sorted(keys - got)}, unknown {sorted(map(str, got - keys))}"
        )
    if state["version"] != 1:
        raise ValueError(f"a state of {owner} in version {state['version']}; this release reads version 1")
    for key, value in identity.items():
        if state[key] != value:
            raise ValueError(
                f"the state has {key}={state[key]}, but this {owner} has {key}={value}: make it with the same "
                "parameters, or start anew"
            )

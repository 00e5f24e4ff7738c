"""Saved states: what is checked where one comes in."""

from typing import Any

import numpy.typing as npt
import torch


def restored(values: Any, dtype: type[Any]) -> npt.NDArray[Any]:
    """A copy of a tensor or array out of a state, as numpy."""
    return torch.as_tensor(values).cpu().numpy().astype(dtype, copy=True)


def check_state(state: Any, keys: set[str], identity: dict[str, Any], owner: str) -> None:
    """Raise ``ValueError`` unless ``state`` has these keys and agrees with ``identity``."""
    if not isinstance(state, dict) or set(state) != keys:
        present = set(state) if isinstance(state, dict) else set()
        raise ValueError(
            f"not a state of {owner}: missing {sorted(keys - present)}, unknown {sorted(map(str, present - keys))}"
        )
    if state["version"] != 1:
        raise ValueError(f"a state of {owner} in version {state['version']}; this release reads version 1")
    for key, value in identity.items():
        if state[key] != value:
            raise ValueError(
                f"the state has {key}={state[key]}, but this {owner} has {key}={value}: make it with the same "
                "parameters, or start anew"
            )

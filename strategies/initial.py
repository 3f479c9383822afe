"""The model that a training starts from."""

from typing import Any

import numpy.typing as npt

from wildflower.strategies.task import Task


def initial_model(task: Task, seed: int) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a task's fresh model; equal seeds give equal arrays.

    Args:
        task: What is learned.
        seed: Of torch's generator, in [0, 2**63).
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = task.build_model().state_dict()
    return {name: value.numpy().copy() for name, value in state.items()}

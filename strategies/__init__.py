"""How updates become one model: tasks, algorithms, rounds, secure aggregation."""

from typing import TYPE_CHECKING

from wildflower.lazy import lazily

if TYPE_CHECKING:
    from wildflower.strategies.algorithms.algorithm import Algorithm, Sum
    from wildflower.strategies.algorithms.fedavg import FedAvg
    from wildflower.strategies.arrays import GlobalModel, Layout, Update
    from wildflower.strategies.errors import StrategyError
    from wildflower.strategies.flower_strategy import SecAggPlus
    from wildflower.strategies.task import Examples, Recipe, Task, find_task

__all__ = [
    "Algorithm",
    "Examples",
    "FedAvg",
    "GlobalModel",
    "Layout",
    "Recipe",
    "SecAggPlus",
    "StrategyError",
    "Sum",
    "Task",
    "Update",
    "find_task",
]
__getattr__, __dir__ = lazily(
    __name__,
    {
        "Algorithm": "algorithms.algorithm",
        "Examples": "task",
        "FedAvg": "algorithms.fedavg",
        "GlobalModel": "arrays",
        "Layout": "arrays",
        "Recipe": "task",
        "SecAggPlus": "flower_strategy",
        "StrategyError": "errors",
        "Sum": "algorithms.algorithm",
        "Task": "task",
        "Update": "arrays",
        "find_task": "task",
    },
)

"""Which artifact a device class gets, and the stages that make it.

    linux-x86_64-vnni   export -> quantise                  int8 ONNX, 8-bit weights
    linux-x86_64-avx2   export -> quantise (reduce_range)   int8 ONNX, 7-bit weights
    linux-generic       export -> convert                   fp32 .ort

A stage's version is raised when its code would give other bytes for the same inputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from wildflower.ota.build.gates import Precision
from wildflower.ota.build.line import Stage
from wildflower.ota.errors import BuildError

EXPORT: Final = Stage("export", 1, {"strategies": "legacy-17 dynamo-20"})
CONVERT: Final = Stage("convert", 1, {"style": "fixed"})
ASSESS: Final = Stage("assess", 1, {})


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an artifact is made.

    Attributes:
        name: What reports call it.
        file_name: Name of the model's file in a slot.
        precision: What its weights are.
        stages: What follows the export, in order.
        runtime_min: Lowest version of ONNX Runtime that runs it; "" for the one that built it,
            because older versions do not read a newer `.ort`.
    """

    name: str
    file_name: str
    precision: Precision
    stages: tuple[Stage, ...]
    runtime_min: str


def _int8(*, reduce_range: bool) -> Stage:
    return Stage("quantise", 2, {"reduce_range": reduce_range, "form": "qdq u8s8 per-channel"})


RECIPES: Final[Mapping[str, Recipe]] = MappingProxyType(
    {
        "linux-x86_64-vnni": Recipe(
            "int8", "model.onnx", Precision.INT8, (_int8(reduce_range=False),), "1.20"
        ),
        "linux-x86_64-avx2": Recipe(
            "int8-reduced", "model.onnx", Precision.INT8, (_int8(reduce_range=True),), "1.20"
        ),
        "linux-generic": Recipe("fp32-ort", "model.ort", Precision.FP32, (CONVERT,), ""),
    }
)
"""By name of the device class (`ota.device.profile.CLASSES`)."""


def recipe_for(device_class: str) -> Recipe:
    """Return the recipe of a device class.

    Raises:
        BuildError: There is none.
    """
    recipe = RECIPES.get(device_class)
    if recipe is None:
        raise BuildError(
            f"no recipe builds for device class {device_class!r}",
            hint=f"Known: {', '.join(RECIPES)}.",
        )
    return recipe

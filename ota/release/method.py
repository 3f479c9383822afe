"""How a round made its model: what a round record and a statement of provenance say of it.

The words are those of `wildflower strategies`: an algorithm, a protection, a privacy mechanism. A
device's owner may name combinations of them that are accepted (`ota.device.acceptance`).

    Method.from_document(method.to_document()) == method
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from wildflower.ota.errors import FormatError

NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
JOIN: Final = "+"
"""Between the names of a combination."""
NO_MECHANISM: Final = "none"
UNITS: Final = ("device", "example")


@dataclass(frozen=True, slots=True)
class Method:
    """How updates became a model.

    Attributes:
        algorithm: What the server made of them, such as "fedavg".
        protection: How they were hidden from the server, such as "secagg"; "plain" for not at all.
        mechanism: What made the model differentially private, such as "central"; "none".
        unit: What that protects: "device" (all its data) or "example" (each of them); "" without a
            mechanism.
    """

    algorithm: str
    protection: str
    mechanism: str = NO_MECHANISM
    unit: str = ""

    @property
    def names(self) -> frozenset[str]:
        """All it is called by."""
        return frozenset((self.algorithm, self.protection, self.mechanism))

    def __str__(self) -> str:
        """Return it as combinations are written, such as "secagg+central+fedavg"."""
        mechanism = [] if self.mechanism == NO_MECHANISM else [self.mechanism]
        return JOIN.join([self.protection, *mechanism, self.algorithm])

    def to_document(self) -> dict[str, str]:
        """Return it as a part of a document."""
        return {
            "algorithm": self.algorithm,
            "protection": self.protection,
            "mechanism": self.mechanism,
            "unit": self.unit,
        }

    @classmethod
    def from_document(cls, found: Any) -> Self:
        """Parse it from a document from outside.

        Raises:
            FormatError: Not such a part, or a value is out of its range.
        """
        keys = ("algorithm", "protection", "mechanism", "unit")
        if not isinstance(found, Mapping) or set(found) != set(keys):
            raise FormatError(f"method: expected {', '.join(keys)}")
        method = cls(*(str(found[key]) for key in keys))
        for name in (method.algorithm, method.protection, method.mechanism):
            if not NAME.fullmatch(name):
                raise FormatError(f"method: {name[:80]!r} is no name")
        allowed = ("",) if method.mechanism == NO_MECHANISM else UNITS
        if method.unit not in allowed:
            raise FormatError(f"method: {method.mechanism} protects {method.unit[:80]!r}")
        return method

"""The device's processes: agent, Flower ClientApp, local training, fetcher, inference, commands."""

from typing import TYPE_CHECKING

from wildflower.lazy import lazily

if TYPE_CHECKING:
    from wildflower.client.errors import ClientError
    from wildflower.client.inference import ModelSlot

__all__ = ["ClientError", "ModelSlot"]
__getattr__, __dir__ = lazily(
    __name__,
    {
        "ClientError": "errors",
        "ModelSlot": "inference",
    },
)

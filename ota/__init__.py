"""What happens to a model after aggregation: build, release, roll out, install, observe."""

from typing import TYPE_CHECKING

from wildflower.lazy import lazily

if TYPE_CHECKING:
    from wildflower.ota.device.report import DeviceReport
    from wildflower.ota.errors import OtaError
    from wildflower.ota.observe.summary import Summary
    from wildflower.ota.release.manifest import Release
    from wildflower.ota.rollout.document import RolloutDocument

__all__ = ["DeviceReport", "OtaError", "Release", "RolloutDocument", "Summary"]
__getattr__, __dir__ = lazily(
    __name__,
    {
        "DeviceReport": "device.report",
        "OtaError": "errors",
        "Release": "release.manifest",
        "RolloutDocument": "rollout.document",
        "Summary": "observe.summary",
    },
)

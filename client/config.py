"""What an agent is told: `agent.toml`, written by `wildflower device enroll`, edited by people."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from wildflower.client.settings_file import are_texts, is_text, read, setting, write

FILE: Final = "agent.toml"


def _seconds(low: float, high: float, default: float, about: str) -> float:
    allowed = f"seconds in [{low:g}, {high:g}]"
    value: float = setting(default, allowed, lambda v: low <= v <= high, about=about)
    return value


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """An agent's settings.

    Attributes:
        name: What people call the device.
        device_id: SHA-256 of its public key, hex.
        endpoints_device: Base URL of the server's device HTTPS.
        endpoints_channel: `host:port` of the device channel.
        sources: Base URLs tried in order for releases; () means the server alone.
        app: What it trains: a task reference or a Flower app's directory; "" for inference only.
        data: Path of its examples; "" for none.
        ring: The group it belongs to in rollouts.
        device_class: The class the server assigned.
        model: Name of the model's line that it runs.
        poll_s: How often it looks for releases by itself.
        upload_s: How often it uploads summaries.
        training_idle_s: A training process ends after so much time without work.
        health_check: Executable of the owner's that looks after a release on probation; exit code
            0 says that the device does well. In its directory or absolute; "" for none.
        health_timeout_s: A check that takes longer says that it does not.
        handler_timeout_s: A step of a handler that takes longer has failed.
        health_max_error_rate: Largest share of a release's inferences on probation that may fail,
            by what the application records; 1 for no limit.
        health_max_latency_ms: Largest 99th percentile of their latency; 0 for no limit.
        cpu_flags: Claimed beyond the CPU's own flags; for devices that are emulated.
        directory: Where it lives; never written.
    """

    name: str = setting("", "text", is_text, about="What people call this device")
    device_id: str = setting("", "64 hex digits", lambda v: len(v) == 64, about="Its identity")
    endpoints_device: str = setting(
        "", "an https URL", lambda v: v.startswith("https://"), about="The server's device HTTPS"
    )
    endpoints_channel: str = setting(
        "", "host:port", lambda v: ":" in v, about="The server's device channel"
    )
    sources: tuple[str, ...] = setting(
        (), "list of URLs", are_texts, about="Where to look for releases first; then the server"
    )
    app: str = setting("", "module:object, .py file, directory or empty", is_text, about="Training")
    data: str = setting("", "a path or empty", is_text, about="This device's examples")
    ring: str = setting("default", "text", is_text, about="Its group in rollouts")
    device_class: str = setting("", "text", is_text, about="Its device class")
    model: str = setting("", "text", is_text, about="Name of the model that it runs")
    poll_s: float = _seconds(0.1, 604_800.0, 60.0, "How often it looks for releases")
    upload_s: float = _seconds(0.1, 604_800.0, 3600.0, "How often it uploads summaries")
    training_idle_s: float = _seconds(1.0, 86_400.0, 20.0, "An idle training process ends after")
    health_check: str = setting(
        "", "a path or empty", is_text, about="Executable that says whether the device does well"
    )
    health_timeout_s: float = _seconds(0.1, 3600.0, 30.0, "That check must end within")
    handler_timeout_s: float = _seconds(1.0, 86_400.0, 600.0, "A step of a handler must end within")
    health_max_error_rate: float = setting(
        1.0,
        "a number in [0, 1], 1 for no limit",
        lambda v: 0 <= v <= 1,
        about="A release on probation is rolled back if more of its inferences fail",
    )
    health_max_latency_ms: float = setting(
        0.0,
        "milliseconds in [0, 3600000], 0 for no limit",
        lambda v: 0 <= v <= 3_600_000,
        about="Or if one inference in 100 takes longer",
    )
    cpu_flags: tuple[str, ...] = setting(
        (), "list of flags", are_texts, about="Claimed CPU flags, for emulated devices"
    )
    directory: Path = Path()

    @property
    def target_group(self) -> str:
        """The devices that share this device's artifact."""
        return f"{self.model}.{self.device_class}"

    @property
    def all_sources(self) -> tuple[str, ...]:
        """Where releases come from, in the order of trying; the server itself comes last."""
        return tuple(dict.fromkeys((*self.sources, self.endpoints_device)))


def load_config(directory: Path) -> AgentConfig:
    """Read a device's settings.

    Raises:
        ConfigError: There are none, or a key or value is wrong.
    """
    # absolute, because programs of the owner's are started in directories of their own
    return replace(read(AgentConfig, directory / FILE), directory=directory.absolute())


def save_config(config: AgentConfig) -> None:
    """Write a device's settings into its directory."""
    write(config, config.directory / FILE)

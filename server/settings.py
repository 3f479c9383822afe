"""What the operator decides about a server: `server.toml`, read once at the edge.

    [server]     host, names, profile, database, device_certificate_days
    [listeners]  enrol_port, device_port, channel_port, operator_port, superlink_port
    [learning]   app, proxy_data, quorum, round_deadline_s
    [release]    model_name, blobs, probation_s
    [privacy]    helpers, key_holder, key_holder_token

Every error names the key, the value and what is allowed.

    load_settings(d) == settings after settings.write(d)
"""

import dataclasses
import difflib
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Self, cast

from wildflower.ota.release.manifest import MAX_PROBATION
from wildflower.server.errors import SettingsError

FILE: Final = "server.toml"
PROFILES: Final = ("single", "split", "demo")
HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
PEER: Final = re.compile(r"https://[^\s#/]+#[0-9a-f]{64}")
MODEL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _key(
    section: str, default: Any, allowed: str, holds: Callable[[Any], bool], about: str = ""
) -> Any:
    """Declare a key: its section, its default, and what it may be, in words and as a test."""
    told = {"section": section, "allowed": allowed, "holds": holds, "about": about}
    return field(default=default, metadata=told)


def _is_peer(value: str) -> bool:
    return bool(PEER.fullmatch(value))


def _is_host(value: str) -> bool:
    try:
        ip_address(value)
    except ValueError:
        return bool(HOST.fullmatch(value))
    return True


def _port(default: int, about: str) -> Any:
    allowed = "a port in [1, 65535], or 0 until `server init --free-ports` has chosen one"
    return _key("listeners", default, allowed, lambda value: 0 <= value <= 65535, about)


def _text(section: str, default: str, allowed: str, about: str = "") -> Any:
    return _key(section, default, allowed, lambda value: value.isprintable(), about)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one server. Paths are relative to its directory unless absolute.

    Attributes:
        directory: Where the server lives.
        host: Address that the devices' listeners bind to; operators' are always on loopback.
        names: Host names and addresses that devices know the server by; the first is told to
            them. They stand in the TLS certificate.
        profile: Who holds which keys: "single", "split" or "demo".
        database: URL of the database; "" is a SQLite file in the directory.
        device_certificate_days: How long a device's certificate holds, in days.
        enrol_port: Enrolment, TLS.
        device_port: Device HTTPS.
        channel_port: Device gRPC, mutual TLS.
        operator_port: REST of the operators, loopback.
        superlink_port: Flower's SuperLink, loopback.
        app: What is learned: `module:object`, a `.py` file or a Flower app's directory.
        proxy_data: The operator's own examples (`.npz`) for calibration, gates, golden inputs.
        quorum: Devices that a round needs at least.
        round_deadline_s: After this many seconds a round ends with those who answered.
        model_name: Name of the model's line; part of its target groups' names.
        blobs: Directory of the content-addressed files.
        probation_s: For how long a release runs on a device, healthy, before it is committed; 0
            for not at all.
        helpers: Helpers of one-shot rounds, each `https://host:port#digest of its key`.
        key_holder: Key holder of homomorphic rounds, in the same form; "" for none.
        key_holder_token: File that holds what the key holder knows this server by.
    """

    directory: Path = Path()
    host: str = _key("server", "127.0.0.1", "an IP address or a host name", _is_host)
    names: tuple[str, ...] = _key(
        "server", (), "a list of IP addresses and host names", lambda v: all(map(_is_host, v))
    )
    profile: str = _key("server", "single", f"one of {', '.join(PROFILES)}", PROFILES.__contains__)
    database: str = _text("server", "", 'a database URL, or "" for SQLite in the directory')
    device_certificate_days: int = _key(
        "server", 365, "days in [1, 3650]", lambda value: 1 <= value <= 3650
    )
    enrol_port: int = _port(8442, "enrolment, TLS")
    device_port: int = _port(8443, "device HTTPS")
    channel_port: int = _port(8444, "device gRPC, mutual TLS")
    operator_port: int = _port(8440, "operators, loopback only")
    superlink_port: int = _port(9092, "Flower SuperLink, loopback only")
    app: str = _text("learning", "", "a task: `module:object`, a .py file or an app's directory")
    proxy_data: str = _text("learning", "", "a path of an .npz file")
    quorum: int = _key("learning", 3, "devices in [1, 1000000]", lambda value: 1 <= value <= 10**6)
    round_deadline_s: float = _key(
        "learning", 600.0, "seconds in [1, 604800]", lambda value: 1 <= value <= 604_800
    )
    model_name: str = _key(
        "release",
        "model",
        "up to 64 letters, digits, dots, dashes and underscores",
        lambda value: bool(MODEL_NAME.fullmatch(value)),
    )
    blobs: str = _key(
        "release", "blobs", "a directory", lambda value: value != "" and value.isprintable()
    )
    probation_s: int = _key(
        "release", 0, "seconds in [0, 2592000]", lambda value: 0 <= value <= MAX_PROBATION
    )

    helpers: tuple[str, ...] = _key(
        "privacy",
        (),
        "a list of at most 8 https://host:port#digest",
        lambda value: len(value) <= 8 and all(map(_is_peer, value)),
    )
    key_holder: str = _key(
        "privacy", "", 'https://host:port#digest, or ""', lambda value: not value or _is_peer(value)
    )
    key_holder_token: str = _text("privacy", "key_holder.token", "a path of a file")

    def __post_init__(self) -> None:
        """Check every value, and that the listeners do not collide.

        Raises:
            SettingsError: A value is outside its range.
        """
        for key in _keys():
            _check(key, getattr(self, key.name))
        taken: dict[int, str] = {}
        for name, port in self.ports.items():
            if port and port in taken:
                raise SettingsError(
                    f"{name} = {port}: {taken[port]} has the same port",
                    hint="Give every listener a port of its own.",
                )
            taken[port] = name
        if not self.names and _is_unspecified(self.host):
            raise SettingsError(
                f"host = {self.host!r} binds every address, and names = [] tells devices none",
                hint='Name what devices reach the server by, such as names = ["fl.example.org"].',
            )

    @property
    def ports(self) -> Mapping[str, int]:
        """The ports by their keys."""
        return {k.name: getattr(self, k.name) for k in _keys() if k.name.endswith("_port")}

    @property
    def public_host(self) -> str:
        """What devices know the server by, as it stands in URLs."""
        name = self.names[0] if self.names else self.host
        return f"[{name}]" if ":" in name else name

    @property
    def enrol_url(self) -> str:
        """Where devices enrol."""
        return f"https://{self.public_host}:{self.enrol_port}"

    @property
    def device_url(self) -> str:
        """Where devices fetch releases and reach Flower."""
        return f"https://{self.public_host}:{self.device_port}"

    @property
    def channel_address(self) -> str:
        """Where devices hold their channel open, `host:port`."""
        return f"{self.public_host}:{self.channel_port}"

    @property
    def operator_url(self) -> str:
        """Where operators' commands go."""
        return f"http://127.0.0.1:{self.operator_port}"

    @property
    def superlink_address(self) -> str:
        """Where the SuperLink listens, `host:port`."""
        return f"127.0.0.1:{self.superlink_port}"

    @property
    def database_url(self) -> str:
        """The database's URL, the default spelt out."""
        return self.database or f"sqlite:///{self.directory.absolute() / 'wildflower.db'}"

    @property
    def blobs_path(self) -> Path:
        """Directory of the content-addressed files."""
        return self.directory / self.blobs

    @property
    def proxy_data_path(self) -> Path | None:
        """The operator's examples, or None where there are none."""
        return self.directory / self.proxy_data if self.proxy_data else None

    def require_ports(self) -> None:
        """Check that every listener has a port, as `server up` needs.

        Raises:
            SettingsError: One is still 0.
        """
        for name, port in self.ports.items():
            if port == 0:
                raise SettingsError(
                    f"{name} = 0: a server that devices find again needs a fixed port",
                    hint="Set a port in [1, 65535], or let `server init --free-ports` choose.",
                )

    def to_toml(self) -> str:
        """Return the text of `server.toml`."""
        lines = ["# A Wildflower server. Changes take effect at the next `wildflower server up`."]
        section = ""
        for key in _keys():
            if key.metadata["section"] != section:
                section = key.metadata["section"]
                lines += ["", f"[{section}]"]
            about = key.metadata["about"]
            comment = f"  # {about}" if about else ""
            lines.append(f"{key.name} = {_to_toml(getattr(self, key.name))}{comment}")
        return "\n".join(lines) + "\n"

    def write(self, directory: Path) -> None:
        """Write `server.toml` into a directory."""
        (directory / FILE).write_text(self.to_toml(), encoding="utf-8")

    @classmethod
    def choose(cls, directory: Path, values: Mapping[str, object]) -> Self:
        """Return the settings with some keys set by their names.

        Raises:
            SettingsError: An unknown key, or a value outside its range.
        """
        known = {key.name: key for key in _keys()}
        for name in values:
            if name not in known:
                raise _unknown(name)
        chosen: dict[str, Any] = {n: _from_toml(known[n], value) for n, value in values.items()}
        return cls(directory=directory, **chosen)

    @classmethod
    def from_toml(cls, text: str, directory: Path) -> Self:
        """Parse the text of a `server.toml`.

        Raises:
            SettingsError: Not TOML, an unknown key, or a value outside its range.
        """
        try:
            document = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise SettingsError(f"{FILE} is not TOML: {error}") from error
        known = {(key.metadata["section"], key.name) for key in _keys()}
        values: dict[str, object] = {}
        for section, table in document.items():
            if not isinstance(table, dict):
                raise _unknown(section)
            for name, value in table.items():
                if (section, name) not in known:
                    raise _unknown(f"{section}.{name}")
                values[name] = value
        return cls.choose(directory, values)


def load_settings(directory: Path) -> Settings:
    """Read a server's settings.

    Raises:
        SettingsError: There is no server in the directory, or its file has an error.
    """
    try:
        text = (directory / FILE).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SettingsError(
            f"there is no server in {directory}: {FILE} is missing",
            hint=f"Set one up: wildflower server init --dir {directory}",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{directory / FILE} cannot be read: {error}") from error
    return Settings.from_toml(text, directory)


def _keys() -> tuple["dataclasses.Field[Any]", ...]:
    return tuple(key for key in fields(Settings) if key.name != "directory")


def _check(key: "dataclasses.Field[Any]", value: object) -> None:
    default = key.default
    fits = type(value) is type(default) or (type(default) is float and type(value) is int)
    if isinstance(value, tuple):
        fits = fits and all(isinstance(one, str) for one in value)
    if not fits or not key.metadata["holds"](value):
        raise SettingsError(f"{key.name} = {value!r}: allowed is {key.metadata['allowed']}")


def _from_toml(key: "dataclasses.Field[Any]", value: object) -> object:
    """Return the value in the type its field has, where nothing is lost by it."""
    found = tuple(value) if isinstance(value, list) else value
    _check(key, found)
    return float(cast("float", found)) if type(key.default) is float else found


def _to_toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_to_toml, value))}]"
    if isinstance(value, str):  # a basic string of TOML is a string of JSON, but for DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _unknown(found: str) -> SettingsError:
    """Return the error that names a key nobody knows and the one that may have been meant."""
    whole = {key.name: f"{key.metadata['section']}.{key.name}" for key in _keys()}
    name = found.rpartition(".")[2]
    near = [
        *difflib.get_close_matches(name, whole, n=1, cutoff=0.75),
        *difflib.get_close_matches(found, whole.values(), n=1),
    ]
    if near:
        hint = f"Did you mean {whole.get(near[0], near[0])}?"
    else:
        hint = f"Allowed: {', '.join(whole.values())}"
    return SettingsError(f"{FILE} has no key {found}", hint=hint)


def _is_unspecified(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False

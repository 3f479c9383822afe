"""What came of asking one source after the other: who was refused, and why none had it."""

from dataclasses import dataclass, field

from wildflower.ota.errors import FetchError, RefusedError, ReleaseError, SlowError


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a source served and what was wrong with it.

    Attributes:
        source: Base URL of the source.
        target: What was asked for: a target path or the name of a file.
        reason: A sentence with what was found and what was expected.
    """

    source: str
    target: str
    reason: str

    @property
    def sentence(self) -> str:
        """Who served what and what was wrong with it, each said once.

        Example:
            >>> Refusal("http://one", "model.onnx", "model.onnx: wrong digest").sentence
            'http://one served model.onnx: wrong digest'
        """
        reason = self.reason.removeprefix(f"{self.source} served ")
        return f"{self.source} served {self.target}: {reason.removeprefix(self.target + ': ')}"


@dataclass(slots=True)
class Asking:
    """One thing that sources are asked for in turn.

    Attributes:
        target: A target path or the name of a file.
        refusals: What sources were refused for; appended to.
    """

    target: str
    refusals: list[Refusal]
    _failures: list[str] = field(default_factory=list)
    _kind: type[ReleaseError] = FetchError

    def failed(self, source: str, error: RefusedError | FetchError, told: str) -> None:
        """Note why a source did not have it; who lied or dripped is remembered for the report.

        Args:
            source: Its base URL.
            error: What it came to.
            told: What the error of all sources says of it.
        """
        self._failures.append(told)
        if isinstance(error, RefusedError | SlowError):
            self.refusals.append(Refusal(source, self.target, str(error)))
            if self._kind is not RefusedError:
                self._kind = RefusedError if isinstance(error, RefusedError) else SlowError

    def error(self) -> ReleaseError:
        """Return the error of all: a lie outweighs a drip, and a drip what just did not answer."""
        return self._kind(f"{self.target}: no source had it: " + "; ".join(self._failures))

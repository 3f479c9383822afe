"""What operators may ask for, checked at the edge; unknown keys are refused by name."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Ring = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]
Name = Annotated[str, Field(min_length=1, max_length=100)]
Permille = Annotated[int, Field(ge=1, le=1000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InviteRequest(_Strict):
    """A join token, please."""

    ring: Ring = "default"
    uses: int = Field(default=1, ge=1, le=100_000)
    expires_s: float = Field(default=86_400.0, gt=0, le=31_536_000)


class TrainingRequest(_Strict):
    """A training, please; `settings` as in `server.training_settings`."""

    rounds: int = Field(ge=1)
    settings: dict[str, float | str] = Field(default_factory=dict, max_length=32)


class BuildRequest(_Strict):
    """The model in the path into the release line, please."""


class ReleaseRequest(_Strict):
    """A release that offline keys signed: manifest, the role's signed metadata, statement."""

    manifest: str = Field(max_length=1_000_000)
    metadata: str = Field(max_length=5_000_000)
    statement: str = Field(default="", max_length=200_000)


class RolloutRequest(_Strict):
    """A rollout, please; see `ota.rollout.policy.Stage`."""

    releases: list[Name] = Field(min_length=1, max_length=1000)
    stages: list[Permille] = Field(min_length=1, max_length=100)
    min_reports: int = Field(default=1, ge=0)
    max_failures: int = Field(default=0, ge=0)
    soak_s: int = Field(default=0, ge=0, le=31_536_000)
    window_s: int = Field(default=0, ge=0, le=31_536_000)


class AbortRequest(_Strict):
    """The end of a rollout, please."""

    reason: str = Field(default="an operator ended it", min_length=1, max_length=2000)
    roll_back: bool = True

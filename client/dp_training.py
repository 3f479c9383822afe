"""DP-SGD on the device: per-example clipping and noise inside local training, by Opacus.

What leaves is differentially private per example, whatever the server does with it. A step takes
each example by an independent coin of `rate`, clips its gradient to `norm`, adds Gaussian noise of
`noise * norm` to the sum and divides by the expected batch. Ghost clipping (the default) never
holds one gradient per example; "hooks" does, and is there for layers that ghost clipping lacks.

What is secret is drawn from entropy that no server knows: both the coins and the noise. PyTorch
seeds its generator with 32 bits only, so here its whole state (19,968 bits) is filled instead.
Two limits are left. The Mersenne Twister is no cryptographic generator, and floating-point
Gaussian noise has the gaps of Mironov (CCS 2012); Opacus' `secure_mode` needs a package that is
not maintained. The number of a device's examples counts as public: it sets rate and steps.

BatchNorm mixes examples: it is replaced by GroupNorm (`strategies.dp.private_task`), and that is
said aloud, in the log and in the answer.

Source: Abadi et al., "Deep Learning with Differential Privacy" (CCS 2016); Li et al., "Large
Language Models Can Be Strong Differentially Private Learners" (ICLR 2022) for ghost clipping.
"""

import hashlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from wildflower.client.errors import TrainingError
from wildflower.strategies.arrays import Parameters
from wildflower.strategies.dp.events import Gaussian
from wildflower.strategies.dp.private_task import PrivateTask, quiet_opacus
from wildflower.strategies.dp.sgd import FEWEST, MODE, NOISE, NORM
from wildflower.strategies.task import Examples

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

MODES: Final = ("ghost", "hooks")
REPLACED: Final = "dp-sgd-replaced"
"""Name of the answer's metric that counts the layers that were replaced."""
SPENT: Final = "dp-sgd-epsilon"
"""Name of the answer's metric that tells the epsilon per example this device has ever spent."""

STATE_WORDS: Final = 624  # <at::mt19937>: words of the generator's state
STATE_AT: Final = 24  # bytes before them in `torch.Generator.get_state`; 8 bytes each


@dataclass(frozen=True, slots=True)
class PrivatePlan:
    """How private one round's training is.

    Attributes:
        noise: Noise multiplier, standard deviation of the noise over `norm`, in [0.1, 1000].
        norm: Largest L2 norm of one example's gradient, in [1e-6, 1e6].
        mode: "ghost" or "hooks".
        fewest: Fewest examples; a device with fewer refuses, because they would cost more.
    """

    noise: float
    norm: float = 1.0
    mode: str = "ghost"
    fewest: int = 1

    @classmethod
    def of(cls, config: Mapping[str, object]) -> "PrivatePlan | None":
        """Return what a round's config asks for, None if it asks for no DP-SGD.

        Raises:
            TrainingError: A value is no number, or out of range.
        """
        if not any(key in config for key in (NOISE, NORM, MODE, FEWEST)):
            return None
        mode = config.get(MODE, "ghost")
        if mode not in MODES:
            raise TrainingError(f"{MODE} is {mode!r}, allowed are {', '.join(MODES)}")
        return cls(
            _number(config.get(NOISE), NOISE, 0.1, 1000.0),
            _number(config.get(NORM, 1.0), NORM, 1e-6, 1e6),
            str(mode),
            int(_number(config.get(FEWEST, 1), FEWEST, 1, 1e9)),
        )


def train_privately(
    task: PrivateTask,
    parameters: Parameters,
    examples: Examples,
    event: Gaussian,
    *,
    private: PrivatePlan,
    learning_rate: float,
    momentum: float,
    entropy: bytes,
) -> dict[str, npt.NDArray[Any]]:
    """Train a model by DP-SGD.

    Args:
        task: The task without BatchNorm.
        parameters: The model received; its names stay as they are, without Opacus' prefix.
        examples: What to train on.
        event: How many steps and the rate of each, as an accountant was told.
        private: Noise, norm and mode.
        learning_rate: Of SGD.
        momentum: Of SGD.
        entropy: 32 secret bytes, fresh for every call.

    Returns:
        The trained arrays. No loss: a sum over the examples is not private.

    Raises:
        TrainingError: The arrays are not the private model's, or Opacus cannot train it.
    """
    import torch

    coins, noise = (_secret_generator(entropy + each) for each in (b"coins", b"noise"))
    with quiet_opacus(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(hashlib.sha256(entropy + b"model").digest()[:8]) >> 1)
        model = _loaded(task, parameters)
        optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=momentum)
        inputs, targets = torch.from_numpy(examples.inputs), torch.from_numpy(examples.targets)
        wrapped, stepper, criterion = _make_private(
            model, optimizer, PerExample(task), len(examples), event, private, noise
        )
        for _ in range(event.rounds):
            drawn = torch.nonzero(torch.rand(len(examples), generator=coins) < event.sampling.rate)[
                :, 0
            ]
            # A step that no coin chose still adds its noise: else its absence would show.
            index, share = (drawn, 1.0) if len(drawn) else (torch.zeros(1, dtype=torch.int64), 0.0)
            stepper.zero_grad()
            (criterion(wrapped(inputs[index]), targets[index]) * share).backward()
            stepper.step()
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


class PerExample:
    """The task's loss of each example, in the shape that Opacus wants a criterion to have.

    Attributes:
        reduction: "mean", or "none" while Opacus asks for one loss per example.
    """

    def __init__(self, task: PrivateTask) -> None:
        self.reduction = "mean"
        self._task = task

    def __call__(self, outputs: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        """Return the mean loss, or one loss per example, shape (batch,)."""
        import torch

        if self.reduction == "mean":
            return self._task.loss(outputs, targets)

        def one(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return self._task.loss(output[None], target[None])

        losses: torch.Tensor = torch.func.vmap(one)(outputs, targets)
        return losses


def _make_private(
    model: "torch.nn.Module",
    optimizer: "torch.optim.Optimizer",
    criterion: PerExample,
    examples: int,
    event: Gaussian,
    private: PrivatePlan,
    noise: "torch.Generator",
) -> Any:
    """Return the model, optimizer and criterion that Opacus made private.

    Opacus' loader is not used: it draws its batches from a generator that cannot be given one's
    own state. The one it is shown has the length and the expected batch of ours.
    """
    import torch
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    batch_size = math.ceil(examples / event.sampling.population)
    shown = DataLoader(TensorDataset(torch.zeros(examples)), batch_size=batch_size)
    try:
        made = PrivacyEngine(accountant="rdp").make_private(
            module=model,
            optimizer=optimizer,
            criterion=criterion,
            data_loader=shown,
            noise_multiplier=private.noise,
            max_grad_norm=private.norm,
            poisson_sampling=False,
            noise_generator=noise,
            grad_sample_mode=private.mode,
        )
    except Exception as error:  # Opacus and its validators raise a dozen kinds
        raise TrainingError(
            f"DP-SGD cannot train this model: {error}",
            hint="Use layers that Opacus knows, or dp-sgd-mode = hooks.",
        ) from error
    return (*made[:2], made[2] if private.mode == "ghost" else criterion)


def _loaded(task: PrivateTask, parameters: Parameters) -> "torch.nn.Module":
    import torch

    model = task.build_model().train()
    state = {name: torch.from_numpy(np.array(array)) for name, array in parameters.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise TrainingError(
            f"the model received is not the private one of the task {task.name!r}: {error}",
            hint="DP-SGD trains no BatchNorm: end the task's file with task = PrivateTask(task).",
        ) from error
    replaced = task.replaced()
    if replaced:
        log.warning("layers replaced, BatchNorm by GroupNorm", extra={"layers": replaced})
    return model


def _secret_generator(entropy: bytes) -> "torch.Generator":
    """Return a generator whose whole state is made of entropy, not of a 32-bit seed."""
    import torch

    generator = torch.Generator()
    state = generator.get_state().numpy().copy()
    words = np.frombuffer(hashlib.shake_256(entropy).digest(4 * STATE_WORDS), "<u4")
    end = STATE_AT + 8 * STATE_WORDS
    state[STATE_AT:end] = np.frombuffer(words.astype("<u8").tobytes(), np.uint8)
    generator.set_state(torch.from_numpy(state))
    return generator


def _number(value: object, key: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise TrainingError(f"{key} is {value!r}, allowed are {low:g} to {high:g}")
    return float(value)

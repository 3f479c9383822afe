"""Every option there is, with what it needs, offers, reveals and cannot bear.

An option that is added here is in every verdict at once; the golden file shows what changed. What
goes together is not said here: `wildflower.strategies.combine` computes it.

Robust rules (Krum, median) and trees are here so that they can be refused where nobody could look
at an update, whether the algorithm is ours or one of Flower's.
"""

from typing import Final

from wildflower.strategies.option import Exposure, Fact, Kind, Level, Limit, Need, Option

_SINGLE: Final = Need(
    Fact.SINGLE_UPDATES,
    Kind.PROTECTION,
    "it looks at single updates, and this protection shows the server none",
    "grouped with fedmedian or trimmed-mean, which compare the means of groups, or plain where the"
    " server may see every update",
)
_SEVERAL: Final = Need(
    Fact.SEVERAL_VECTORS,
    Kind.PROTECTION,
    "it compares several vectors, and this protection shows the server one sum",
    "grouped, whose group means can be compared",
)
_MEAN_FOR_NOISE: Final = Need(
    Fact.MEAN,
    Kind.ALGORITHM,
    "its noise is sized for a mean; this rule can move further for one device's update",
    "an averaging algorithm such as fedavg, or local, whose noise is in each update",
)
_SUM_FOR_NOISE: Final = Need(
    Fact.TRUE_SUM,
    Kind.PROTECTION,
    "its noise is sized for a sum; a median of group means can move further for one device",
    "secagg",
)
_VECTORS: Final = Need(
    Fact.VECTORS,
    Kind.ALGORITHM,
    "it bounds and blurs a vector, and trees are none",
    "an algorithm that averages vectors, such as fedavg",
)
_EQUAL: Final = Need(
    Fact.EQUAL,
    Kind.WEIGHTING,
    "one device may count more than another, so its share of the mean has no bound",
    "equal",
)
_SAMPLED: Final = (
    Need(
        Fact.BY_CHANCE,
        Kind.SELECTION,
        "everybody is in every round: nothing is gained by sampling, and noise costs more epsilon",
        "poisson",
        Level.WARNING,
    ),
    Need(
        Fact.INDEPENDENT,
        Kind.SELECTION,
        "a cohort of fixed size is accounted by devices replaced, which move a sum twice as far",
        "poisson",
        Level.WARNING,
    ),
)
_NO_LOSSES: Final = Limit(
    Exposure.EACH_LOSS,
    "a loss that leaves the device without noise is outside its guarantee",
    "an algorithm that asks for no loss, such as fedavg",
)
_NOISED_SUM: Final = (_MEAN_FOR_NOISE, _SUM_FOR_NOISE, _VECTORS, _EQUAL)
_NOISING_SERVER: Final = "the server to add the noise, and to show no sum without it"
_NOISED_LATER: Final = (
    _NO_LOSSES,
    Limit(
        Exposure.EACH_UPDATE,
        "the server sees every update before it adds the noise; only others are protected",
        "secagg with distributed, or local",
        Level.WARNING,
    ),
)

_AVERAGING: Final = frozenset({Fact.MEAN, Fact.VECTORS, Fact.WEIGHTED})
_ROBUST: Final = frozenset({Fact.VECTORS})

ALGORITHMS: Final = (
    Option(
        "fedavg", Kind.ALGORITHM, "The weighted mean of the updates.",
        offers=_AVERAGING | {Fact.FIXED_GAIN},
    ),
    Option(
        "fedprox", Kind.ALGORITHM, "The mean of updates that are held near the global model.",
        offers=_AVERAGING | {Fact.FIXED_GAIN},
    ),
    Option(
        "fedavgm", Kind.ALGORITHM, "The mean with momentum on the server.",
        offers=_AVERAGING | {Fact.FIXED_GAIN},
    ),
    Option("fedadam", Kind.ALGORITHM, "Adam on the server, over the mean.", offers=_AVERAGING),
    Option("fedyogi", Kind.ALGORITHM, "Yogi on the server, over the mean.", offers=_AVERAGING),
    Option(
        "fedadagrad", Kind.ALGORITHM, "Adagrad on the server, over the mean.", offers=_AVERAGING
    ),
    Option(
        "fedmedian", Kind.ALGORITHM, "The median of each parameter.",
        offers=_ROBUST, needs=(_SEVERAL,),
    ),
    Option(
        "trimmed-mean", Kind.ALGORITHM, "The mean of each parameter without its extremes.",
        offers=_ROBUST, needs=(_SEVERAL,),
    ),
    Option(
        "krum", Kind.ALGORITHM, "The one update that is nearest to the others.",
        offers=_ROBUST, needs=(_SINGLE,),
    ),
    Option(
        "multikrum", Kind.ALGORITHM, "The mean of the updates that are nearest to the others.",
        offers=_ROBUST | {Fact.WEIGHTED}, needs=(_SINGLE,),
    ),
    Option(
        "bulyan", Kind.ALGORITHM, "A trimmed mean over what Krum selects.",
        offers=_ROBUST, needs=(_SINGLE,),
    ),
    Option(
        "q-fedavg", Kind.ALGORITHM, "Updates weighed by their own losses, for fairness.",
        offers=frozenset({Fact.VECTORS}), needs=(_SINGLE,),
        reveals=frozenset({Exposure.EACH_LOSS}),
    ),
    Option(
        "fedxgb-bagging", Kind.ALGORITHM, "The trees of all devices, side by side.",
        needs=(_SINGLE,),
    ),
    Option(
        "fedxgb-cyclic", Kind.ALGORITHM, "Trees that go from device to device.", needs=(_SINGLE,)
    ),
)  # fmt: skip

_ONE_SUM: Final = frozenset({Exposure.COHORT_SUM})

PROTECTIONS: Final = (
    Option(
        "plain", Kind.PROTECTION, "Updates travel as they are, inside TLS.",
        offers=frozenset({Fact.SINGLE_UPDATES, Fact.SEVERAL_VECTORS, Fact.TRUE_SUM}),
        reveals=frozenset({Exposure.EACH_UPDATE, Exposure.COHORT_SUM}),
        trusts="the server, with every update",
    ),
    Option(
        "secagg", Kind.PROTECTION, "Masks that cancel in the sum; four trips.",
        offers=frozenset({Fact.RESIDUES, Fact.TRUE_SUM}), reveals=_ONE_SUM,
        trusts="that no more than the planned fraction of the devices collude with the server",
    ),
    Option(
        "one-shot", Kind.PROTECTION, "Masks that helpers take off the sum; one trip.",
        offers=frozenset({Fact.RESIDUES, Fact.TRUE_SUM}), reveals=_ONE_SUM,
        trusts="at least one helper not to collude with the server",
    ),
    Option(
        "grouped", Kind.PROTECTION, "Secure sums of groups, and a robust rule over their means.",
        offers=frozenset({Fact.SEVERAL_VECTORS, Fact.RESIDUES}),
        reveals=frozenset({Exposure.GROUP_SUMS, Exposure.COHORT_SUM}),
        trusts="that no more than the planned fraction of a group collude with the server",
    ),
    Option(
        "he", Kind.PROTECTION, "Sums of ciphertexts that only a key holder can open.",
        offers=frozenset({Fact.TRUE_SUM}), reveals=_ONE_SUM,
        trusts="the key holder not to collude with the server",
    ),
)  # fmt: skip

PRIVACY: Final = (
    Option(
        "none", Kind.PRIVACY, "No noise.", reveals=frozenset({Exposure.TRACES})
    ),
    Option(
        "central", Kind.PRIVACY, "Clipped on the device, noise added to the sum by the server.",
        needs=(*_NOISED_SUM, *_SAMPLED),
        limits=_NOISED_LATER,
        trusts=_NOISING_SERVER,
    ),
    Option(
        "central-adaptive", Kind.PRIVACY, "As central; the clipping norm follows a quantile.",
        needs=(*_NOISED_SUM, *_SAMPLED),
        limits=_NOISED_LATER,
        trusts=_NOISING_SERVER,
    ),
    Option(
        "distributed", Kind.PRIVACY, "Each device adds a part of the noise, inside the masks.",
        needs=(
            Need(
                Fact.RESIDUES, Kind.PROTECTION,
                "its noise is made of integers that add up modulo a power of two",
                "secagg or one-shot",
            ),
            _MEAN_FOR_NOISE, _VECTORS, _EQUAL,
        ),
        limits=(
            Limit(
                Exposure.EACH_UPDATE,
                "one update carries only a part of the noise; seen alone it is not private",
                "secagg or one-shot, or local, whose noise is whole",
            ),
            Limit(
                Exposure.GROUP_SUMS,
                "its noise is accounted for the whole cohort; a group's sum would need all of it",
                "secagg or one-shot",
            ),
            _NO_LOSSES,
        ),
        trusts="that the smallest cohort is honest enough to add its noise",
    ),
    Option(
        "local", Kind.PRIVACY, "Each device adds all of the noise itself.",
        needs=(
            _VECTORS, _EQUAL,
            Need(
                Fact.MEAN, Kind.ALGORITHM,
                "the noise in each update is larger than what this rule compares",
                "an averaging algorithm such as fedavg", Level.WARNING,
            ),
        ),
        limits=(_NO_LOSSES,),
    ),
    Option(
        "dpsgd", Kind.PRIVACY, "Each device trains so that no example of its own stands out.",
        needs=(_VECTORS,),
        limits=(
            _NO_LOSSES,
            Limit(
                Exposure.COUNTS,
                "a number of examples tells exactly whether one more was there",
                "equal", Level.WARNING,
            ),
        ),
        trusts="the device's own software",
    ),
    Option(
        "ftrl", Kind.PRIVACY, "Noise on a tree over the rounds, without sampling.",
        needs=(
            *_NOISED_SUM,
            Need(
                Fact.FIXED_GAIN, Kind.ALGORITHM,
                "the noise of its rounds cancels in their sum, and an adaptive step undoes that",
                "fedavg or fedavgm", Level.WARNING,
            ),
            Need(
                Fact.BY_CHANCE, Kind.SELECTION,
                "a device may be in one round of a tree, and everybody is in every round",
                "fixed, with cohorts that are small beside the population",
            ),
        ),
        limits=_NOISED_LATER,
        trusts=_NOISING_SERVER,
    ),
)  # fmt: skip

SELECTIONS: Final = (
    Option(
        "fixed", Kind.SELECTION, "So many devices a round, drawn without replacement.",
        offers=frozenset({Fact.BY_CHANCE}),
    ),
    Option(
        "poisson", Kind.SELECTION, "Each device by a coin of its own.",
        offers=frozenset({Fact.BY_CHANCE, Fact.INDEPENDENT}),
    ),
    Option(
        "all", Kind.SELECTION, "Every device that is there: a coin that never fails.",
        offers=frozenset({Fact.INDEPENDENT}),
    ),
)  # fmt: skip

WEIGHTINGS: Final = (
    Option(
        "by-examples", Kind.WEIGHTING, "A device counts by its number of examples.",
        needs=(
            Need(
                Fact.WEIGHTED, Kind.ALGORITHM,
                "this rule does not look at weights", "equal", Level.WARNING,
            ),
        ),
        reveals=frozenset({Exposure.COUNTS}),
    ),
    Option(
        "equal", Kind.WEIGHTING, "Every device counts the same.", offers=frozenset({Fact.EQUAL})
    ),
)  # fmt: skip

OPTIONS: Final = {
    option.name: option
    for option in (*ALGORITHMS, *PROTECTIONS, *PRIVACY, *SELECTIONS, *WEIGHTINGS)
}
"""Every option by its name, kind by kind."""

"""Attacks to test a deployment with: a curious server's, and those of Byzantine clients.

They are for users' own tests: what is claimed to withstand them is worth what these cannot do to
it. Nothing in the product imports them.
"""

from typing import TYPE_CHECKING

from wildflower.lazy import lazily

if TYPE_CHECKING:
    from wildflower.strategies.attacks.byzantine import (
        inner_product,
        label_flip,
        little_is_enough,
        noise,
        poison,
        scale,
        sign_flip,
        zero,
    )
    from wildflower.strategies.attacks.curious import (
        Transcript,
        difference,
        reused_masks,
        search_keys,
        traces,
        unmask,
    )
    from wildflower.strategies.attacks.flower_masks import flower_mask, search_seeds
    from wildflower.strategies.attacks.mods import ByzantineMod, listening, tampered

__all__ = [
    "ByzantineMod",
    "Transcript",
    "difference",
    "flower_mask",
    "inner_product",
    "label_flip",
    "listening",
    "little_is_enough",
    "noise",
    "poison",
    "reused_masks",
    "scale",
    "search_keys",
    "search_seeds",
    "sign_flip",
    "tampered",
    "traces",
    "unmask",
    "zero",
]
__getattr__, __dir__ = lazily(
    __name__,
    {
        "ByzantineMod": "mods",
        "Transcript": "curious",
        "difference": "curious",
        "flower_mask": "flower_masks",
        "inner_product": "byzantine",
        "label_flip": "byzantine",
        "listening": "mods",
        "little_is_enough": "byzantine",
        "noise": "byzantine",
        "poison": "byzantine",
        "reused_masks": "curious",
        "scale": "byzantine",
        "search_keys": "curious",
        "search_seeds": "flower_masks",
        "sign_flip": "byzantine",
        "tampered": "mods",
        "traces": "curious",
        "unmask": "curious",
        "zero": "byzantine",
    },
)

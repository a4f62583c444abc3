"""Settings of privacy: noise for parties, noise for samples.

What they may be combined with is said by each key's own declaration, and checked in
`privacy_rules`.
"""

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from fedray.config.declaration import SAFE, setting
from fedray.config.specs import Settings

ADAPTIVE_CLIP = "adaptive"
LEAST_OF_PARTIES = 1e-3  # noise_multiplier of `distributed`; of less nothing is proven
MIN_CLIP, MAX_CLIP = 1e-30, 1e30  # what float64 can scale any difference to
NOISED = {"mechanism": ("central", "distributed")}  # by which parties are protected
HOW = {  # how a config asks for a mechanism
    "central": "privacy.mechanism: central",
    "distributed": "privacy.mechanism: distributed",
    "dp_sgd": "dp_sgd",
    "secure_aggregation": "secure_aggregation: true",
}
CENTRAL = {"mechanism": ("central",)}


def describe_mechanisms(mechanisms: Collection[str]) -> str:
    """Mechanisms as a config asks for them."""
    return " and ".join(HOW[mechanism] for mechanism in mechanisms)


def _check_clip(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value in (None, ADAPTIVE_CLIP) or (is_number and MIN_CLIP <= value <= MAX_CLIP):
        return value
    numbers = f"a number from {MIN_CLIP:g} to {MAX_CLIP:g}"
    raise PydanticCustomError("clip_norm", f"{numbers}, or adaptive")


class PrivacySpec(Settings):
    """Differential privacy for parties: whether one takes part at all stays open."""

    mechanism: Annotated[
        Literal["none", "central", "distributed"],
        setting(
            "who adds noise: the aggregator to the sum, or parties before it",
            private=SAFE,
        ),
    ] = "none"
    epsilon: Annotated[
        float | None,
        setting(
            "the run stops before a round that would exceed it",
            unset="no limit; noise_multiplier says how much noise there is",
            gt=0,
            resume=True,
            applies=NOISED,
            examples=(8.0,),
            private=SAFE,
        ),
    ] = None
    delta: Annotated[
        float | None,
        setting(
            "chance that epsilon does not hold; below 1 / number of parties",
            unset="an error: it is needed",
            gt=0,
            le=0.5,
            applies=NOISED,
            private=SAFE,
        ),
    ] = None
    noise_multiplier: Annotated[
        float | None,
        setting(
            "noise of a round's sum, in times of clip_norm",
            unset="as much as epsilon needs for all rounds",
            gt=0,
            le=1e6,
            applies=NOISED,
            private=SAFE,
        ),
    ] = None
    clip_norm: Annotated[
        float | Literal["adaptive"] | None,
        BeforeValidator(_check_clip),
        setting(
            "longest step of a party, above 0; adaptive: follows the steps' median",
            unset="an error: it is needed",
            applies=NOISED,
            private=SAFE,
        ),
    ] = None
    clip_start: Annotated[
        float,
        setting(
            "clip_norm of round 1, where it is adaptive",
            ge=MIN_CLIP,
            le=MAX_CLIP,
            applies={"clip_norm": (ADAPTIVE_CLIP,), **CENTRAL},
            private=SAFE,
        ),
    ] = 1.0
    sampling: Annotated[
        Literal["all", "cyclic", "poisson"],
        setting(
            "who trains: all; groups in turn; or each by chance, kept secret",
            applies=CENTRAL,
            private=SAFE,
        ),
    ] = "all"
    band: Annotated[
        int,
        setting(
            "rounds over which the noise of cyclic sampling is correlated",
            ge=1,
            le=1024,
            applies={"sampling": ("cyclic",), **CENTRAL},
            private=SAFE,
        ),
    ] = 16


class DpSgdSpec(Settings):
    """Differential privacy for samples: each party trains with noise of its own."""

    epsilon: Annotated[
        float | None,
        setting(
            "a party refuses a round in which its data would exceed it",
            unset="no limit; noise_multiplier says how much noise there is",
            gt=0,
            resume=True,
            private=SAFE,
        ),
    ] = None
    noise_multiplier: Annotated[
        float | None,
        setting(
            "noise of a training step, in times of max_grad_norm",
            unset="as much as epsilon needs for all rounds",
            gt=0,
            le=1e6,
            private=SAFE,
        ),
    ] = None
    max_grad_norm: Annotated[
        float,
        setting("longest gradient of a sample; longer ones are scaled down",
                ge=1e-6, le=1e6, private=SAFE),  # squares of float32 hold them
    ]  # fmt: skip
    delta: Annotated[
        float,
        setting("chance that epsilon does not hold; below 1 / number of samples",
                gt=0, le=0.5, private=SAFE),
    ]  # fmt: skip

"""Secure aggregation: the sum of the parties' vectors, and no single one of them.

A pure protocol (no Ray, no framework, no clock): Bonawitz et al. 2017 (eprint
2017/281), double masking with drop-outs; above 64 parties neighbours as in Bell et al.
2020 (eprint 2020/704). Both sides are objects that answer bytes with bytes, keep what
they must not forget in a `Storage`, and may be killed between any two steps.

The trip of one vector: `choose_parameters` fits a ring to the number of parties and
their weights; `fedray.privacy.grid` clips a difference of weights to a norm and puts it
on whole numbers up to that ring's bound; `PartySide.mask` multiplies it by the party's
weight, adds count, weight, zeros and masks; `ServerSide.add` sums modulo the ring;
`ServerSide.result` takes off the masks of the sum, from shares that the parties reveal
once they have agreed who is in it.

Steps, each a question of the server to the parties:

    KEYS    fresh public keys, signed            rides on ALIVE of the round before
    SHARES  boxes with shares of two secrets     rides on REVEAL of the round before
    MASKED  the masked vector
    ALIVE   a signature on who is in the sum
    REVEAL  shares of the masks of that sum, once a round

U1, U2 and U3 are the parties that answered KEYS, SHARES and MASKED. The first round,
and one after an attempt that failed, is five trips; others are three. Against whom this
protects, and what it does not: docs/privacy.md.
"""

from fedray.secure_sum.attempt import (
    Attempt,
    Member,
    SumParameters,
    choose_parameters,
    default_min_sum,
    grid_parameters,
    scale_weight,
)
from fedray.secure_sum.keys import Identity, load_identity
from fedray.secure_sum.party import PartySide
from fedray.secure_sum.server import ServerSide, Step, bundle, route
from fedray.secure_sum.storage import FolderStorage, Storage
from fedray.secure_sum.unmasking import SecureSum

__all__ = [
    "Attempt",
    "FolderStorage",
    "Identity",
    "Member",
    "PartySide",
    "SecureSum",
    "ServerSide",
    "Step",
    "Storage",
    "SumParameters",
    "bundle",
    "choose_parameters",
    "default_min_sum",
    "grid_parameters",
    "load_identity",
    "route",
    "scale_weight",
]

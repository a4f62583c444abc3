"""Conditions that several config keys have in common: `applies`, `private`.

Names of model types and fusion rules stand here, so that keys need not repeat them.
"""

from fedray.config.declaration import (
    CUSTOM,
    GIVEN,
    MECHANISMS,
    OtherThan,
    Private,
    private_with,
)

# conditions that several keys have in common: see `applies` of `setting`
NETWORKS = {"model_type": ("pytorch", "keras")}
ON_ARRAYS = {"model_type": ("pytorch", "keras", "sklearn")}
ESTIMATORS = {"model_type": ("sklearn",)}
SCHEDULED = {"model_type": ("pytorch", "keras", "sklearn", CUSTOM)}
OWN_STEPS = {"model_type": ("pytorch", "keras", CUSTOM)}  # whose steps are counted
DOCUMENT_MODELS = ("doc2vec",)  # model types that train on documents, not arrays
TEXT = {"model_type": DOCUMENT_MODELS}
SCORED = {"model_type": OtherThan(DOCUMENT_MODELS)}
SAMPLES = {"model_type": OtherThan((*DOCUMENT_MODELS, CUSTOM))}  # numbers, checked
ADDED_ROWS = {"model_type": DOCUMENT_MODELS, "share": ("additive",)}
ADAPTIVE_STEPS = ("fedadagrad", "fedadam", "fedyogi")
SERVER_STEPS = {"fusion_algorithm": ("fedavgm", *ADAPTIVE_STEPS)}
LOCAL_STEPS = ("fednova", "scaffold")  # rules that go by the parties' training steps
SERVER_RATES = {"fusion_algorithm": ("fedavgm", *ADAPTIVE_STEPS, *LOCAL_STEPS)}
BEST_MODEL = {"fusion_algorithm": ("best_model",)}
ENSEMBLE = {"fusion_algorithm": ("ensemble",)}
ONE_MODEL = {"fusion_algorithm": OtherThan(("ensemble",))}  # that parties share
PERSONAL_RULES = {"fusion_algorithm": OtherThan(("ensemble", "best_model"))}
ADAPTIVE = {"aggregation": ("adaptive",)}
BUFFERED = {"aggregation": ("buffered",)}
EVALUATED = SCORED | {"evaluate_every": OtherThan((0,))}  # in more than the last round
CLIPPING = {"fusion_algorithm": ("norm_clipping", "centred_clipping")}
RANKING = {"fusion_algorithm": ("trimmed_mean", "krum", "multi_krum", "bulyan")}
ROBUST = {
    "fusion_algorithm": (
        *("median", "geometric_median"),
        *RANKING["fusion_algorithm"],
        *CLIPPING["fusion_algorithm"],
    )
}

# with which privacy mechanisms keys may be given: see `private` of `setting`
MASKED = {"secure_aggregation": (True,)}
MEANS = ("fedavg", "iter_avg", "fedavgm", *ADAPTIVE_STEPS)  # go by the parties' sum
SUMMED = ("central", "distributed", "secure_aggregation")  # guard the parties' updates
MEAN_RULES = Private(
    dict.fromkeys(SUMMED, MEANS) | {"dp_sgd": (*MEANS, *ROBUST["fusion_algorithm"])},
    "it goes by more than the sum of the parties' updates: take one of "
    + ", ".join(MEANS),
)
SUMMED_MODELS = Private(
    dict.fromkeys(SUMMED, ("pytorch", "keras", CUSTOM)) | {"dp_sgd": ("pytorch",)},
    "take pytorch, which goes with all mechanisms, keras or a class of yours, which go "
    "with all but dp_sgd: what others count of the parties' data has no noise",
)
ON_TEST_DATA = private_with(
    *MECHANISMS,
    needs={"test_data": GIVEN},
    why="scores of the parties' own tests would leave them without noise: give "
    "test_data, or leave it out",
)
ON_NOISED_UPDATES = private_with(
    "dp_sgd", why="it goes by single updates, which nobody may see: leave it out"
)
IN_TRAINING = private_with(
    *SUMMED, why="dp_sgd trains in batches drawn by chance, clipped by sample in "
    "float32 (max_grad_norm): leave it out",
)  # fmt: skip
ALL_OR_NOISED = private_with(
    "central", "dp_sgd", "secure_aggregation",
    why="each party adds its share of the noise: leave it out",
)  # fmt: skip
IN_ITS_ROUND = private_with(
    "central", "dp_sgd",
    why="an update is masked for the sum of its own round: leave it out",
)  # fmt: skip
FIRST_COME = private_with(
    "dp_sgd", why="whose update counts would depend on others: leave it out"
)
CLIPPED_ONCE = private_with(
    "dp_sgd", "secure_aggregation",
    why="privacy.clip_norm is what clips: leave it out",
)  # fmt: skip
OWN_PROCESSES = private_with(
    "central", "dp_sgd",
    why="parties of a partition share processes and one data set, there is nothing to "
    "mask: list parties, one process each",
)  # fmt: skip
NO_OWN_STATE = Private(
    why="what a party keeps between rounds is in no accounting: leave it out"
)
NO_SCORES = Private(
    why="scores of the parties' own tests would leave them without noise: leave it out"
)
NO_STATISTICS = Private(
    why="means and deviations of the parties' data would leave them without noise: "
    "scale with constants of your own, in the data handler or the model"
)
ONE_BY_ONE = Private(
    why="adaptive: sketches of the parties' updates, without noise, would decide; "
    "buffered: no accounting covers how often a party is fused: leave it out"
)
NO_ATTACK = Private(why="simulated attacks change single updates: leave it out")

PARTY_DIR = "~/.fedray/parties"  # unless `party_dir` names another
# names that `applies` speaks of: of another one it is said that it is unknown
KNOWN_NAMES = {
    "model_type": (*ON_ARRAYS["model_type"], *DOCUMENT_MODELS, CUSTOM),
    "fusion_algorithm": (
        *("fedavg", "iter_avg", "best_model", "ensemble", "doc2vec"),
        *SERVER_RATES["fusion_algorithm"],
        *ROBUST["fusion_algorithm"],
    ),
}

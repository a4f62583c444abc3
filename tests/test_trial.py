"""A training step before round 1: what it finds, and that it changes nothing. No Ray.

Networks of users are in NETWORKS, and each case is a row: what a party has, what is
trained, and which words its error has. Valid input passes.
"""

import random
import textwrap
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fedray import data, models
from fedray.errors import ModelFileError, PartyError
from fedray.federation import read_config
from fedray.messages import ActorLocation
from fedray.models.base import batch_sizes
from fedray.models.torch_samples import extreme_rows
from fedray.party import GroupPlan, PartyGroup
from fedray.service import examiner

pytestmark = pytest.mark.usefixtures("one_thread")

HANDLER = """
    import numpy as np

    class File:
        def __init__(self, path):
            self.file = np.load(path)

        def get_data(self):
            f = self.file
            return (f["x"], f["y"]), (f["x_test"], f["y_test"])
"""

NETWORKS = """
    import random
    import numpy as np
    import torch
    from torch import nn

    def linear():
        return nn.Linear(4, 3)

    def frozen():
        return nn.Linear(4, 3).requires_grad_(False)

    def norm():
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    def norm_without_running():
        norm = nn.BatchNorm1d(8, track_running_stats=False)
        return nn.Sequential(nn.Linear(4, 8), norm, nn.Linear(8, 3))

    def short():
        return nn.Linear(4, 3).bfloat16()

    def pixels():
        return nn.Conv2d(1, 3, 3, padding=1)

    def words(sparse=False):
        return nn.Sequential(
            nn.Embedding(50, 4, sparse=sparse), nn.Flatten(), nn.Linear(12, 3)
        )

    def sparse_words():
        return words(True)

    def lazy():
        return nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 3))

    class Tables(nn.Module):
        # a table of ids for each column
        def __init__(self):
            super().__init__()
            self.few, self.many = nn.Embedding(10, 4), nn.Embedding(100, 4)
            self.last = nn.Linear(8, 3)

        def forward(self, x):
            return self.last(torch.cat([self.few(x[:, 0]), self.many(x[:, 1])], 1))

    class Wide(Tables):
        # twenty columns of a table
        def forward(self, x):
            few, many = self.few(x[:, :10]), self.many(x[:, 10:])
            return self.last(torch.cat([few.sum(1), many.sum(1)], 1))

    class Late(nn.Module):
        # makes a layer when it first sees samples
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), None

        def forward(self, x):
            self.last = self.last or nn.Linear(4, 3)
            return self.last(self.first(x))

    class Squeezed(nn.Linear):
        def forward(self, x):
            return super().forward(x).squeeze()

    def squeezed():
        return Squeezed(4, 3)

    class Standardized(nn.Linear):
        # the deviation of a single sample is no number
        def forward(self, x):
            return super().forward((x - x.mean(0)) / x.std(0) if self.training else x)

    def standardized():
        return Standardized(4, 3)

    class Detached(nn.Linear):
        def forward(self, x):
            return super().forward(x).detach()

    def detached():
        return Detached(4, 3)

    class Moving(nn.Linear):
        # every kind of state that is in no state_dict changes in a training step
        def __init__(self):
            super().__init__(4, 3)
            self.register_buffer("seen", torch.zeros(4), persistent=False)
            self.register_buffer("mean", torch.zeros(4))
            self.sum, self.array, self.calls = torch.zeros(4), np.zeros(4), 0
            self.own = torch.Generator().manual_seed(1)
            self.draw = np.random.default_rng(1)

        def forward(self, x):
            if self.training:
                self.calls, self.new = self.calls + 1, True
                self.seen += 1
                self.array += 1
                self.sum = self.sum + x.mean(0).detach()
                self.mean.copy_(x.mean(0))
                noise = torch.randn(4, generator=self.own) + random.random()
                x = x + noise + float(self.draw.normal()) + np.random.rand()
            return super().forward(x)

    class Scaling(nn.Linear):
        # writes into the samples that it is given
        def forward(self, x):
            x /= 10
            return super().forward(x)

    def scaling():
        return Scaling(4, 3)

    def masked():
        net = nn.Linear(4, 3)
        net.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
        return net

    def empty():
        net = nn.Linear(4, 3)
        net.none = nn.Parameter(torch.zeros(0, 4))
        return net

    def expanded():
        net = nn.Linear(4, 3)
        net.register_buffer("places", torch.arange(4).expand(2, 4))
        return net

    class Features(nn.Module):
        # random features, none of which is in the state_dict
        def __init__(self, kind):
            super().__init__()
            make = {
                "attribute": lambda: torch.randn(4, 16),
                "numpy": lambda: np.random.randn(4, 16).astype(np.float32),
                "python": lambda: torch.tensor([[random.random()] * 16] * 4),
                "unseeded": lambda: torch.from_numpy(
                    np.random.default_rng().random((4, 16), np.float32)
                ),
            }
            self.layers = [nn.Linear(4, 16)] if kind == "list" else []
            if kind == "buffer":
                self.register_buffer("w", torch.randn(4, 16), persistent=False)
            elif kind != "list":
                self.w = make[kind]()
            self.last = nn.Linear(16, 3)

        def forward(self, x):
            if self.layers:
                return self.last(self.layers[0](x).cos())
            return self.last((x @ torch.as_tensor(self.w)).cos())

    def attribute():
        return Features("attribute")

    def buffer():
        return Features("buffer")

    def numpy():
        return Features("numpy")

    def python():
        return Features("python")

    def unseeded():
        return Features("unseeded")

    def layers():
        return Features("list")
"""


@pytest.fixture
def configured(tmp_path) -> Callable[..., dict]:
    """Settings of one party with these samples and a network of NETWORKS."""
    (tmp_path / "networks.py").write_text(textwrap.dedent(NETWORKS))
    (tmp_path / "file.py").write_text(textwrap.dedent(HANDLER))

    def write(network: str, x, y, tests=None, **settings) -> dict:
        x_test, y_test = (x[:8], y[:8]) if tests is None else tests
        np.savez(tmp_path / "a.npz", x=x, y=y, x_test=x_test, y_test=y_test)
        return {
            "architecture": f"{tmp_path}/networks.py:{network}",
            "data_handler": f"{tmp_path}/file.py:File",
            "loss": "cross_entropy",
            "party_dir": str(tmp_path / "parties"),
            "parties": [{"name": "a", "data": str(tmp_path / "a.npz")}],
            **settings,
        }

    return write


def grouped(settings: dict) -> tuple[PartyGroup, dict]:
    config = read_config(settings)
    blueprint, weights = models.named(config.model_type).read(config)
    handler = data.named(config.data_handler)
    plan = GroupPlan("a", range(1), config, blueprint, handler)
    return PartyGroup(plan, lambda: ActorLocation("n")), weights


def floats(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(n).normal(size=(n, *(shape or (4,)))).astype("f4")


def classes(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 3, (n, *shape))


def ids(*changed: tuple[int, int, int]) -> np.ndarray:
    x = np.random.default_rng(0).integers(5, 45, (20, 3))
    for row, column, value in changed:
        x[row, column] = value
    return x


TABLE = np.stack([np.arange(30) % 10, np.arange(30) * 3], 1)
TABLE_WITH_AN_ODD_ROW = TABLE + np.array([[9, 0]]) * (np.arange(30) == 9)[:, None]
WIDE = np.arange(100)[:, None] * np.array([1] * 10 + [7] * 10) % ([10] * 10 + [99] * 10)
WIDE_WITH_AN_ODD_ID = WIDE + 5 * (np.indices(WIDE.shape) == [[[69]], [[8]]]).all(0)
SPARSE = {"optimizer": "optim.Adam", "learning_rate": 0.01}
NOT_READY = {  # network, samples, targets, test part, settings -> words of the error
    "norm, one sample": (
        ("norm", floats(1), classes(1), None, {}), "1 sample of party a.*batch norm"
    ),
    "norm, batches of one": (
        ("norm", floats(9), classes(9), None, {"batch_size": 1}), "raise batch_size"
    ),
    "drop_last, less than a batch": (
        ("linear", floats(9), classes(9), None, {"drop_last": True}),
        "9 samples of party a fails since drop_last.*lower batch_size",
    ),
    "squeeze, last batch of one": (
        ("squeezed", floats(65), classes(65), None, {}),
        "step on 1 sample of party a fails in .*drop_last: true",
    ),
    "squeeze, last test batch of one": (
        ("squeezed", floats(64), classes(64), (floats(65), classes(65)), {}),
        r"evaluation of 1 test sample.*squeeze\(\)",
    ),
    "a deviation of one sample": (
        ("standardized", floats(65), classes(65), None, {}), "with a loss of nan"
    ),
    "targets of another picture": (
        ("pixels", floats(16, 1, 8, 8), classes(16, 7, 8), None, {}),
        r"targets of shape \[7, 8\]",
    ),
    "a target for each of 1024 positions": (
        ("linear", floats(16), classes(16, 1024), None, {}), "1024"
    ),
    "sparse gradients, Adam": (
        ("sparse_words", ids(), classes(20), None, SPARSE),
        "in the optimizer optim.Adam: .*sparse gradients.*choose another optimizer",
    ),
    "sparse gradients, weight decay": (
        ("sparse_words", ids(), classes(20), None,
         {"optimizer": "SGD", "optimizer_args": {"weight_decay": 0.1}}),
        "in the optimizer SGD: .*optimizer_args",
    ),
    "sparse gradients, FedProx": (
        ("sparse_words", ids(), classes(20), None, {"proximal_mu": 0.1}),
        "proximal_mu: 0",
    ),
    "an optimizer of matrices": (
        ("linear", floats(9), classes(9), None, {"optimizer": "Muon"}),
        "in the optimizer: .*Muon.*choose another",
    ),
    "an id too large": (
        ("words", ids((7, 1, 50)), classes(20), None, {}),
        r"data a: .*ids outside 0\.\.49, the rows of layer 0",
    ),
    "an id below zero, batches of one": (
        ("words", ids((7, 1, -1)), classes(20), None, {"batch_size": 1}),
        r"ids outside 0\.\.49",
    ),
    "an id too large in the test part": (
        ("words", ids(), classes(20), (ids((7, 1, 99)), classes(20)), {}),
        r"data a \(test samples\): .*ids outside",
    ),
    "an id too large for its own column": (
        ("Tables", TABLE_WITH_AN_ODD_ROW, classes(30), None, {}),
        r"ids outside 0\.\.9, the rows of layer few",
    ),
    "an id too large for one of many columns": (
        ("Wide", WIDE_WITH_AN_ODD_ID, classes(100), None, {"batch_size": 16}),
        r"ids outside 0\.\.9, the rows of layer few",
    ),
    "lazy layers": (
        ("lazy", floats(9), classes(9), None, {}), "layer 0 has no size yet: give sizes"
    ),
    "a layer made in forward": (
        ("Late", floats(9), classes(9), None, {}), "made in __init__, with their sizes"
    ),
    "nothing to train": (
        ("frozen", floats(9), classes(9), None, {}), "training of party a .*frozen"
    ),
    "an output without a gradient": (
        ("detached", floats(9), classes(9), None, {}),
        "in the gradients of the model.*does not depend on what trains: take detach"
    ),
    "a mask that would be averaged": (
        ("masked", floats(9), classes(9), None, {}),
        "tensor 'mask' holds NaN or infinity.*persistent=False",
    ),
    "weights that are infinite after the first step": (
        ("linear", floats(9) * 100, classes(9), None, {"learning_rate": 1e38}),
        "with NaN or infinity in tensor 'weight' after it; lower learning_rate",
    ),
    "random features drawn beyond the seed": (
        ("unseeded", floats(9), classes(9), None, {}),
        "w, which is not in its state_dict, is of other numbers in each process",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_READY)
def test_what_ends_in_round_1_is_found_before_it(configured, case):
    (network, x, y, tests, settings), words = NOT_READY[case]
    settings = configured(network, x, y, tests, **settings)

    def join() -> None:
        group, weights = grouped(settings)
        group.join(weights)

    with pytest.raises((PartyError, ModelFileError), match=words):
        join()


READY = {
    "a model in bfloat16": ("short", floats(9), classes(9), None, {}),
    "norm, last batch of one": ("norm", floats(65), classes(65), None, {}),
    "norm, last batch of one dropped": (
        "norm", floats(65), classes(65), None, {"drop_last": True}
    ),
    "norm without running statistics, last test batch of one": (
        "norm_without_running", floats(8), classes(8), (floats(65), classes(65)), {}
    ),
    "targets of pixels": ("pixels", floats(16, 1, 8, 8), classes(16, 8, 8), None, {}),
    "sparse gradients, plain SGD": ("sparse_words", ids(), classes(20), None, {}),
    "the first and the last id": (
        "words", ids((7, 1, 0), (8, 2, 49)), classes(20), None, {}
    ),
    "ids of two columns": ("Tables", TABLE, classes(30), None, {}),
    "parameters without numbers": ("empty", floats(9), classes(9), None, {}),
    "a buffer that was expanded": ("expanded", floats(9), classes(9), None, {}),
    "ids of many columns": ("Wide", WIDE, classes(100), None, {}),
    "no test part": ("linear", floats(9), classes(9), (floats(9)[:0], classes(0)), {}),
    "a loss that is not finite, where refused updates are borne": (
        "standardized", floats(65), classes(65), None, {"max_refused": 1}
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", READY)
def test_what_can_be_trained_passes(configured, case):
    network, x, y, tests, settings = READY[case]
    group, weights = grouped(configured(network, x, y, tests, **settings))
    assert group.join(weights).n_train.tolist() == [len(x)]
    report = group.train(1, np.arange(1), weights)[0]
    assert np.isfinite(report.loss).all() or "max_refused" in settings


def test_a_network_that_writes_into_its_input_leaves_the_test_samples(configured):
    group, weights = grouped(configured("scaling", floats(9), classes(9)))
    group.join(weights)
    model, x = group.local_data.model, group.local_data.test.x
    assert (x.numpy() == floats(9)[:8]).all()
    first, second = (group.evaluate(weights).scores for _ in range(2))
    assert first.means == second.means
    model.probabilities(x.numpy())
    assert (x.numpy() == floats(9)[:8]).all()


@pytest.mark.parametrize("has_payload", [True, False])
def test_joining_leaves_weights_and_all_other_state_as_they_were(
    configured, has_payload
):
    group, weights = grouped(configured("Moving", floats(70), classes(70)))
    model = group.local_data.model
    module = model.module

    def state():
        generators = torch.get_rng_state(), np.random.get_state(), random.getstate()
        own = module.own.get_state(), module.draw.bit_generator.state
        tensors = [*model.weights().values(), module.seen, module.sum, module.array]
        plain = module.calls, module.training, hasattr(module, "new")
        return repr((generators, own, [np.asarray(t) for t in tensors], plain))

    before = state()
    group.join(weights if has_payload else None)
    assert state() == before
    report, first = group.train(1, np.arange(1), weights)
    again = group.train(1, np.arange(1), weights)
    assert report.loss == again[0].loss  # it starts from what was built, not from there
    for name, array in first.weights.items():
        assert (array == again[1].weights[name]).all()


@pytest.mark.parametrize("network", ["attribute", "buffer", "numpy", "python"])
def test_random_features_are_alike_everywhere_and_said(configured, network):
    settings = configured(network, floats(9), classes(9), seed=7)
    (one, weights), (other, _) = grouped(settings), grouped(settings)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # of another process
    (note,) = one.plan.blueprint.notes
    assert "w float32[4, 16]; not trained, sent or saved" in note
    assert "from seed 7" in note
    updates = [group.train(1, np.arange(1), weights)[1] for group in (one, other)]
    for name, array in updates[0].weights.items():
        assert (array == updates[1].weights[name]).all()
    third, _ = grouped(settings | {"seed": 8})
    ours, theirs = (np.asarray(g.local_data.model.module.w) for g in (one, third))
    assert (ours != theirs).any()


def test_a_check_prints_notes_of_the_model():
    from fedray.cli.run import _format_result
    from fedray.federation.check import CheckResult

    lines = [*_format_result(CheckResult(notes=["not in the state_dict"]).to_json())]
    assert lines == ["note     not in the state_dict", "ready to run"]


def test_layers_in_a_plain_list_are_said(configured):
    group, _ = grouped(configured("layers", floats(9), classes(9)))
    (note,) = group.plan.blueprint.notes
    assert "layers.0.weight" in note
    assert "nn.ModuleList" in note


def test_a_model_without_hidden_state_has_no_note(configured):
    group, _ = grouped(configured("norm", floats(9), classes(9)))
    assert group.plan.blueprint.notes == ()


def test_parties_that_share_an_actor_take_two_steps_however_many_they_are(
    configured, monkeypatch
):
    settings = configured("norm", floats(300), classes(300), batch_size=8)
    settings["partition"] = {"source": settings.pop("parties")[0]["data"]}
    config = read_config(settings | {"num_parties": 20})
    blueprint, weights = models.named("pytorch").read(config)
    handler = data.named(config.data_handler)
    plan = GroupPlan("all", range(20), config, blueprint, handler)
    group = PartyGroup(plan, lambda: ActorLocation("n"))
    sizes, model = [], group.local_data.model
    mean = model.loss.mean
    monkeypatch.setattr(
        model.loss,
        "mean",
        lambda out, y: (
            sizes.append(len(out)) if out.requires_grad else None,
            mean(out, y),
        )[1],
    )
    group.join(weights)
    assert sizes == [8, 7]  # parties of 15 samples: a whole batch and the rest


@pytest.mark.parametrize(
    ("n", "size", "drop_last", "joins_single", "sizes"),
    [
        (65, 64, False, False, [64, 1]),
        (65, 64, False, True, [65]),
        (65, 64, True, True, [64]),
        (129, 64, False, True, [64, 65]),
        (100, 64, False, True, [64, 36]),
        (100, 64, True, False, [64]),
        (128, 64, True, True, [64, 64]),
        (9, 64, True, False, []),
        (1, 64, False, True, [1]),
        (3, 1, False, True, [1, 1, 1]),
    ],
)
def test_batches_of_a_pass(n, size, drop_last, joins_single, sizes):
    assert batch_sizes(n, size, drop_last, joins_single) == sizes


def test_drop_last_trains_on_whole_batches_of_each_pass(configured):
    """By hand: the first 64 samples of the drawn order, one step."""
    x, y = floats(65), classes(65)
    settings = configured("linear", x, y, drop_last=True, learning_rate=0.5)
    group, weights = grouped(settings)
    report, update = group.train(1, np.arange(1), weights)
    model = group.local_data.model
    order = np.random.default_rng(_seed(group)).permutation(65)[:64]
    layer = torch.nn.Linear(4, 3)
    layer.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
    loss = torch.nn.functional.cross_entropy(
        layer(torch.tensor(x[order])), torch.tensor(y[order])
    )
    loss.backward()
    for name, parameter in layer.named_parameters():
        stepped = (parameter - 0.5 * parameter.grad).detach().numpy()
        np.testing.assert_allclose(update.weights[name], stepped, atol=1e-6)
    assert report.loss[0] == pytest.approx(loss.item(), rel=1e-6)
    assert update.n_samples == 65  # which all are drawn from, pass by pass
    assert model.batch_sizes(65) == [64]


def _seed(group: PartyGroup) -> int:
    from fedray import policy

    return policy.seed_for(group.config.seed, 1, "a")


def test_extreme_samples_come_first():
    x = torch.tensor([[5, 5], [5, 9], [5, 5], [1, 5], [5, 2], [7, 5]])
    y = torch.tensor([0, 0, 3, 0, 0, -1])
    # smallest and largest of all, of the targets, then of each column
    assert extreme_rows(x, y, 6).tolist() == [3, 1, 5, 2, 4, 0]
    assert extreme_rows(x, y, 2).tolist() == [3, 1]
    assert extreme_rows(x[:1], y[:1], 6).tolist() == [0]


def test_the_service_takes_the_step_too(configured):
    request = {"config": configured("sparse_words", ids(), classes(20), **SPARSE)}
    assert list(examiner.examine(request | {"party": None})) == ["model_bytes"]
    answer = examiner.examine(request | {"party": 0})
    assert answer["kind"] == "TrialFailed"
    assert "in the optimizer optim.Adam" in answer["text"]


def test_the_service_tries_few_samples(configured):
    """A step of the whole batch could take more time and memory than it may."""
    request = {"config": configured("linear", floats(64), classes(64)), "party": 0}
    answer = examiner.examine(request)
    assert (answer["n_train"], answer["n_test"]) == (64, 8)
    assert examiner.N_TRIED < 64

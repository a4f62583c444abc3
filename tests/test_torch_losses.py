"""PyTorch losses by their arguments and class names, of one's own, and outputs of all
kinds: what a model returns, where its classes are, what counts in a mean.
"""

import math
import re

import numpy as np
import pytest
import torch
from test_loss_domains import joiner
from torch import nn
from torch.nn import functional

from fedray import models
from fedray.config import FederationConfig
from fedray.errors import ConfigError, DataError, TrialFailed
from fedray.models.base import PartySlice

NETS = """
from collections import OrderedDict, namedtuple
from types import SimpleNamespace
import torch
from torch import nn

class Returns(nn.Module):
    def __init__(self, wrap, net=None):
        super().__init__()
        self.net, self.wrap = net or nn.Linear(6, 3), wrap
    def forward(self, x): return self.wrap(self.net(x))

def values(): return nn.Linear(6, 3)
def one(): return nn.Linear(6, 1)
def in_tuple(): return Returns(lambda out: (out, out * 2))
def in_list(): return Returns(lambda out: [out, None])
def in_dict(): return Returns(lambda out: {"features": out * 2, "logits": out})
def in_out(): return Returns(lambda out: OrderedDict(out=out, aux=out * 2))
def alone(): return Returns(lambda out: {"prediction": out, "loss": out.sum()})
def in_object(): return Returns(lambda out: SimpleNamespace(logits=out, other=1))
def named_tuple():
    return Returns(lambda out: namedtuple("Out", "hidden logits")(out * 2, out))
def unclear(): return Returns(lambda out: {"a": out, "b": out * 2})
def nothing(): return Returns(lambda out: None)
def empty(): return Returns(lambda out: ())
def text(): return Returns(lambda out: "logits")
def lists(): return Returns(lambda out: ([1.0], out))
def scalar(): return Returns(lambda out: (out.mean(), out))

class Recurrent(nn.Module):
    def __init__(self, cell="LSTM"):
        super().__init__()
        self.rnn = getattr(nn, cell)(2, 4, batch_first=True)
    def forward(self, x): return self.rnn(x)
def lstm(): return Recurrent()
def gru(): return Recurrent("GRU")

class Tagger(nn.Module):
    "Classes last, for each of 4 positions."
    def __init__(self, n_classes=3, wrap=lambda out: out):
        super().__init__()
        self.net, self.wrap = nn.Linear(2, n_classes), wrap
    def forward(self, x): return self.wrap(self.net(x))
def tagger(): return Tagger()
def first(): return Tagger(wrap=lambda out: out.movedim(-1, 1))
def square(): return Tagger(4)
def square_first(): return Tagger(4, lambda out: out.movedim(-1, 1))
def square_object(): return Tagger(4, lambda out: {"logits": out})

class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.bottom = self.block(1, 4), self.block(4, 8)
        self.up, self.end = self.block(12, 4), nn.Conv2d(4, 3, 1)
    def block(self, n_in, n_out):
        return nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1), nn.ReLU())
    def forward(self, x):
        wide = self.down(x)
        deep = self.bottom(nn.functional.max_pool2d(wide, 2))
        deep = nn.functional.interpolate(deep, scale_factor=2)
        return self.end(self.up(torch.cat([wide, deep], 1)))
def unet(): return UNet()

class Own(nn.Module):
    "Its own loss, in one of the forms that models have."
    def __init__(self, wrap):
        super().__init__()
        self.net, self.wrap = nn.Linear(6, 3), wrap
    def forward(self, x, labels=None):
        out = self.net(x)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(out, labels)
        return self.wrap(loss, out)
def own_object(): return Own(lambda loss, out: SimpleNamespace(loss=loss, logits=out))
def own_dict(): return Own(lambda loss, out: {"loss": loss, "logits": out})
def own_tuple(): return Own(lambda loss, out: (loss, out))
def own_last(): return Own(lambda loss, out: (out, loss))
def own_number(): return Own(lambda loss, out: out if loss is None else loss)
def own_none(): return Own(lambda loss, out: {"logits": out})
def own_each(): return Own(lambda loss, out: {"loss": out.sum(1)})

class Code(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 2), nn.Tanh(), nn.Linear(2, 6))
    def forward(self, x): return self.net(x)
def code(): return Code()
class Variational(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(6, 4), nn.Linear(2, 6)
    def forward(self, x):
        mean, log_var = self.into(x).chunk(2, 1)
        return self.out(mean), mean, log_var
def variational(): return Variational()
class OwnCode(Code):
    def forward(self, x): return {"loss": ((self.net(x) - x) ** 2).mean()}
def own_code(): return OwnCode()
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 3)
    def forward(self, x):
        out = self.net(x)
        return {"logits": out, "size": out.sum(1)}
def two(): return Two()

def absolute(output, target): return (output - target).abs().mean()
def scaled(output, target, scale=1.0): return scale * absolute(output, target)
class Scaled(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))
    def forward(self, output, target): return self.scale * absolute(output, target)
class Plain:
    def __call__(self, output, target): return absolute(output, target)
made = nn.L1Loss()
def elbo(output, target):
    recon, mean, log_var = output
    kl = -0.5 * (1 + log_var - mean ** 2 - log_var.exp()).sum(1).mean()
    return ((recon - target) ** 2).sum(1).mean() + kl
def of_both(output, target):
    classes = nn.functional.cross_entropy(output["logits"], target["label"])
    return classes + ((output["size"] - target["size"]) ** 2).mean()
def each(output, target): return (output - target).abs()
def as_float(output, target): return float(absolute(output, target))
def nan(output, target): return absolute(output, target) * float("nan")
def broken(output, target): return output["logits"].mean()
def detached(output, target): return absolute(output, target).detach()
def one_argument(output): return output.mean()
def three(output, target, more): return output.mean()
number = 3
class Trained(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
    def forward(self, output, target): return self.weight.sum()
"""
RNG = np.random.default_rng(0)
X = RNG.random((20, 6), np.float32)
LABELS = np.arange(20) % 3
SERIES = RNG.random((20, 4, 2), np.float32)
TAGS = RNG.integers(0, 3, (20, 4))
CE, LOGITS = "cross_entropy", "binary_cross_entropy_with_logits"


@pytest.fixture
def join(tmp_path):
    """Try samples on a model as a party does when it joins: the model and the samples.

    ``join("one", LOGITS, y)``; `own:name` is a loss of the code above.
    """
    join = joiner(tmp_path, NETS, "pytorch")

    def with_own_loss(net, loss, y, x=X, **settings):
        if loss and loss.startswith("own:"):
            loss = f"{tmp_path}/nets.py:{loss[4:]}"
        return join(net, loss, y, x, **settings)

    return with_own_loss


def train(model, samples, n=20):
    """One pass over the first `n` samples; its loss."""
    return model.train(samples, PartySlice(np.arange(n), 1))


def outputs(model, x):
    with torch.no_grad():
        return model.module.net(torch.from_numpy(x))


@pytest.mark.parametrize(
    "net",
    ["values", "in_tuple", "in_list", "in_dict", "in_out", "alone", "in_object",
     "named_tuple"],
)  # fmt: skip
def test_the_output_that_counts_is_found_in_what_a_module_returns(join, net):
    model, samples = join(net, CE, LABELS)
    linear = model.module if net == "values" else model.module.net
    with torch.no_grad():
        out = linear(torch.from_numpy(X))
    expected = functional.cross_entropy(out, torch.from_numpy(LABELS)).item()
    right = (out.argmax(1).numpy() == LABELS).mean()
    assert model.evaluate(samples).means == (
        pytest.approx(expected),
        pytest.approx(right),
    )
    assert train(model, samples) == pytest.approx(expected, rel=1e-5)
    assert model.probabilities(X).shape == (20, 3)


def test_recurrent_models_that_return_a_state_train(join):
    for net in ("lstm", "gru"):
        model, samples = join(net, "mse_loss", np.zeros((20, 4, 4)), SERIES)
        assert train(model, samples) > 0


@pytest.mark.parametrize(
    ("net", "message"),
    [
        ("unclear", "returns a dict of a, b; needed a tensor; of a tuple.*`logits`"),
        ("nothing", "returns nothing; needed a tensor"),
        ("empty", "returns a tuple of 0"),
        ("text", "returns a str; needed"),
        ("lists", "returns a tuple of 2, whose entry 0 is a list of 1"),
        ("scalar", r"output of shape \[\] for 16 samples"),
    ],
)
def test_outputs_that_do_not_tell_which_counts_are_errors(join, net, message):
    with pytest.raises(DataError, match=message):
        join(net, CE, LABELS)


def test_loss_args_name_another_output(join):
    for net, entry in (("in_dict", "features"), ("in_tuple", 1), ("unclear", "b")):
        model, samples = join(net, CE, LABELS, loss_args={"output": entry})
        doubled = 2 * outputs(model, X)
        expected = functional.cross_entropy(doubled, torch.from_numpy(LABELS)).item()
        assert model.evaluate(samples).means[0] == pytest.approx(expected)
    with pytest.raises(DataError, match="whose 'scores' is nothing"):
        join("in_dict", CE, LABELS, loss_args={"output": "scores"})
    with pytest.raises(DataError, match="whose entry 2 is nothing"):
        join("in_tuple", CE, LABELS, loss_args={"output": 2})


@pytest.mark.parametrize(
    ("net", "args"),
    [("tagger", {}), ("first", {}), ("tagger", {"class_axis": -1}),
     ("tagger", {"class_axis": 2}), ("first", {"class_axis": 1})],
)  # fmt: skip
def test_classes_of_positions_may_be_the_first_or_the_last_axis(join, net, args):
    model, samples = join(net, CE, TAGS, SERIES, loss_args=args)
    out = outputs(model, SERIES)
    expected = functional.cross_entropy(
        out.reshape(80, 3), torch.from_numpy(TAGS.ravel())
    ).item()
    right = (out.argmax(-1).numpy() == TAGS).mean()
    assert model.evaluate(samples).means == (
        pytest.approx(expected),
        pytest.approx(right),
    )
    assert train(model, samples) == pytest.approx(expected, rel=1e-5)


def test_an_output_whose_axis_of_classes_is_unclear_asks_for_the_layout(join):
    tags = RNG.integers(0, 4, (20, 4))
    message = r"\[N, 4, 4\] and labels of shape \[N, 4\].*class_axis: 1.*class_axis: -1"
    for net in ("square", "square_first"):
        with pytest.raises(DataError, match=message):
            join(net, CE, tags, SERIES)
    last, samples = join("square", CE, tags, SERIES, loss_args={"class_axis": -1})
    first, same = join("square_first", CE, tags, SERIES, loss_args={"class_axis": 1})
    by_name, also = join("square_object", CE, tags, SERIES)  # classes last
    expected = functional.cross_entropy(
        outputs(last, SERIES).reshape(80, 4), torch.from_numpy(tags.ravel())
    ).item()
    assert last.evaluate(samples).means[0] == pytest.approx(expected)
    assert first.evaluate(same).means == pytest.approx(last.evaluate(samples).means)
    assert by_name.evaluate(also).means == pytest.approx(last.evaluate(samples).means)


def test_an_axis_that_is_none_is_an_error(join):
    with pytest.raises(DataError, match=r"class_axis 3.*output .*16, 4, 3"):
        join("tagger", CE, TAGS, SERIES, loss_args={"class_axis": 3})


def test_rows_of_each_position_find_their_axis(join):
    for rows in (np.eye(3)[TAGS], RNG.dirichlet(np.ones(3), (20, 4))):
        model, samples = join("tagger", CE, rows, SERIES)
        log_shares = outputs(model, SERIES).log_softmax(-1).numpy()
        expected = -(rows * log_shares).sum(-1).mean()
        right = (log_shares.argmax(-1) == rows.argmax(-1)).mean()
        assert model.evaluate(samples).means == (pytest.approx(expected), right)


def test_a_unet_trains_on_label_maps_and_is_scored_by_pixels(join):
    x = RNG.random((6, 1, 8, 8), np.float32)
    y = RNG.integers(0, 3, (6, 8, 8))
    model, samples = join("unet", CE, y, x)
    with torch.no_grad():
        out = model.module(torch.from_numpy(x))
    expected = functional.cross_entropy(out, torch.from_numpy(y)).item()
    right = (out.argmax(1).numpy() == y).mean()
    assert model.evaluate(samples).means == (
        pytest.approx(expected),
        pytest.approx(right),
    )
    assert train(model, samples, 6) == pytest.approx(expected, rel=1e-5)


# arguments


@pytest.mark.parametrize(
    ("net", "loss", "y", "args"),
    [
        ("values", CE, LABELS, {"label_smoothing": 0.1}),
        ("values", CE, LABELS, {"weight": [1, 2, 0.5]}),
        ("values", CE, LABELS, {"weight": [1, 2, 0.5], "label_smoothing": 0.2}),
        ("values", CE, np.eye(3)[LABELS], {"weight": [1, 2, 0]}),
        ("values", CE, LABELS, {"ignore_index": 2}),
        ("values", CE, LABELS, {"weight": [3, 1, 1], "ignore_index": 0}),
        ("values", "multi_margin_loss", LABELS, {"p": 2, "margin": 0.5}),
        ("values", "multi_margin_loss", LABELS, {"weight": [1, 2, 3]}),
        ("one", LOGITS, LABELS % 2, {"pos_weight": 3}),
        ("one", LOGITS, LABELS % 2, {"pos_weight": [3.0]}),
        ("values", LOGITS, np.eye(3)[LABELS], {"pos_weight": [1, 2, 3]}),
        ("values", LOGITS, np.eye(3)[LABELS], {"weight": [1, 2, 3]}),
        ("values", "mse_loss", np.eye(3)[LABELS], {"weight": [1, 2, 3]}),
        ("one", "huber_loss", X[:, 0], {"delta": 0.1}),
        ("one", "smooth_l1_loss", X[:, 0], {"beta": 0.1}),
        ("one", "poisson_nll_loss", X[:, 0], {"full": True}),
        ("values", CE, LABELS, {"reduction": "mean"}),
    ],
)  # fmt: skip
def test_arguments_reach_the_loss_as_in_torch(join, net, loss, y, args):
    """Batches and the mean over batches give what torch gives for all at once."""
    model, samples = join(net, loss, y, loss_args=args, batch_size=7, epochs=1)
    out = model.module(samples.x).detach()
    given = {k: v for k, v in args.items() if k != "reduction"}
    for key in ("weight", "pos_weight"):
        if key in given:
            given[key] = torch.tensor(given[key], dtype=torch.float32)
    is_shaped = loss == "mse_loss"
    if is_shaped:
        given["weight"] = given["weight"].expand_as(out)
    target = (
        samples.y if samples.y.dtype == torch.int64 else samples.y.reshape(out.shape)
    )
    expected = getattr(functional, loss)(out, target, **given).item()
    assert model.evaluate(samples).means[0] == pytest.approx(expected, rel=1e-5)
    model.config = model.config.with_changes(learning_rate=1e-12)
    assert train(model, samples) == pytest.approx(expected, rel=1e-5)


def test_pos_weight_of_channels_is_one_for_each(join):
    y = RNG.integers(0, 2, (6, 3, 8, 8)).astype(np.float32)
    x = RNG.random((6, 1, 8, 8), np.float32)
    model, samples = join("unet", LOGITS, y, x, loss_args={"pos_weight": [1, 2, 3]})
    out = model.module(samples.x).detach()
    weight = torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1)
    expected = functional.binary_cross_entropy_with_logits(
        out, samples.y, pos_weight=weight
    )
    assert model.evaluate(samples).means[0] == pytest.approx(expected.item())


def test_ignored_labels_count_for_no_mean_whatever_the_batches(join):
    tags = TAGS.copy()
    tags[:, 2:] = -100
    tags[:10] = -100  # whole batches count for nothing
    tags[15] = -100
    settings = {"loss_args": {"ignore_index": -100}, "batch_size": 5}
    model, samples = join("tagger", CE, tags, SERIES, **settings)
    out = outputs(model, SERIES)
    counted = tags != -100
    expected = functional.cross_entropy(out[counted], torch.from_numpy(tags[counted]))
    right = (out.argmax(-1).numpy() == tags)[counted].mean()
    assert model.evaluate(samples).means == (pytest.approx(expected.item()), right)
    assert model.evaluate(samples).weights == (counted.sum(), counted.sum())
    model.config = model.config.with_changes(learning_rate=1e-12)
    assert train(model, samples) == pytest.approx(expected.item(), rel=1e-5)


def test_a_batch_without_a_label_that_counts_takes_no_step(join):
    tags = np.full((20, 4), -100)
    tags[0] = 1
    args = {"ignore_index": -100}
    model, samples = join("tagger", CE, tags, SERIES, loss_args=args, batch_size=1)
    before = {name: array.copy() for name, array in model.weights().items()}
    part = PartySlice(np.arange(1, 20), 1)
    assert model.train(samples, part) == 0.0
    after = model.weights()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    nothing = model.evaluate(samples.take(slice(1, 5)))
    assert nothing.means == (0.0, None)
    assert nothing.weights == (0.0, 0.0)


def test_labels_that_none_count_are_an_error(join):
    with pytest.raises(DataError, match="no label that counts: each is -100"):
        join("tagger", CE, TAGS * 0 - 100, SERIES, loss_args={"ignore_index": -100})


@pytest.mark.parametrize(
    ("net", "loss", "args", "message"),
    [
        ("values", CE, {"weight": [1, 2]}, "2 numbers in weight; needed 3, one for"),
        ("values", CE, {"weight": [[1, 2, 3]]}, r"weight of shape \[1, 3\]; needed 3"),
        (
            "one",
            LOGITS,
            {"pos_weight": [1, 2]},
            "2 numbers in pos_w.*outputs.* \\[1\\]",
        ),
    ],
)
def test_weights_of_a_wrong_length_are_errors_at_joining(
    join, net, loss, args, message
):
    y = LABELS if net == "values" else LABELS % 2
    with pytest.raises(DataError, match=message):
        join(net, loss, y, loss_args=args)


@pytest.mark.parametrize(
    ("loss", "args", "message"),
    [
        (CE, {"label_smooth": 0.1}, "unknown argument of cross_entropy.*did you mean"),
        (CE, {"pos_weight": 1}, "unknown argument of cross_entropy.*'pos_weight'"),
        ("mse_loss", {"class_axis": 1}, "unknown argument of mse_loss"),
        (CE, {"weight": 2}, "weight must be a list of finite numbers from 0"),
        (CE, {"weight": [1, "a"]}, "weight must be a list"),
        (CE, {"weight": [0, 0, 0]}, "not all of them 0"),
        (CE, {"weight": [1, -1, 1]}, "weight must be a list"),
        (CE, {"weight": [[1, 2], [3]]}, "weight must be a list"),
        (CE, {"weight": [True, False, True]}, "weight must be a list"),
        (CE, {"label_smoothing": 2}, "a number from 0 to 1, got 2"),
        (CE, {"ignore_index": 1.5}, "ignore_index must be a whole number"),
        (CE, {"reduction": "sum"}, "reduction: sum is none of fedray's"),
        (CE, {"size_average": False}, "size_average: False"),
        (CE, {"class_axis": 0}, "class_axis must be a whole number other than 0"),
        (CE, {"output": 1.5}, "output must be the name or place"),
        ("multi_margin_loss", {"p": 3}, "p must be 1 or 2"),
        ("huber_loss", {"delta": 0}, "delta must be a number above 0"),
        ("model", {"weight": [1]}, "weight cannot be given to loss: model"),
    ],
)
def test_wrong_arguments_are_mistakes_in_the_config(
    join, tmp_path, loss, args, message
):
    config = FederationConfig(
        architecture=f"{tmp_path}/nets.py:values", loss=loss, loss_args=args
    )
    (problem,) = models.named("pytorch").problems(config)
    assert re.search(message, problem), problem


def test_ignore_index_is_offered_where_labels_are_minus_100(join):
    message = r"values -100 to 2.*or loss_args: \{ignore_index: -100\}"
    with pytest.raises(DataError, match=message):
        join("tagger", CE, np.where(TAGS == 1, -100, TAGS), SERIES)


# names


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("CrossEntropyLoss", CE),
        ("torch.nn.CrossEntropyLoss", CE),
        ("nn.CrossEntropyLoss", CE),
        ("torch.nn.functional.cross_entropy", CE),
        ("F.cross_entropy", CE),
        ("nn.MultiMarginLoss", "multi_margin_loss"),
    ],
)
def test_class_names_and_modules_are_understood(join, name, function):
    model, samples = join("values", name, LABELS)
    expected, same = join("values", function, LABELS)
    assert model.evaluate(samples).means == expected.evaluate(same).means


def test_every_loss_goes_by_its_class_name_too():
    from fedray.models.loss_domains import NOT_USABLE, PYTORCH
    from fedray.models.loss_names import TORCH_CLASSES

    for name, function in TORCH_CLASSES.items():
        assert hasattr(nn, name)
        assert hasattr(functional, function)
        assert (function in PYTORCH) != (function in NOT_USABLE)
    assert set(PYTORCH) <= set(TORCH_CLASSES.values())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("KLDivLoss", "loss KLDivLoss cannot be used: its mean"),
        ("BCEWithLogitLoss", "unknown loss.*model .the model's own., or file.py:func"),
        ("torch.optim.MSELoss", "unknown loss 'torch.optim.MSELoss'"),
        ("absent.py:loss", "cannot read loss .*absent.py: no file there"),
        ("nets.py:nope", "no 'nope' in loss"),
    ],
)
def test_unknown_losses_are_mistakes_in_the_config(join, tmp_path, loss, message):
    loss = f"{tmp_path}/{loss}" if ".py" in loss else loss
    config = FederationConfig(architecture=f"{tmp_path}/nets.py:values", loss=loss)
    (problem,) = models.named("pytorch").problems(config)
    assert re.search(message, problem), problem


# one's own


@pytest.mark.parametrize(
    ("loss", "args", "factor"),
    [("absolute", {}, 1), ("scaled", {"scale": 2.0}, 2), ("Scaled", {"scale": 3.0}, 3),
     ("Scaled", {}, 1), ("Plain", {}, 1), ("made", {}, 1)],
)  # fmt: skip
def test_a_loss_of_ones_own_is_a_function_or_makes_one(join, loss, args, factor):
    y = X[:, :3] * 2
    model, samples = join("values", f"own:{loss}", y, loss_args=args)
    expected = factor * np.abs(model.module(samples.x).detach().numpy() - y).mean()
    assert model.evaluate(samples).means == (pytest.approx(expected, rel=1e-5), None)
    assert train(model, samples) == pytest.approx(expected, rel=1e-5)
    start = {name: array.copy() for name, array in model.weights().items()}
    train(model, samples)
    assert any(not np.array_equal(start[n], a) for n, a in model.weights().items())


def test_a_loss_of_ones_own_gets_all_that_the_model_returns_or_what_counts(join):
    model, samples = join("variational", "own:elbo", None)
    assert math.isfinite(train(model, samples))
    model, samples = join("in_tuple", "own:absolute", X[:, :3])  # takes one output
    expected = np.abs(outputs(model, X).numpy() - X[:, :3]).mean()
    assert model.evaluate(samples).means[0] == pytest.approx(expected, rel=1e-5)
    model, samples = join("in_tuple", "own:absolute", X[:, :3], loss_args={"output": 1})
    expected = np.abs(2 * outputs(model, X).numpy() - X[:, :3]).mean()
    assert model.evaluate(samples).means[0] == pytest.approx(expected, rel=1e-5)


def test_a_loss_of_ones_own_may_have_targets_in_a_dict(join):
    y = {"label": LABELS, "size": X[:, 0]}
    model, samples = join("two", "own:of_both", y)
    assert math.isfinite(train(model, samples))
    with pytest.raises(DataError, match=r"targets of .label: .* cross_entropy"):
        join("two", CE, y)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("each", r"a tensor of shape \[16, 3\] from the loss .*each.*loss.mean"),
        ("as_float", "a float from the loss.*one number, the mean"),
        ("nan", "NaN or infinity from the loss"),
        ("broken", r"from the loss .*nets.py:broken: .*output of float32\[3\]"),
    ],
)
def test_what_a_loss_of_ones_own_gives_is_looked_at_before_round_1(join, loss, message):
    with pytest.raises(DataError, match=message):
        join("values", f"own:{loss}", X[:, :3])


@pytest.mark.parametrize(
    ("loss", "args", "message"),
    [
        ("one_argument", {}, "too many positional.*function of two arguments"),
        ("three", {}, "missing a required argument: 'more'.*of two arguments"),
        ("number", {}, "'int' object is not callable"),
        ("scaled", {"factor": 1}, "with loss_args factor: .*unexpected keyword"),
        ("Scaled", {"factor": 1}, "with loss_args factor: .*unexpected keyword"),
        ("Trained", {}, "has parameters to train: put them into the model"),
    ],
)
def test_a_loss_that_is_none_is_an_error_when_the_model_is_made(
    join, loss, args, message
):
    with pytest.raises(ConfigError, match=message):
        join("values", f"own:{loss}", X[:, :3], loss_args=args)


def test_a_loss_without_a_gradient_fails_the_training_step_before_round_1(join):
    model, samples = join("values", "own:detached", X[:, :3])
    weights = {name: array.copy() for name, array in model.weights().items()}
    with pytest.raises(TrialFailed, match="in the gradients of the model"):
        model.try_training("party a", weights, samples, [8])


# the model's own


@pytest.mark.parametrize(
    "net", ["own_object", "own_dict", "own_tuple", "own_last", "own_number"]
)
def test_a_model_may_give_its_own_loss(join, net):
    model, samples = join(net, "model", LABELS)
    out = outputs(model, X)
    expected = functional.cross_entropy(out, torch.from_numpy(LABELS)).item()
    assert model.evaluate(samples).means == (pytest.approx(expected), None)
    assert train(model, samples) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        ("own_none", "returns a dict; needed its own loss, one number"),
        ("own_each", r"whose loss is a tensor of shape \[16\]"),
        ("values", "labels=.*loss: model.*unexpected keyword argument 'labels'"),
    ],
)
def test_a_model_without_a_loss_of_its_own_is_an_error(join, net, message):
    with pytest.raises(DataError, match=message):
        join(net, "model", LABELS)


def test_a_model_that_needs_no_targets_gives_its_own_loss(join):
    model, samples = join("own_code", "model", None)
    expected = ((outputs(model, X).numpy() - X) ** 2).mean()
    assert model.evaluate(samples).means == (pytest.approx(expected, rel=1e-5), None)
    assert train(model, samples) == pytest.approx(expected, rel=1e-5)


# no targets


def test_without_targets_the_inputs_are_the_targets(join):
    model, samples = join("code", "mse_loss", None)
    expected = ((outputs(model, X).numpy() - X) ** 2).mean()
    assert model.evaluate(samples).means == (pytest.approx(expected, rel=1e-5), None)
    assert samples.y.data_ptr() == samples.x.data_ptr()  # no copy
    assert train(model, samples) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(DataError, match="no targets, so that the inputs are the tar"):
        join("values", "mse_loss", None)
    with pytest.raises(DataError, match="no targets, so that the inputs are the tar"):
        join("values", None, None)


def test_parties_train_stacked_with_arguments_that_mean_the_same(join):
    y = np.eye(3)[LABELS]
    for args, is_stacked in (
        ({"label_smoothing": 0.1}, True),
        ({"weight": [1, 2, 3]}, 0),
    ):
        model, samples = join("values", CE, LABELS, loss_args=args)
        parts = [PartySlice(np.arange(10), 1), PartySlice(np.arange(10, 20), 2)]
        weights = {name: array.copy() for name, array in model.weights().items()}
        losses = np.concatenate(
            [loss for loss, _ in model.train_each(weights, parts, samples)]
        )
        assert (model._stack is not None) == is_stacked
        model.load(weights)
        assert losses[0] == pytest.approx(model.train(samples, parts[0]), rel=1e-4)
    model, samples = join("values", "own:absolute", y)
    list(model.train_each(weights, parts, samples))
    assert model._stack is None

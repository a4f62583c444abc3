"""`fedray.run` with models, data and code as Python objects instead of files."""

import functools
import textwrap
import threading

import numpy as np
import pytest
import torch
from torch import nn

import fedray
from fedray.cli import main
from fedray.errors import RunFolderError
from fedray.federation.in_memory import take_objects
from fedray.federation.live_code import PICKLER, code_settings
from fedray.models.pytorch.live import pack, unpack
from fedray.report import result_html
from fedray.user_code.code_text import code_text

SCALE = 2.0


class Net(nn.Module):
    def __init__(self, hidden: int = 4):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(8, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, 2)
        )
        self.register_buffer("shift", torch.full((8,), 0.5), persistent=False)

    def forward(self, x):
        return self.layers(x - self.shift)


class Locked(Net):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class Half:
    def get_weights(self): ...

    def train(self): ...


class NoData:
    def __init__(self, path): ...


class OwnOptimizer(torch.optim.SGD):
    pass


class Means:
    """A classifier by the nearest mean of a class."""

    def __init__(self, n_classes):
        self.means = np.zeros((n_classes, 8))

    def get_weights(self):
        return {"means": self.means}

    def set_weights(self, weights):
        self.means = weights["means"]

    def train(self, data, context):
        x, y = data
        labels = range(len(self.means))
        self.means = np.stack([x[y == label].mean(axis=0) for label in labels])
        return {"loss": 0.0}

    def predict(self, x):
        return ((x[:, None] - self.means) ** 2).sum(-1).argmin(1)

    def evaluate(self, data, context):
        x, y = data
        return {"accuracy": float((self.predict(x) == y).mean()), "n_samples": len(y)}


def scaled_loss(output, target):
    return SCALE * nn.functional.cross_entropy(output, target)


def read_numbers(path):
    rows = samples(60, seed=int(path.rpartition("-")[2]))
    return rows, samples(20, seed=9)


def samples(n, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 8)).astype("float32")
    return x, (x[:, 0] > 0).astype("int64")


def net(seed=0, **arguments):
    torch.manual_seed(seed)
    return Net(**arguments)


def frame(columns, **values):
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame({name: range(10) for name in columns.split()} | values)


X, Y = samples(40)
WRONG = {
    "no model": ({"model": 3}, "model is a builtins.int: a torch.nn.Module"),
    "a class": ({"model": Net}, "model=Net(...), or architecture=Net"),
    "a function": ({"model": scaled_loss}, "or architecture=scaled_loss"),
    "half a model": ({"model": Half()}, "it lacks set_weights, evaluate"),
    "a lock": ({"model": Locked()}, "(its lock) cannot be sent to parties"),
    "scripted": ({"model": torch.jit.script(nn.Linear(8, 2))}, "cannot be sent to"),
    "no sizes": ({"model": nn.Sequential(nn.LazyLinear(2))}, "layer 0 has no size yet"),
    "two models": ({"model_file": "m.pt"}, "model is given, and model_file too"),
    "lengths": ({"parties": {"a": (X, Y[:3])}}, "of party a: got 40 samples x and 3"),
    "three": ({"parties": {"a": (1, 2, 3)}}, "data of party a: got a tuple of 3"),
    "None": ({"parties": {"a": None}}, "data of party a: got a NoneType"),
    "keys": ({"parties": {"a": {"x": X, "y": Y}}}, "a mapping with 'x', 'y'"),
    "no train": ({"parties": {"a": {"test": (X, Y)}}}, "a mapping without 'train'"),
    "inputs": ({"parties": {"a": ({"p": X, "q": X[:3]}, Y)}}, "of 3 and 40 samples"),
    "NaN": ({"parties": {"a": (X * np.nan, Y)}}, "of party a: got NaN or infinity"),
    "empty": ({"parties": {"a": (X[:0], Y[:0])}}, "of party a: got no samples"),
    "text": ({"parties": {"a": (X, ["u"] * 40)}}, "of party a: got y that holds text"),
    "tests": ({"test": (X,)}, "data for tests: got a tuple of 1"),
    "two tests": ({"test": (X, Y), "test_data": "t"}, "test and test_data are both"),
    "partition": ({"partition": (X, Y)}, 'such as {"source": (x, y)}'),
    "lambda": ({"data_handler": lambda path: 1}, "data_handler is a lambda"),
    "handler": ({"data_handler": NoData}, "data_handler NoData has no get_data()"),
    "loss": ({"loss": 3}, "loss is a builtins.int"),
    "optimizer": ({"optimizer": OwnOptimizer}, "optimizer is OwnOptimizer"),
    "a positional model": ({"config": Net()}, "a model is given as model=..."),
    "one party": ({"parties": (X, Y)}, "parties is the data of one party (a tuple)"),
    "an array": ({"parties": X}, "parties is the data of one party (a ndarray)"),
    "a handler": ({"data_handler": "csv"}, "data_handler reads files, and all data"),
    "test parts": ({"test": {"test": (X, Y)}}, "a mapping with ['test']; needed test"),
    "by": ({"partition": {"source": X, "by": "h"}}, "a ndarray without a column 'h'"),
    "metrics": ({"metrics": ["f1_makro"]}, "did you mean 'f1_macro'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_used_is_told_before_ray_starts(name, tmp_path):
    wrong, message = WRONG[name]
    parties = {} if "partition" in wrong else {"parties": {"a": (X, Y), "b": (X, Y)}}
    model = {} if "model_file" not in wrong and "model" in wrong else {"model": Net()}
    with pytest.raises(fedray.ConfigError) as caught:
        fedray.run(run_dir=tmp_path / "run", **(model | parties | wrong))
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_frames_of_other_columns_are_told_by_party(tmp_path):
    for other, message in [
        ("u v", "of party b: got a DataFrame with 'u', 'v'; needed one column"),
        ("u w target", "of party b: got no column 'v' and a column 'w' more"),
        ("v u target", "of party b: got the same columns in another order"),
    ]:
        parties = {"a": frame("u v target"), "b": frame(other)}
        with pytest.raises(fedray.ConfigError) as caught:
            fedray.run(model=Net(), parties=parties, run_dir=tmp_path / "run")
        assert message in str(caught.value)


def test_a_list_of_inputs_is_a_tuple_of_them_and_one_of_samples_an_array():
    parties = {"inputs": ([X, X[:, :3]], Y), "samples": ([*X], Y)}
    handler = take_objects(None, {"parties": parties}).handler
    x, _ = handler.open("in memory/inputs").get_data()[0]
    assert [part.shape for part in x] == [(40, 8), (40, 3)]
    x, _ = handler.open("in memory/samples").get_data()[0]
    assert np.array_equal(x, X)


def test_missing_inputs_are_taken_where_something_fills_them_in():
    x = np.where(X > 1, np.nan, X)
    for filled in ({"model_type": "sklearn"}, {"normalize": "federated"}):
        call = {"parties": {"a": (x, Y)}, "test": (x, Y), **filled}
        (got, _), _ = take_objects(None, call).handler.open("in memory/a").get_data()
        assert np.isnan(got).sum() == np.isnan(x).sum() > 0
        with pytest.raises(fedray.ConfigError, match="NaN or infinity in x"):
            take_objects(None, call | {"parties": {"a": (X * np.inf, Y)}})


def test_a_frame_is_cut_by_a_column():
    source = {"train": frame("u", target=[0] * 10, ward=[3, 12] * 5)}
    source["test"] = frame("u", target=[1] * 10, ward=[12] * 10)
    given = take_objects(None, {"partition": {"source": source, "by": "ward"}})
    assert given.settings["partition"]["values"] == ["3", "12"]
    handler = given.handler.open(given.settings["partition"]["source"])
    (x, _), _ = handler.get_data()
    assert x.tolist() == [[n] for n in range(10)]
    train, test = handler.get_column("ward")
    assert (train.tolist(), test.tolist()) == (["3", "12"] * 5, ["12"] * 10)


def test_a_class_of_ones_own_is_given_frames_as_they_are():
    for columns in ({}, {"ward": ["n"] * 10}):  # of numbers, and of others
        own = frame("u target", **columns)
        for given in (own, {"train": own, "test": own}):
            call = {"model": Means(2), "parties": {"a": given}}
            data = take_objects(None, call).handler.open("in memory/a").get_data()
            assert data[0] is own
            assert data[1] is (None if given is own else own)


def test_a_packed_module_has_all_but_the_values_of_its_state_dict():
    model = net(hidden=1000)
    packed = pack(model, PICKLER)
    again = unpack(packed)
    assert len(packed) < 30_000 < sum(p.nbytes for p in model.parameters())
    assert type(again) is Net
    assert torch.equal(again.shift, model.shift)
    assert {n: t.shape for n, t in again.state_dict().items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }
    again.load_state_dict(model.state_dict())
    x = torch.ones(3, 8)
    assert torch.equal(again.eval()(x), model.eval()(x))


def test_tied_parameters_stay_one_in_a_packed_module():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model[1].weight.requires_grad_(False)
    again = unpack(pack(model, PICKLER))
    assert again[0].weight is again[1].weight
    assert not again[0].weight.requires_grad


def test_what_a_framework_has_under_a_name_becomes_that_name():
    optimizer = torch.optim.SGD(Net().parameters(), lr=0.25, momentum=0.5)
    assert code_settings("optimizer", optimizer) == {
        "optimizer": "SGD", "optimizer_args": {"momentum": 0.5}, "learning_rate": 0.25
    }  # fmt: skip
    assert code_settings("optimizer", torch.optim.Adam) == {"optimizer": "Adam"}
    loss = nn.functional.cross_entropy
    assert code_settings("loss", loss) == {"loss": "cross_entropy"}
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))
    assert code_settings("loss", loss) == {
        "loss": "CrossEntropyLoss", "loss_args": {"weight": [1.0, 3.0]}
    }  # fmt: skip


def test_the_text_of_code_has_the_values_of_its_global_names(monkeypatch):
    before = code_text(scaled_loss)
    assert "return SCALE * nn" in before
    assert code_text(functools.partial(scaled_loss, target=1)) != before
    monkeypatch.setitem(scaled_loss.__globals__, "SCALE", 3.0)
    assert code_text(scaled_loss) != before


HANDLER = """
    import numpy as np

    class Arrays:
        def __init__(self, path):
            self.file = np.load(path)

        def get_data(self):
            file = self.file
            return (file["x"], file["y"]), (file["x_test"], file["y_test"])
"""


def test_one_data_set_gives_the_same_bits_from_python_and_from_yaml(cluster, tmp_path):
    (x, y), (x_test, y_test) = samples(90), samples(30, seed=1)
    np.savez(tmp_path / "all.npz", x=x, y=y, x_test=x_test, y_test=y_test)
    (tmp_path / "arrays.py").write_text(textwrap.dedent(HANDLER))
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cut = {"scheme": "dirichlet", "alpha": 0.5}
    source = {"train": (x, y), "test": (x_test, y_test)}
    shared = {"rounds": 2, "num_parties": 5, "learning_rate": 0.1, "party_cpus": 0.1}
    shared |= {"party_dir": str(tmp_path)}
    python = fedray.run(
        model=model,
        partition={"source": source, **cut},
        run_dir=tmp_path / "python",
        **shared,
    )
    yaml = fedray.run(
        architecture=Net,
        model_file=str(python.folder / "start_model.pt"),
        partition={"source": str(tmp_path / "all.npz"), **cut},
        data_handler=f"{tmp_path}/arrays.py:Arrays",
        run_dir=tmp_path / "yaml",
        **shared,
    )
    assert python.loss == yaml.loss is not None
    ours, theirs = python.weights(), yaml.weights()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    trained = python.load().module
    assert type(trained) is Net
    assert not torch.equal(trained.layers[0].weight.cpu(), before["layers.0.weight"])


def test_the_same_call_goes_on_and_the_command_line_says_why_it_cannot(
    cluster, tmp_path, capsys
):
    call = {
        "parties": {"a": samples(40), "b": {"train": samples(30, 1), "test": (X, Y)}},
        "learning_rate": 0.1, "party_dir": str(tmp_path), "party_cpus": 0.1,
        "loss": scaled_loss,
    }  # fmt: skip
    whole = fedray.run(model=net(), rounds=3, run_dir=tmp_path / "whole", **call)
    folder = tmp_path / "cut"
    fedray.run(model=net(), rounds=1, run_dir=folder, **call)
    resumed = fedray.run(model=net(), rounds=3, run_dir=folder, resume=True, **call)
    assert resumed.weights().keys() == whole.weights().keys()
    for name, array in whole.weights().items():
        assert resumed.weights()[name].tobytes() == array.tobytes(), name
    assert "in memory/a" in (folder / "config.yaml").read_text()
    call["model"] = net(seed=1)
    with pytest.raises(RunFolderError, match="other values than the run began with"):
        fedray.run(rounds=4, run_dir=folder, resume=True, **call)
    config = str(folder / "config.yaml")
    fake = fedray.user_code.live._OBJECTS
    kept, new = dict(fake), {}
    loss = resumed.load().evaluate(X, Y).loss
    fake.clear()  # as in another process
    try:
        assert main(["run", config, "--resume", "--run-dir", str(folder)])
        with pytest.raises(RunFolderError, match=r"load\(..., model=...\) takes such"):
            fedray.load(folder)
        with pytest.raises(RunFolderError, match=r"load\(..., loss=...\) takes such"):
            fedray.load(folder, model=net())
        again = fedray.load(folder, model=net(seed=1), loss=scaled_loss)
        assert again.evaluate(X, Y).loss == loss
    finally:
        fake |= kept | new
    told = capsys.readouterr().err
    assert "given in memory to fedray.run in Python" in told
    assert "resume=True" in told


def test_classes_and_functions_are_taken_as_they_are(cluster, tmp_path):
    common = {"rounds": 1, "party_cpus": 0.1, "party_dir": str(tmp_path)}
    result = fedray.run(
        architecture=functools.partial(Net, 3),
        data_handler=read_numbers,
        parties={"a": "table-1", "b": "table-2"},
        run_dir=tmp_path / "handler",
        **common,
    )
    assert result.weights()["layers.0.weight"].shape == (3, 8)
    parties = [{"train": samples(60, seed), "test": (X, Y)} for seed in (1, 2)]
    result = fedray.run(
        model=Means(2), parties=parties, run_dir=tmp_path / "own", **common
    )
    x, y = np.concatenate([p["train"][0] for p in parties]), samples(60, 1)[1]
    y = np.concatenate([p["train"][1] for p in parties])
    assert result.weights()["means"].shape == (2, 8)
    assert result.accuracy > 0.8
    assert len(x) == len(y) == 120


def test_a_result_without_tests_says_so(cluster, tmp_path):
    pytest.importorskip("pandas")
    result = fedray.run(
        model=net(), parties={"a": frame("u v w x y z s t", target=[0, 1] * 5)},
        run_dir=tmp_path / "run", party_dir=str(tmp_path), party_cpus=0.1,
    )  # fmt: skip
    assert result.loss is None
    assert "No test samples" in result._repr_html_()
    assert repr(result) == f"Result(folder='{result.folder}', rounds=1, " + (
        "loss=None, accuracy=None)"
    )
    table = result.to_pandas()
    assert table["round"].tolist() == [1]


def test_an_empty_history_is_shown():
    assert "0 rounds" in result_html("<b>", [])
    assert "&lt;b&gt;" in result_html("<b>", [])

"""The classes that docs/custom-models.md shows, each where its library is there."""

import multiprocessing
import re
from pathlib import Path

import numpy as np
import pytest
from support.local_rounds import federation, train

import fedray

PAGE = Path(__file__).parent.parent / "docs" / "custom-models.md"
FILE = re.compile(r"^```\w+\n# (\S+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
EXAMPLES = {  # file -> its libraries, its handler
    "my_loop.py": ((), "my_readings.py:Readings"),
    "lightning_model.py": (("lightning",), "my_readings.py:Readings"),
    "trainer_model.py": (
        ("transformers", "accelerate", "datasets"),
        "token_files.py:Tokens",
    ),
    "jax_model.py": (("jax",), "my_readings.py:Readings"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files of the page, and two parties' data."""
    for name, text in FILE.findall(PAGE.read_text(encoding="utf-8")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    rng = np.random.default_rng(0)
    for name in "ab":
        x = rng.normal(size=(120, 8)).astype("float32")
        labels = (x[:, 0] > 0).astype("int64")
        tokens = np.where(labels[:, None], 7, rng.integers(10, 100, (120, 6)))
        np.savez(
            tmp_path / f"{name}.npz",
            x=x,
            y=labels,
            input_ids=tokens,
            attention_mask=np.ones((120, 6), int),
            labels=labels,
        )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("file", EXAMPLES)
def test_the_class_on_the_page_learns_and_repeats_its_bits(file, folder):
    libraries, _ = EXAMPLES[file]
    for library in libraries:
        pytest.importorskip(library)
    if "jax" not in libraries:
        learn(file)
        return
    # its threads do not go with the forks of other tests
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(learn, (file,))


def learn(file: str) -> None:
    """Train a party by the class in a file, twice."""
    settings = {
        "model_type": f"{file}:Classifier",
        "data_handler": EXAMPLES[file][1],
        "parties": [{"name": "a", "data": "a.npz"}],
        "epochs": 5,
        "learning_rate": 0.01 if file == "trainer_model.py" else 0.1,
    }
    weights, parties, _ = federation(settings)
    parties["a"].join(weights)
    before = parties["a"].evaluate(weights).scores
    first = {n: w.copy() for n, w in train(parties["a"], 1, weights).weights.items()}
    second = train(parties["a"], 1, weights).weights
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], strict=True)
    after = parties["a"].evaluate(first).scores
    assert after.loss < 0.9 * before.loss
    assert after.accuracy > before.accuracy


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_trees_of_two_parties_vote_in_an_ensemble(folder):
    pytest.importorskip("xgboost")
    result = fedray.run(
        "trees.yaml", run_dir=folder / "run", party_dir=str(folder / "p")
    )
    together = fedray.load(result.folder)
    rng = np.random.default_rng(9)
    x = rng.normal(size=(200, 8)).astype("float32")
    shares = together.predict(x)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-6)
    assert (shares.argmax(1) == (x[:, 0] > 0)).mean() > 0.9
    own = together.each(x)
    np.testing.assert_allclose(shares, (own["a"] + own["b"]) / 2)
    kept = fedray.load(together.save(folder / "kept"))
    np.testing.assert_array_equal(kept.predict(x), shares)

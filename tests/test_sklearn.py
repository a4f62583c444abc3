"""scikit-learn models: exact sums, federated pipelines, files, one party's labels."""

import importlib
import pickle
import textwrap
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the extra sklearn is not installed")
pytest.importorskip("skops", reason="the extra sklearn is not installed")

import skops.io
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.naive_bayes import GaussianNB

import fedray
from fedray import fusion, models
from fedray.config import FederationConfig
from fedray.errors import ConfigError, DataError, ModelFileError, TrialFailed
from fedray.messages import Update
from fedray.models import PartySlice
from fedray.models.sklearn import completion
from fedray.models.sklearn.estimators import ESTIMATORS, EXACT, NOT_USABLE
from fedray.models.sklearn.files import TRUSTED
from fedray.nested import Arrays
from fedray.offline import fuse
from fedray.survey import DataCodes, DataSurvey
from fedray.weights import cast

ADAPTER = models.named("sklearn")
NOBODY = np.arange(0)
CLASSIFIERS = [n for n in ESTIMATORS if n.endswith(("Classifier", "NB", "Perceptron"))]
CLASSIFIERS.append("LogisticRegression")


def table(n=240, seed=0):
    """Columns of unlike scales, three classes, a value of all of them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)) * [1, 2, 3, 4] + [0, 100, -5, 1000]
    labels = (x[:, 0] > 0).astype(int) + (x[:, 2] > -4)
    values = x @ [1, 2, -1, 0.5] + 7 + rng.normal(size=n)
    return x, labels, values


def data_for(name, n=240):
    x, labels, values = table(n)
    if name in ("MultinomialNB", "ComplementNB", "BernoulliNB"):
        x = np.floor(np.abs(x))
    if name in ("PoissonRegressor", "GammaRegressor"):
        return x / 1000, np.abs(values) + 1
    return x, labels if name in CLASSIFIERS else values


def cut(x, y, at=(60,)):
    return list(zip(np.split(x, at), np.split(y, at), strict=True))


def config_of(name, **settings):
    if name == "MiniBatchKMeans":
        settings.setdefault("architecture_args", {"n_clusters": 3})
    return FederationConfig(model_type="sklearn", architecture=name, **settings)


class Federation:
    """Rounds of fedavg in this process, as parties and aggregator make them."""

    def __init__(self, config, parties, codes=None):
        self.config, self.parties = config, parties
        blueprint, weights = ADAPTER.read(config)
        self.n_surveys = 0
        while not blueprint.schema:
            counts = [
                completion.count(blueprint, Arrays(x, y), Arrays(x[:0], y[:0]), f"p{i}")
                for i, (x, y) in enumerate(parties)
            ]
            survey = DataSurvey.merge(counts)
            survey = DataSurvey.from_json(survey.to_json())  # as it is saved
            blueprint, weights = completion.complete(config, blueprint, survey, codes)
            self.n_surveys += 1
        self.blueprint, self.weights = blueprint, weights
        self.models = [ADAPTER.make(blueprint, config, "cpu") for _ in parties]
        self.samples = [
            model.ready(Arrays(x, y))
            for model, (x, y) in zip(self.models, parties, strict=True)
        ]
        for model, samples in zip(self.models, self.samples, strict=True):
            model.probe("here", samples)

    def run(self, rounds=1):
        for number in range(1, rounds + 1):
            updates = [
                Update(self.train(i, number), len(samples))
                for i, samples in enumerate(self.samples)
            ]
            fused = fusion.combine(fusion.named("fedavg"), iter(updates)).weights
            self.weights = cast(fused, self.blueprint.schema)
        return self

    def train(self, i, number):
        samples = self.samples[i]
        part = PartySlice(np.arange(len(samples)), 10 * number + i, f"p{i}", number)
        ((_, stack),) = self.models[i].train_each(self.weights, [part], samples)
        return {name: array[0].copy() for name, array in stack.items()}

    def fitted(self, tmp_path):
        """The model that plain scikit-learn and skops read."""
        file = tmp_path / "global_model.skops"
        ADAPTER.write(self.blueprint, self.weights, file)
        return skops.io.load(file, trusted=skops.io.get_untrusted_types(file=file))


def fit(name, x, y, **parameters):
    kind = getattr(importlib.import_module(ESTIMATORS[name].module), name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(**parameters).fit(x, y)


def attributes(estimator):
    names = "coef_ intercept_ theta_ var_ epsilon_ class_prior_ class_log_prior_ "
    names += "feature_log_prob_ class_count_ feature_count_"
    return {n: getattr(estimator, n) for n in names.split() if hasattr(estimator, n)}


@pytest.mark.parametrize("rounds", [1, 10])
@pytest.mark.parametrize(
    "name", [n for n, k in ESTIMATORS.items() if k.fusion == EXACT]
)
def test_sums_give_the_model_of_all_samples_in_one_round_and_in_ten(
    name, rounds, tmp_path
):
    x, y = data_for(name)
    federation = Federation(config_of(name), cut(x, y, (30, 100))).run(rounds)
    ours, central = federation.fitted(tmp_path), fit(name, x, y)
    for attribute, value in attributes(central).items():
        np.testing.assert_allclose(getattr(ours, attribute), value, rtol=1e-9)
    np.testing.assert_allclose(ours.predict(x), central.predict(x), rtol=1e-9)


def test_gaussian_classes_that_one_party_alone_has_are_exact_too(tmp_path):
    x, labels, _ = table()
    order = np.argsort(labels, kind="stable")  # each party has one class or two
    federation = Federation(
        config_of("GaussianNB"), cut(x[order], labels[order], (90,))
    )
    ours, central = federation.run().fitted(tmp_path), GaussianNB().fit(x, labels)
    for name in ("theta_", "var_", "epsilon_", "class_prior_"):
        np.testing.assert_allclose(
            getattr(ours, name), getattr(central, name), rtol=1e-9
        )


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_label_that_one_party_alone_has_is_a_class_of_all(name, tmp_path):
    x, _ = data_for(name)
    labels = (x[:, 0] > np.median(x[:, 0])).astype(int) * 3 + 1  # 1 and 4
    labels[0] = 9  # of the first party alone
    federation = Federation(config_of(name), cut(x, labels)).run(2)
    ours = federation.fitted(tmp_path)
    assert ours.classes_.tolist() == [1, 4, 9]
    assert set(ours.predict(x)) <= {1, 4, 9}
    loss, accuracy = federation.models[0].evaluate(federation.samples[0]).means
    assert np.isfinite(loss)
    assert 0 <= accuracy <= 1


@pytest.mark.parametrize("name", ESTIMATORS)
def test_files_of_every_estimator_predict_alike_in_plain_scikit_learn(name, tmp_path):
    x, y = data_for(name)
    federation = Federation(config_of(name), cut(x, y)).run(2)
    model, ours = federation.models[0], federation.fitted(tmp_path)
    model.load(federation.weights)
    file = tmp_path / "global_model.skops"
    assert set(skops.io.get_untrusted_types(file=file)) <= set(TRUSTED)
    blueprint, weights = ADAPTER.read(FederationConfig(
        model_type="sklearn", model_file=str(file)
    ))  # fmt: skip
    again = ADAPTER.make(blueprint, federation.config, "cpu")
    again.load(weights)
    np.testing.assert_allclose(again.predict(x), model.predict(x), rtol=1e-9)
    if name in CLASSIFIERS:
        chosen = model.predict(x).argmax(1)
        np.testing.assert_array_equal(ours.predict(x), chosen)
    else:
        np.testing.assert_allclose(ours.predict(x), model.predict(x), rtol=1e-12)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_round_trained_again_in_another_process_gives_the_same_bits(name):
    x, y = data_for(name)
    config = config_of(name, epochs=1 if not ESTIMATORS[name].has_epochs else 2)
    first, second = (Federation(config, cut(x, y)) for _ in range(2))
    first.run(2)
    second.weights = first.weights  # as after a kill: nothing of rounds before
    for name, array in first.train(1, 3).items():
        assert array.tobytes() == second.train(1, 3)[name].tobytes()


def test_logistic_regression_without_classes_gets_near_the_central_model():
    x, labels, _ = table()
    x = (x - x.mean(0)) / x.std(0)
    order = np.argsort(labels, kind="stable")
    x, labels = x[order], labels[order]
    config = config_of("LogisticRegression", epochs=5)
    federation = Federation(config, cut(x, labels, (80, 160))).run(30)
    model = federation.models[0]
    model.load(federation.weights)
    loss, accuracy = model.evaluate(model.ready(Arrays(x, labels))).means
    central = LogisticRegression().fit(x, labels)
    assert loss == pytest.approx(log_loss(labels, model.probabilities(x)))
    assert accuracy > central.score(x, labels) - 0.15


def write_pipelines(tmp_path):
    file = tmp_path / "pipelines.py"
    file.write_text(
        textwrap.dedent("""
        from sklearn.compose import make_column_transformer
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.feature_selection import VarianceThreshold
        from sklearn.impute import SimpleImputer
        from sklearn.linear_model import LogisticRegression, SGDClassifier
        from sklearn.pipeline import make_pipeline, make_union
        from sklearn.preprocessing import (
            MinMaxScaler, Normalizer, OneHotEncoder, PolynomialFeatures, StandardScaler
        )

        def scaled():
            return make_pipeline(
                SimpleImputer(), StandardScaler(), SGDClassifier(loss="log_loss")
            )

        def columns():
            numbers = make_pipeline(
                SimpleImputer(add_indicator=True), StandardScaler(),
                PolynomialFeatures(2), StandardScaler(),
            )
            categories = make_pipeline(
                SimpleImputer(strategy="most_frequent"),
                OneHotEncoder(handle_unknown="ignore"),
            )
            split = make_column_transformer(
                (numbers, [0, 1]), (categories, [2, 3]), remainder="passthrough"
            )
            both = make_union(StandardScaler(), Normalizer())
            return make_pipeline(
                split, VarianceThreshold(), both, LogisticRegression()
            )

        def minmax():
            return make_pipeline(MinMaxScaler(), SGDClassifier())

        def forest():
            return RandomForestClassifier()

        def named():
            split = make_column_transformer((StandardScaler(), ["age", "size"]))
            return make_pipeline(split, SGDClassifier())

        def endless():
            return make_pipeline(StandardScaler())
    """)
    )
    return file


def tables_with_gaps(n=300):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, 5)) * [1, 50, 1, 1, 3]
    x[:, 2], x[:, 3] = rng.integers(0, 4, n), rng.integers(0, 3, n)
    y = (x[:, 0] + x[:, 2] > 1).astype(int)
    x[rng.random(x.shape) < 0.1] = np.nan
    x[:, 4] = np.nan_to_num(x[:, 4])
    return x, y


@pytest.mark.parametrize("name", ["scaled", "columns"])
def test_steps_are_fitted_as_on_all_samples_together(name, tmp_path):
    file, (x, y) = write_pipelines(tmp_path), tables_with_gaps()
    config = config_of(f"{file}:{name}", epochs=3)
    federation = Federation(config, cut(x, y, (50, 120))).run(3)
    spec = importlib.util.spec_from_file_location("pipelines", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    central, ours = getattr(module, name)().fit(x, y), federation.fitted(tmp_path)
    np.testing.assert_allclose(
        ours[:-1].transform(x), central[:-1].transform(x), rtol=1e-9, atol=1e-9
    )
    assert ours.score(x, y) > 0.8
    model = federation.models[0]
    model.load(federation.weights)
    np.testing.assert_array_equal(ours.predict_proba(x), model.probabilities(x))
    assert clone(ours).get_params().keys() == central.get_params().keys()


def test_missing_values_without_an_imputer_are_an_error_that_names_the_column():
    x, y = tables_with_gaps()
    with pytest.raises(DataError, match=r"missing values \(NaN\) in column 0, 1, 2, 3"):
        Federation(config_of("SGDClassifier"), [(x, y)])


def test_clusters_start_from_no_sample_and_keep_a_centre_without_samples():
    x, _, _ = table()
    federation = Federation(config_of("MiniBatchKMeans"), cut(x, x[:, 0]))
    centers = federation.models[0].estimator.cluster_centers_
    assert not (centers[:, None] == x).all(-1).any()
    far = np.array([[0.0, 0, 0, 0], [1e6, 1e6, 1e6, 1e6]])
    args = {"n_clusters": 2, "init": far.tolist()}
    config = config_of("MiniBatchKMeans", architecture_args=args, batch_size=1000)
    federation = Federation(config, cut(x, x[:, 0])).run(3)
    federation.models[0].load(federation.weights)
    centers = federation.models[0].estimator.cluster_centers_
    np.testing.assert_allclose(centers, [x.mean(0), far[1]], rtol=1e-9)
    assert federation.models[0].evaluate(federation.samples[0]).means[1] is None


def test_names_of_labels_are_the_classes_of_the_file(tmp_path):
    x, labels, _ = table()
    x = (x - x.mean(0)) / x.std(0)
    codes = DataCodes(labels=("cat", "cow", "dog"))
    args = {"class_weight": {"cow": 2.0}, "loss": "log_loss"}
    config = config_of("SGDClassifier", architecture_args=args)
    federation = Federation(config, cut(x, labels), codes).run()
    ours = federation.fitted(tmp_path)
    assert ours.classes_.tolist() == ["cat", "cow", "dog"]
    assert ours.class_weight == {"cow": 2.0}
    assert federation.models[0].classes == ["cat", "cow", "dog"]
    model = federation.models[0]
    model.load(federation.weights)
    named = np.array(model.classes)[model.predict(x).argmax(1)]
    np.testing.assert_array_equal(named, ours.predict(x))


def problems(**settings):
    return "\n".join(
        ADAPTER.problems(FederationConfig(model_type="sklearn", **settings))
    )


def test_keys_that_an_estimator_does_not_take_are_refused_by_name():
    sgd = {"architecture": "SGDClassifier"}
    assert problems(**sgd, learning_rate=0.1, epochs=3) == ""
    assert "batch_size has no effect with SGDClassifier" in problems(
        **sgd, batch_size=8
    )
    told = problems(
        architecture="GaussianNB", learning_rate=0.1, epochs=2, batch_size=8
    )
    assert [line.split()[0] for line in told.splitlines()] == [
        "learning_rate", "batch_size", "epochs",
    ]  # fmt: skip
    assert problems(architecture="MLPClassifier", batch_size=8, learning_rate=0.1) == ""
    told = problems(architecture="GaussianNB", fusion_algorithm="fedadam")
    assert "fedadam does not go with GaussianNB" in told


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"architecture": "RandomForestClassifier"}, "trees cannot be averaged"),
        ({"architecture": "sklearn.svm.SVC"}, "SGDClassifier is the linear one"),
        ({"architecture": "sklearn.cluster.Birch"}, "a class of your own"),
        ({"architecture": "SGDClasifier"}, "SGDClassifier"),
        ({"architecture": "sklearn.svm.SGDClassifier"}, "sklearn.linear_model.SGD"),
        (
            {"architecture": "SGDClassifier", "architecture_args": {"losss": 1}},
            "losss",
        ),
        (
            {"architecture": "SGDClassifier", "architecture_args": {"loss": "logloss"}},
            "The 'loss' parameter of SGDClassifier must be",
        ),
        (
            {"architecture": "MLPClassifier", "architecture_args": {"solver": "lbfgs"}},
            "take adam or sgd",
        ),
        (
            {
                "architecture": "SGDClassifier",
                "architecture_args": {"early_stopping": True},
            },
            "early_stopping is decided by a party alone",
        ),
        ({"model_file": "nowhere.skops"}, "does not exist"),
    ],
)
def test_what_cannot_be_federated_is_said_in_plain_words(settings, words):
    assert words in problems(**settings)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("minmax", "take StandardScaler"),
        ("forest", "trees cannot be averaged"),
        ("named", r"columns are \['age', 'size'\], needed are their places"),
        ("endless", "ends without an estimator"),
    ],
)
def test_a_pipeline_that_cannot_be_federated_says_which_step(name, words, tmp_path):
    config = config_of(f"{write_pipelines(tmp_path)}:{name}")
    with pytest.raises(ConfigError, match=words):
        ADAPTER.read(config)


def test_advice_names_estimators_that_can_be_federated():
    assert not ESTIMATORS.keys() & NOT_USABLE.keys()


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("SGDClassifier", lambda x, y: (x, y + 0.5), "no whole numbers"),
        ("SGDClassifier", lambda x, y: (x, np.stack([y, y], 1)), "no one-hot rows"),
        ("SGDClassifier", lambda x, y: ({"a": x}, y), "one array"),
        ("SGDClassifier", lambda x, y: (x, None), "no targets"),
        ("MultinomialNB", lambda x, y: (x - 1e6, y), "negative numbers"),
    ],
)
def test_data_that_an_estimator_does_not_take(name, change, words):
    x, labels, _ = table()
    x, y = change(x, labels)
    blueprint, _ = ADAPTER.read(config_of(name))

    def join():
        none = Arrays(np.empty((0, 4)), np.empty(0))
        survey = completion.count(blueprint, Arrays(x, y), none, "party a")
        whole, _ = completion.complete(config_of(name), blueprint, survey, None)
        model = ADAPTER.make(whole, config_of(name), "cpu")
        model.probe("party a", model.ready(Arrays(x, y)))

    with pytest.raises(DataError, match=words):
        join()


def test_one_class_at_all_parties_together_is_an_error():
    x, labels, _ = table()
    with pytest.raises(ConfigError, match="the parties have 1 class together"):
        Federation(config_of("SGDClassifier"), cut(x, labels * 0))


@pytest.mark.parametrize("name", ["SGDRegressor", "MLPRegressor"])
def test_a_training_that_explodes_sends_what_is_not_finite(name):
    x, _, values = table()
    args = {"solver": "sgd"} if name == "MLPRegressor" else {}
    settings = {"learning_rate": 1e300, "architecture_args": args}
    federation = Federation(config_of(name, **settings), [(x, values)])
    sent = federation.train(0, 1).values()
    assert not all(np.isfinite(array).all() for array in sent)


def test_the_trial_says_what_an_estimator_refuses():
    x, _, values = table()
    federation = Federation(config_of("SGDRegressor"), [(x, values)])
    model = federation.models[0]
    model.trainer.estimator.penalty = "l3"
    with pytest.raises(TrialFailed, match="a training step on 240 samples of party a"):
        model.try_training("party a", federation.weights, federation.samples[0], [240])


class NotInScikitLearn:
    pass


def test_a_file_with_types_that_are_not_known_is_not_read(tmp_path):
    estimator = GaussianNB()
    estimator.extra = NotInScikitLearn()
    file = tmp_path / "strange.skops"
    skops.io.dump(estimator, file)
    with pytest.raises(ModelFileError, match="NotInScikitLearn, which are not known"):
        ADAPTER.read(FederationConfig(model_type="sklearn", model_file=str(file)))
    file.write_bytes(b"no zip")
    with pytest.raises(ModelFileError, match=r"skops\.io\.dump"):
        ADAPTER.read(FederationConfig(model_type="sklearn", model_file=str(file)))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", b" " * (100 << 20))
    with pytest.raises(ModelFileError, match="damaged"):
        ADAPTER.read(FederationConfig(model_type="sklearn", model_file=str(file)))


def test_the_table_of_the_docs_is_the_one_of_the_code():
    page = Path(fedray.__file__).parent.parent / "docs" / "scikit-learn.md"
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ][1:]
    told = {
        name: (fusion, epochs, batches, rate)
        for names, fusion, epochs, batches, rate in rows
        for name in names.split(", ")
    }
    words = {True: "yes", False: "no"}
    assert told == {
        name: (
            kind.fusion,
            words[kind.has_epochs],
            words[kind.has_batches],
            kind.learning_rate or "no",
        )
        for name, kind in ESTIMATORS.items()
    }


@pytest.mark.parametrize("name", ["GaussianNB", "Ridge"])
def test_files_of_two_runs_fuse_offline_to_the_model_of_all(name, tmp_path):
    x, y = data_for(name)
    args = {} if name == "GaussianNB" else {"alpha": 0.0, "fit_intercept": False}
    config = config_of(name, architecture_args=args)
    files = []
    for i, (own_x, own_y) in enumerate(cut(x, y, (80,))):
        federation = Federation(config, [(own_x, own_y)]).run()
        files.append(tmp_path / f"{i}.skops")
        ADAPTER.write(federation.blueprint, federation.weights, files[-1])
    fused = tmp_path / "fused.skops"
    fuse(files, "fedavg", ["80", "160"], fused)
    ours, central = skops.io.load(fused), fit(name, x, y, **args)
    for attribute in ("theta_", "class_prior_", "coef_"):
        if hasattr(central, attribute):
            theirs = getattr(central, attribute)
            np.testing.assert_allclose(getattr(ours, attribute), theirs, rtol=1e-6)


def test_a_pipeline_within_a_pipeline_is_federated_too(tmp_path):
    file = tmp_path / "nested.py"
    file.write_text(
        textwrap.dedent("""
        from sklearn.linear_model import SGDClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        def nested():
            inner = make_pipeline(StandardScaler(), SGDClassifier())
            return make_pipeline("passthrough", StandardScaler(), inner)
    """)
    )
    x, labels, _ = table()
    federation = Federation(config_of(f"{file}:nested"), cut(x, labels)).run()
    ours = federation.fitted(tmp_path)
    np.testing.assert_allclose(ours[:-1].transform(x).std(0), 1)
    federation.models[0].load(federation.weights)
    chosen = federation.models[0].predict(x).argmax(1)
    np.testing.assert_array_equal(ours.predict(x), chosen)


def test_labels_that_are_no_class_numbers_come_back_as_they_are():
    x, labels, _ = table()
    signs = np.where(labels > 0, 1, -1)
    federation = Federation(config_of("SGDClassifier"), cut(x, signs)).run()
    assert federation.models[0].class_numbers.tolist() == [-1, 1]
    assert federation.models[0].predict(x).shape == (len(x), 2)


class Pairs:
    """A dataset with places, as torch's."""

    def __init__(self, x, y):
        self.dataset, self.n_samples, self.rows = self, len(x), None
        self.x, self.y = x, y

    def __getitem__(self, place):
        return self.x[place], self.y[place]


def test_a_dataset_is_read_whole():
    x, labels, _ = table()
    config = config_of("GaussianNB")
    blueprint, _ = ADAPTER.read(config)
    none = Arrays(x[:0], labels[:0])
    survey = completion.count(blueprint, Pairs(x, labels), none, "party a")
    blueprint, _ = completion.complete(config, blueprint, survey, None)
    ready = ADAPTER.make(blueprint, config, "cpu").ready(Pairs(x, labels))
    np.testing.assert_array_equal(ready.x, x)
    np.testing.assert_array_equal(ready.y, labels)
    stream = np.broadcast_to(np.int64(0), len(x))  # all samples, which have no places
    np.testing.assert_array_equal(ready.take(stream).x, x)


def test_a_fitted_pipeline_given_in_python_is_trained_on_from_what_it_learned():
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from fedray.models.sklearn.live import read_live

    x, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 0, 1, 1])
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    new = read_live(pipeline, pickle.Pickler)
    assert (new.suffix, new.build is None) == ("", False)
    learned = read_live(pipeline.fit(x, y), pickle.Pickler)
    assert (learned.suffix, learned.build) == (".skops", None)
    assert learned.digest != new.digest


@pytest.mark.parametrize("name", ["SGDClassifier", "MLPClassifier", "GaussianNB"])
def test_what_was_fitted_on_float32_is_trained_on(name, tmp_path):
    x, labels, _ = table()
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    file = tmp_path / "first.skops"
    skops.io.dump(fit(name, x, labels), file)
    config = FederationConfig(model_type="sklearn", model_file=str(file))
    ours = Federation(config, cut(x, labels)).run().fitted(tmp_path)
    assert ours.score(x, labels) > 0.7


@pytest.mark.parametrize("name", ["SGDClassifier", "SGDRegressor", "MLPClassifier"])
def test_a_schedule_sets_the_rate_of_each_round(name):
    halved = {"scheduler": "exponential", "scheduler_args": {"gamma": 0.5}}
    x, y = data_for(name)

    def third(rate, **settings):
        config = config_of(name, learning_rate=rate, **settings)
        federation = Federation(config, cut(x, y))
        return federation.train(0, 3)

    ours, by_hand = third(0.2, **halved), third(0.05)
    other = third(0.2)
    for key, array in by_hand.items():
        np.testing.assert_array_equal(ours[key], array)
    assert any(not np.array_equal(other[key], ours[key]) for key in ours)

"""Surveys before round 1: exact statistics, codes of names, and what they refuse."""

import json
import textwrap

import numpy as np
import pytest

from fedray import data, models
from fedray.config import parse
from fedray.data.survey import complete_survey
from fedray.errors import DataError, PartyError, RunFolderError
from fedray.federation.stats import to_json
from fedray.federation.survey import survey_request
from fedray.models import Blueprint
from fedray.party import GroupPlan, survey_parties
from fedray.party.loading import read_samples
from fedray.survey import (
    CATEGORY,
    EMPTY,
    NUMBER,
    DataSurvey,
    Moments,
    SavedSurvey,
    SurveyRequest,
    ValueCounts,
    differences,
    read_codes,
    read_survey,
)

ARRAYS = ("count", "mean", "m2", "missing", "minimum", "maximum")


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def parts_of(rng, dtype=np.float64):
    """Five parties' columns: far from zero, mixed sizes, one constant, one empty."""
    parts = []
    for n in (1, 3, 1000, 64, 7):
        x = rng.normal([1e6, 0, -3], [1, 1e-3, 1e3], (n, 3))
        parts.append(np.c_[x, np.full(n, 0.1), np.full(n, np.nan)].astype(dtype))
    parts[2][10:20, 1] = np.nan
    return parts


def test_moments_of_all_parties_are_those_of_the_pooled_samples(rng):
    parts = parts_of(rng)
    total = Moments.merge([Moments.of(x, extremes=True) for x in parts]).total()
    pooled = np.concatenate(parts)[:, :4]
    exact = pooled.astype(np.longdouble)
    assert total.mean[0, :4] == pytest.approx(
        np.nanmean(exact, axis=0).astype(float), rel=1e-12
    )
    assert total.deviation[0, :3] == pytest.approx(
        np.nanstd(exact, axis=0)[:3].astype(float), rel=1e-12
    )
    assert total.count.tolist() == [[1075, 1065, 1075, 1075, 0]]
    assert total.missing.tolist() == [[0, 10, 0, 0, 1075]]
    assert (total.mean[0, 3], total.m2[0, 3]) == (0.1, 0.0)  # constant, to the bit
    assert total.minimum[0, :4].tolist() == np.nanmin(pooled, axis=0).tolist()
    assert total.maximum[0, :4].tolist() == np.nanmax(pooled, axis=0).tolist()


@pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [2, 0, 4, 1, 3]])
def test_neither_order_nor_actors_of_the_parties_change_a_bit(rng, order):
    moments = [Moments.of(x, extremes=True) for x in parts_of(rng, np.float32)]
    expected = Moments.merge(moments).total()
    shuffled = [moments[k] for k in order]
    actors = [Moments.merge(shuffled[:2]), Moments.merge(shuffled[2:])]
    for some in (Moments.merge(shuffled), Moments.merge(actors)):
        for name in ARRAYS:
            got, want = getattr(some.total(), name), getattr(expected, name)
            assert got.tobytes() == want.tobytes(), name


def test_channels_of_images_lie_first_or_last(rng):
    x = rng.normal([1, 50, 9], [1, 2, 3], (20, 8, 8, 3)).astype(np.float32)
    last = Moments.of(x)
    first = Moments.of(np.moveaxis(x, 3, 1), axis=1)
    assert last.count.tolist() == [[20 * 64] * 3]
    assert (last.mean == first.mean).all()
    assert last.mean[0] == pytest.approx(x.mean((0, 1, 2), np.float64), rel=1e-12)
    assert last.deviation[0] == pytest.approx(x.std((0, 1, 2), np.float64), rel=1e-9)


def test_an_array_larger_than_a_block_is_read_in_blocks(rng, monkeypatch):
    x = rng.normal(5, 2, (1000, 3))
    whole = Moments.of(x)
    monkeypatch.setattr("fedray.survey.moments.BLOCK_VALUES", 64)
    blocks = Moments.of(x)
    assert blocks.mean == pytest.approx(whole.mean, rel=1e-14)
    assert blocks.deviation == pytest.approx(whole.deviation, rel=1e-14)
    codes = DataSurvey(moments={"": whole}).codes(normalize=True)
    assert (codes.apply(x) == codes.apply(x.copy())).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_inputs_are_standardised_and_constants_stay(rng, dtype):
    x = np.c_[rng.normal(1e3, 50, 500), np.full(500, 7.0)].astype(dtype)
    codes = DataSurvey(moments={"": Moments.of(x)}).codes(normalize=True)
    before = x.copy()
    z = codes.apply(x)
    assert z.dtype == dtype
    assert (x == before).all()
    wide = x[:, 0].astype(np.float64)
    by_hand = ((wide - wide.mean()) / wide.std()).astype(dtype)
    assert z[:, 0] == pytest.approx(by_hand, rel=1e-5, abs=1e-6)
    assert (z[:, 1] == 7).all()


def test_missing_values_become_the_mean_and_whole_numbers_stay(rng):
    x = rng.normal(3, 2, (50, 2))
    x[3, 0] = np.nan
    ids = np.arange(100).reshape(50, 2)
    moments = {"['x']": Moments.of(x), "['ids']": Moments.of(ids)}
    codes = DataSurvey(moments=moments).codes(normalize=True)
    z = codes.apply({"x": x, "ids": ids})
    assert z["x"][3, 0] == 0
    assert (z["ids"] == ids).all()
    with pytest.raises(DataError, match=r"3 columns or channels.*needed the 2"):
        codes.apply({"x": np.ones((5, 3)), "ids": ids})


def test_codes_of_names_are_sorted_and_one_party_s_rare_name_counts():
    here = DataSurvey(labels=ValueCounts.of(["dog", "cat", "dog"]))
    there = DataSurvey(labels=ValueCounts.of(["cat"], tests=["emu", "cat"]))
    for surveys in ([here, there], [there, here]):
        merged = DataSurvey.merge(surveys)
        codes = merged.codes()
        assert codes.labels == ("cat", "dog", "emu")
        assert merged.labels.counts == {"cat": 2, "dog": 2, "emu": 0}
        assert merged.labels.parties == {"cat": 2, "dog": 1, "emu": 1}
    assert codes.encode_labels(["emu", "cat"], "file").tolist() == [2, 0]
    assert codes.decode_labels([0, 2, 7]) == ["cat", "emu", "7"]
    with pytest.raises(DataError) as told:
        codes.encode_labels(["dog", "gnu"], "b.csv")
    assert "b.csv: got a label in row 2 that no party had before round 1" in str(
        told.value
    )
    assert "gnu" not in str(told.value)


def test_a_survey_is_saved_to_the_last_bit_and_not_read_if_altered(rng, tmp_path):
    survey = DataSurvey(
        {"age": NUMBER, "colour": CATEGORY},
        {"": Moments.of(rng.normal(size=(9, 1)), ["age"])},
        {"colour": ValueCounts.of(["red", "blue"])},
        labels=ValueCounts.of(["no", "ja", "né"]),
    )
    assert read_codes(tmp_path) is None
    SavedSurvey(survey, "run-1", True).write(tmp_path)
    saved = read_survey(tmp_path)
    again = saved.codes
    assert (saved.run, again.normalize) == ("run-1", True)
    assert again.labels == ("ja", "no", "né")
    assert again.categories == {"colour": ("blue", "red")}
    mine, its = survey.codes().moments[""], again.moments[""]
    assert its.names == ("age",)
    assert all((getattr(mine, a) == getattr(its, a)).all() for a in ARRAYS[:4])
    file = tmp_path / "normalization.json"
    file.write_text(file.read_text().replace("blue", "bleu"))
    with pytest.raises(RunFolderError, match=r"normalization\.json is lost or altered"):
        read_codes(tmp_path)


def test_parties_with_other_columns_are_named_with_them():
    usual = DataSurvey({"age": NUMBER, "sex": CATEGORY})
    other = DataSurvey({"years": NUMBER, "sex": NUMBER})
    empty = DataSurvey({"sex": CATEGORY, "age": EMPTY})  # in another order, no values
    assert differences({"a": usual, "b": usual, "c": empty}) == {}
    why = differences({"a": usual, "b": other, "c": usual})
    assert list(why) == ["b"]
    assert "lacks column 'age'; has column 'years' too; column 'sex' holds number, "
    assert "not category, other than at party a" in why["b"]
    wide = DataSurvey(moments={"": Moments.of(np.ones((2, 3)))})
    narrow = DataSurvey(moments={"": Moments.of(np.ones((2, 2)))})
    assert (
        "x holds 2 columns, not 3 columns" in differences({"a": wide, "b": narrow})["b"]
    )
    names, numbers = (
        DataSurvey(labels=ValueCounts.of(labels)) for labels in (["cat"], [1])
    )
    assert "y holds numbers, not names" in differences({"a": names, "b": numbers})["b"]


def test_columns_in_another_order_merge_by_name():
    one = Moments.of(np.array([[1.0, 10]]), ["a", "b"])
    two = Moments.of(np.array([[30.0, 3]]), ["b", "a"])
    for parts in ([one, two], [two, one]):
        total = Moments.merge(parts).total()
        assert total.names == ("a", "b")
        assert total.mean.tolist() == [[2, 20]]
    without = Moments.of(np.array([[5.0], [7]]), ["a"])  # b is empty there
    total = Moments.merge([one, without]).total()
    assert total.names == ("a", "b")
    assert (total.count.tolist(), total.missing.tolist()) == ([[3, 1]], [[0, 2]])


def test_rare_values_are_counted_and_not_named():
    n_parties = {"a": 2, "b": 1, "c": 2, "d": 3}
    labels = ValueCounts({"a": 9, "b": 9, "c": 4, "d": 9}, n_parties)
    told = to_json(DataSurvey(labels=labels))["categories"]["y"]
    assert [row["value"] for row in told["values"]] == ["a", "d"]
    assert told["n_left_out"] == 2
    all_of_them = to_json(DataSurvey(labels=labels), 0, 0)["categories"]["y"]
    assert all_of_them["n_left_out"] == 0


HANDLER = """
    import json
    import numpy as np
    from fedray.data import DataSurvey, ValueCounts

    class Named:
        # rows of [numbers..., label], the last two are tests
        def __init__(self, path):
            rows = json.load(open(path))
            self.x = np.array([[*row[:-1], 1] for row in rows], np.float32)
            self.names = [row[-1] for row in rows]

        def get_survey(self, rows=None):
            if rows is not None:
                return DataSurvey(labels=ValueCounts.of(self.names[i] for i in rows))
            tests = self.names[-2:]
            return DataSurvey(labels=ValueCounts.of(self.names[:-2], tests))

        def use_codes(self, codes):
            self.y = codes.encode_labels(self.names, "named")

        def get_data(self):
            x, y = self.x, self.y
            return (x[:-2], y[:-2]), (x[-2:], y[-2:])
"""


@pytest.fixture
def named(tmp_path):
    """Settings of parties with text labels: ``named(a=[[1, "cat"], ...])``."""
    (tmp_path / "named.py").write_text(textwrap.dedent(HANDLER))
    net = "import torch\n\ndef net():\n    return torch.nn.Linear(2, 3)\n"
    (tmp_path / "net.py").write_text(net)

    def write(**parties):
        for name, rows in parties.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        return {
            "architecture": f"{tmp_path / 'net.py'}:net",
            "data_handler": f"{tmp_path / 'named.py'}:Named",
            "parties": [
                {"name": name, "data": str(tmp_path / f"{name}.json")}
                for name in parties
            ],
        }

    return write


def rows_of(*names):
    return [[10 * k, name] for k, name in enumerate(names)]


def plan_of(settings, place=0, codes=None):
    config, mistakes = parse(settings)
    assert mistakes == []
    handler = data.named(config.handler_of(place))
    parties = range(config.num_parties) if config.partition else range(place, place + 1)
    bare = Blueprint("pytorch", None, {}, ())
    return GroupPlan(f"p{place}", parties, config, bare, handler, codes=codes)


REQUEST = SurveyRequest(codes=True, moments=True, missing=True)


def test_a_run_asks_its_parties_only_where_something_needs_it(settings, named):
    def request(given):
        config, _ = parse(given)
        handlers = {name: data.named(name) for name in config.handlers()}
        return survey_request(config, handlers)

    assert not request(settings)
    assert request(settings | {"normalize": "federated"}).moments
    assert request(named(a=rows_of("cat", "dog"))).codes


def test_a_handler_of_ones_own_gets_the_codes_of_all_parties(named):
    settings = named(
        a=rows_of("dog", "cat", "dog", "cat", "dog"),
        b=rows_of("emu", "cat", "cat", "dog"),
    )
    surveys = [survey_parties(plan_of(settings, place), REQUEST) for place in (0, 1)]
    merged = DataSurvey.merge(surveys)
    assert merged.labels.counts == {"dog": 2, "cat": 2, "emu": 1}
    assert merged.moments[""].total().mean.tolist() == [[(0 + 10 + 20 + 0 + 10) / 5, 1]]
    codes = merged.codes(normalize=True)
    samples = read_samples(plan_of(settings, 1, codes)).samples
    assert samples.y_train.tolist() == [2, 0]
    assert samples.y_test.tolist() == [0, 1]
    deviation = np.std([0, 10, 20, 0, 10])
    assert samples.x_train[1].tolist() == pytest.approx([2 / deviation, 1])
    late = named(c=rows_of("gnu", "cat", "cat", "dog"))
    with pytest.raises(PartyError, match="row 1 that no party had before") as told:
        read_samples(plan_of(late, 0, codes))
    assert "gnu" not in str(told.value)


def test_the_parties_of_a_partition_are_surveyed_one_by_one(named, tmp_path):
    settings = named(all=rows_of("dog", "cat", "emu", "cat", "dog", "gnu", "cat"))
    settings |= {
        "partition": {"source": settings.pop("parties")[0]["data"]},
        "num_parties": 2,
    }
    merged = survey_parties(plan_of(settings), REQUEST)
    assert merged.labels.counts == {"dog": 2, "cat": 2, "emu": 1, "gnu": 0}
    assert (merged.n_parties, merged.n_samples) == (2, 5)
    moments = merged.moments[""]
    assert len(moments.count) == 2
    assert moments.total().mean.tolist() == [[20, 1]]


@pytest.mark.parametrize(
    ("x", "why"),
    [
        (np.full((4, 2), 1e200), "squares overflow"),
        (np.arange(8).reshape(4, 2), "none of them floats"),
    ],
)
def test_inputs_that_cannot_be_standardised_are_refused(x, why):
    class Mine:
        def get_data(self):
            return (x * [[0], [1], [0], [1]], np.zeros(4)), (x[:0], np.zeros(0))

    def survey_and_load():
        samples = data.load_samples(Mine(), "mine")
        survey = complete_survey(DataSurvey(), samples, REQUEST, "mine")
        data.load_by_codes(Mine(), "mine", survey.codes(normalize=True))

    with pytest.raises(DataError, match=why):
        survey_and_load()


def test_a_column_of_too_many_values_is_no_category():
    class Mine:
        def get_survey(self):
            ids = ValueCounts.of(map(str, range(10_001)))
            return DataSurvey({"id": CATEGORY}, categories={"id": ids})

    with pytest.raises(DataError, match="'id' with more than 10,000 different values"):
        data.own_survey(Mine(), "mine")


def test_classes_that_are_numbers_are_counted_where_a_model_asks(named):
    samples = data.Samples(
        np.array([[0.5, 1], [2, 1]]), np.array([3.0, 1]), np.zeros((1, 2)),
        np.array([8]), 2,
    )  # fmt: skip
    request = SurveyRequest(classes=True, values=True)
    survey = complete_survey(DataSurvey(), samples, request, "mine")
    assert survey.labels.counts == {3: 1, 1: 1, 8: 0}
    assert survey.values["0"].counts == {0.5: 1, 2: 1}
    assert survey.values["1"].counts == {1: 2}
    broken = data.Samples(samples.x_train, np.array([0.5, 1]), *[samples.x_test] * 2, 2)
    with pytest.raises(DataError, match="no whole numbers"):
        complete_survey(DataSurvey(), broken, request, "mine")


def test_a_model_of_documents_is_not_normalized(text):
    _, mistakes = parse(text | {"normalize": "federated"})
    assert "normalize" in mistakes[0]
    assert models.named("doc2vec").survey.request(None).words

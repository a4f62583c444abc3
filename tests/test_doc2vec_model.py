"""doc2vec inside a party, without Ray: deterministic, resumable, safe to read."""

import io
import json
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fedray import data, models
from fedray.config import parse
from fedray.data import tokenize
from fedray.errors import ModelFileError, PartyError
from fedray.messages import ActorLocation
from fedray.models.doc2vec import to_gensim
from fedray.party import GroupPlan, PartyGroup, count_words, search_documents
from fedray.survey import DataSurvey, ValueCounts

GENSIM = Path(__import__("importlib.util").util.find_spec("gensim").origin).parent
LEE = GENSIM / "test" / "test_data" / "lee_background.cor"


def plan_of(settings, parties=range(1), run="run-1"):
    config, found = parse(settings)
    assert found == []
    adapter = models.named("doc2vec")
    handler, bare = data.named(config.data_handler), adapter.read(config)[0]
    n_plans = 1 if config.partition else config.num_parties
    counts = []
    for i in range(n_plans):
        own = range(config.num_parties) if config.partition else range(i, i + 1)
        counts.append(count_words(GroupPlan("g", own, config, bare, handler)))
    survey = DataSurvey(words=ValueCounts.merge(counts))
    blueprint, weights = adapter.survey.complete(config, survey, run)
    return GroupPlan("g", parties, config, blueprint, handler), weights


def group_of(plan):
    return PartyGroup(plan, lambda: ActorLocation("n"))


def trained(plan, weights, *rounds, party=0):
    """Updates of one party, a new process for each round: nothing but files stays."""
    updates = []
    for round in rounds:
        report, update = group_of(plan).train(round, np.array([party]), weights)
        arrays = {name: array.copy() for name, array in update.weights.items()}
        updates.append((report, arrays))
    return updates


def same(ours, theirs):
    return all((ours[name] == theirs[name]).all() for name in ours)


def test_counts_are_of_words_and_parties(text):
    config, _ = parse(text)
    adapter = models.named("doc2vec")
    plan = GroupPlan("a", range(1), config, adapter.read(config)[0], "20_newsgroup")
    found = count_words(plan)
    lines = LEE.read_text(encoding="utf-8").splitlines()[:12]
    assert found.counts == Counter(w for line in lines for w in tokenize(line))
    assert set(found.parties.values()) == {1}
    assert isinstance(found, ValueCounts)


def test_a_check_reads_the_documents_before_there_is_a_model(text):
    from fedray.party import count_documents, probe_party

    config, _ = parse(text)
    bare = models.named("doc2vec").read(config)[0]
    plan = GroupPlan("a", range(1), config, bare, "20_newsgroup")
    assert count_documents(plan) == 12
    found = probe_party(plan, lambda: ActorLocation("n"))
    assert (found.n_train, found.n_test, found.samples) == (12, 0, "document")


def test_the_default_learning_rate_is_gensims(text):
    del text["learning_rate"]
    plan, _ = plan_of(text)
    assert plan.blueprint.plan.learning_rate == 0.025
    assert group_of(plan).join().n_train.tolist() == [12]


@pytest.mark.parametrize("dm", [0, 1])
def test_parties_send_word_rows_only_and_bags_of_words_one_matrix(text, dm):
    text["doc2vec"] |= {"dm": dm}
    plan, weights = plan_of(text)
    n_words = len(plan.blueprint.plan.words)
    names = ["wv", "syn1neg"] if dm else ["syn1neg"]
    assert list(weights) == names == list(plan.blueprint.schema)
    [(report, update)] = trained(plan, weights, 1)
    assert {n: a.shape for n, a in update.items()} == dict.fromkeys(names, (n_words, 8))
    assert np.isnan(report.loss).all()
    assert report.drift[0] > 0
    assert report.n_samples.tolist() == [12]


@pytest.mark.parametrize("share", ["additive", "mean", "output_only"])
@pytest.mark.parametrize("dm", [0, 1])
def test_a_party_killed_between_rounds_trains_on_to_the_same_bits(
    text, tmp_path, share, dm
):
    text |= {"share": share, "doc2vec": text["doc2vec"] | {"dm": dm}}
    plan, weights = plan_of(text)
    killed = trained(plan, weights, 1, 2, 3)
    shutil.rmtree(tmp_path / "parties")
    alive = group_of(plan)
    for round, (_, expected) in enumerate(killed, 1):
        _, update = alive.train(round, np.array([0]), weights)
        assert same(update.weights, expected)
    assert not any(report.notes for report, _ in killed)
    assert not same(killed[0][1], killed[1][1])  # each round is another


def test_a_round_trained_twice_gives_the_same_update(text):
    plan, weights = plan_of(text)
    first = trained(plan, weights, 1, 2, 3)
    again = trained(plan, weights, 1, 2, 3)
    twice = trained(plan, weights, 3, 3)
    for (_, ours), (_, theirs) in zip(first + [first[2]] * 2, again + twice,
                                      strict=True):  # fmt: skip
        assert same(ours, theirs)


def test_an_aggregator_that_goes_back_two_rounds_gets_the_same_bits(text):
    plan, weights = plan_of(text)
    expected = trained(plan, weights, 1, 2, 3, 4)
    again = trained(plan, weights, 2, 3, 4)
    for (_, ours), (report, theirs) in zip(expected[1:], again, strict=True):
        assert same(ours, theirs)
        assert not report.notes


@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_lost_document_vectors_are_noted(text, tmp_path, damage):
    plan, weights = plan_of(text)
    trained(plan, weights, 1, 2)
    file = tmp_path / "parties/run-1/a/round-00002.npz"
    if damage == "gone":
        shutil.rmtree(tmp_path / "parties")
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    else:
        lines = (tmp_path / "a.jsonl").read_text().splitlines()
        (tmp_path / "a.jsonl").write_text("\n".join(lines[:-1]))
    [(report, _)] = trained(plan, weights, 3)
    message = "none are on its node" if damage == "gone" else "damaged or of other"
    assert "began its document vectors anew in round 3" in report.notes[0]
    assert message in report.notes[0]


def test_document_vectors_older_than_a_round_are_noted(text):
    plan, weights = plan_of(text)
    trained(plan, weights, 1)
    [(report, _)] = trained(plan, weights, 3)
    assert report.notes == {0: "trained round 3 from its document vectors of round 1"}


def test_parties_of_one_actor_train_as_each_alone(text, tmp_path):
    joined = tmp_path / "all.jsonl"
    joined.write_text("".join((tmp_path / f"{n}.jsonl").read_text() for n in "ab"))
    del text["parties"]
    text |= {"partition": {"source": str(joined)}, "num_parties": 3}
    plan, weights = plan_of(text, range(3))
    rule_text = text | {"party_dir": str(tmp_path / "alone")}
    steps = []
    for party in range(3):
        alone = plan_of(rule_text, range(party, party + 1))[0]
        [(_, update)] = trained(alone, weights, 1, party=party)
        steps.append({name: update[name] - weights[name] for name in update})
    _, together = group_of(plan).train(1, np.arange(3), weights)
    for name in ("wv", "syn1neg"):
        total = steps[0][name] + steps[1][name] + steps[2][name]
        assert (together.weights[name] == total).all()
        squares = sum((step[name].astype(float) ** 2).sum(axis=1) for step in steps)
        assert together.weights[f"{name}/squares"] == pytest.approx(squares, rel=1e-5)


def test_the_learning_rate_decreases_once_over_the_whole_federation(text, monkeypatch):
    from fedray.models.doc2vec import training

    rates = []
    train = training.train_document_dm

    def watched(model, words, index, rate, *rest, **options):
        rates.append(rate)
        return train(model, words, index, rate, *rest, **options)

    monkeypatch.setattr(training, "train_document_dm", watched)
    plan, weights = plan_of(text)
    trained(plan, weights, 1, 2, 3, 4)
    assert len(rates) == 4 * 2 * 12
    assert rates == pytest.approx(np.linspace(0.05, 1e-4, 97)[:-1])


def test_initial_vectors_depend_on_seed_and_name_alone(text):
    whole = plan_of(text)
    fewer = plan_of(text | {"doc2vec": {"vector_size": 8, "min_count": 4}})
    places = {word: i for i, word in enumerate(whole[0].blueprint.plan.words)}
    mine = [places[word] for word in fewer[0].blueprint.plan.words]
    assert (whole[1]["wv"][mine] == fewer[1]["wv"]).all()
    assert 0.9 / 8 < np.abs(whole[1]["wv"]).max() <= 1 / 8
    assert abs(whole[1]["wv"].mean()) < 0.01
    assert len(np.unique(whole[1]["wv"][:, 0])) == len(places)


def test_a_document_past_gensims_limit_is_trained_to_its_end(text, tmp_path):
    line = {"tag": "long", "text": "early " * 10_000 + "later other " * 20}
    (tmp_path / "a.jsonl").write_text(json.dumps(line))
    text |= {"doc2vec": {"vector_size": 4, "sample": 0, "min_count": 1}}
    text["parties"] = text["parties"][:1]
    plan, weights = plan_of(text)
    [(_, update)] = trained(plan, weights, 1)
    later = plan.blueprint.plan.words.index("later")
    assert (update["wv"][later] != weights["wv"][later]).all()


def test_a_party_without_a_common_word_and_one_that_cannot_write_do_not_join(
    text, tmp_path
):
    plan, _ = plan_of(text)
    (tmp_path / "a.jsonl").write_text('{"text": "zzyzx qwrtp", "tag": "x"}')
    with pytest.raises(PartyError, match="without a word that is common enough"):
        group_of(plan).join()
    (tmp_path / "file").write_text("")
    plan, _ = plan_of(text | {"party_dir": str(tmp_path / "file")}, range(1, 2))
    with pytest.raises(PartyError, match=r"party_dir"):
        group_of(plan).join()


def test_documents_with_a_network_are_an_error(text, mlp):
    (Path(text["party_dir"]).parent / "mine.py").write_text(
        "class Mine:\n"
        "    def __init__(self, path): pass\n"
        "    def get_data(self): yield 'tag', 'some secret words'\n"
    )
    handler = f"{Path(text['party_dir']).parent / 'mine.py'}:Mine"
    for model, message in (("pytorch", "documents from"), ("doc2vec", "samples from")):
        given = text if model == "doc2vec" else {"architecture": mlp}
        given = given | {"parties": text["parties"], "data_handler": handler}
        if model == "doc2vec":
            Path(handler.partition(":")[0]).write_text(
                "import numpy as np\nclass Mine:\n"
                "    def __init__(self, path): pass\n"
                "    def get_data(self): return [(np.ones((2, 3)), np.ones(2))] * 2\n"
            )
        config, found = parse(given)
        assert found == []
        adapter = models.named(model)
        bare, source = adapter.read(config)[0], data.named(handler)
        plan = GroupPlan("a", range(1), config, bare, source)
        ask = count_words if model == "doc2vec" else lambda plan: group_of(plan).join()
        with pytest.raises(PartyError, match=message) as caught:
            ask(plan)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("dm", [0, 1])
def test_to_gensim_infers_the_bits_of_the_live_model(text, tmp_path, dm):
    text["doc2vec"] |= {"dm": dm}
    plan, weights = plan_of(text)
    group = group_of(plan)
    _, update = group.train(1, np.array([0]), weights)
    adapter = models.named("doc2vec")
    adapter.write(plan.blueprint, update.weights, tmp_path / "m.npz")
    live = group.local_data.model.trainer.model
    loaded = to_gensim(tmp_path / "m.npz")
    words = tokenize(LEE.read_text(encoding="utf-8").splitlines()[40])
    for model in (live, loaded):
        model.random.seed(5)
    vector = loaded.infer_vector(words)
    assert (vector == live.infer_vector(words)).all()
    assert np.abs(vector).max() > 0
    assert loaded.wv.index_to_key == list(plan.blueprint.plan.words)
    assert loaded.wv.most_similar("the", topn=1)
    counted = [loaded.wv.get_vecattr(word, "count") for word in ("the", "of")]
    first = plan.blueprint.plan
    assert counted == [first.counts[first.words.index(word)] for word in ("the", "of")]


def test_the_search_finds_a_documents_own_text_and_infers_once(text, tmp_path):
    plan, weights = plan_of(text | {"rounds": 20, "epochs": 5})
    [(_, update)] = trained(plan, weights, 1)
    lines = LEE.read_text(encoding="utf-8").splitlines()
    queries = [tokenize(lines[3]), tokenize(lines[7])]
    first = search_documents(plan, update, queries, 3)
    assert [answer[0].tag for answer in first] == ["article-3", "article-7"]
    assert [len(answer) for answer in first] == [3, 3]
    kept = tmp_path / "parties/run-1/a/searched.npz"
    before = kept.stat().st_mtime_ns
    assert search_documents(plan, update, queries, 3) == first
    assert kept.stat().st_mtime_ns == before
    kept.unlink()
    assert search_documents(plan, update, queries, 3) == first


def test_output_only_searches_with_the_partys_own_word_vectors(text, tmp_path):
    plan, weights = plan_of(text | {"share": "output_only"})
    [(_, update)] = trained(plan, weights, 1)
    assert list(update) == ["syn1neg"]
    assert search_documents(plan, update, [["the", "of"]], 2)
    shutil.rmtree(tmp_path / "parties")
    with pytest.raises(PartyError, match="no word vectors of this run"):
        search_documents(plan, update, [["the", "of"]], 2)


def test_words_of_a_start_model_have_its_rows(text, tmp_path):
    plan, weights = plan_of(text)
    [(_, update)] = trained(plan, weights, 1)
    models.named("doc2vec").write(plan.blueprint, update, tmp_path / "m.npz")
    text |= {"model_file": str(tmp_path / "m.npz"), "seed": 9}
    text["parties"] = text["parties"][1:]
    text["doc2vec"] |= {"min_count": 1}
    new, start = plan_of(text)
    words = new.blueprint.plan.words
    rows = {word: i for i, word in enumerate(plan.blueprint.plan.words)}
    known = [word in rows for word in words]
    assert 0 < sum(known) < len(words)
    for word, row, out in zip(words, start["wv"], start["syn1neg"], strict=True):
        if word in rows:
            assert (row == update["wv"][rows[word]]).all()
            assert (out == update["syn1neg"][rows[word]]).all()
        else:
            assert not out.any()
    config = parse(text | {"doc2vec": {"vector_size": 9}})[0]
    found = models.problems(config)
    assert "has dm 1, vector_size 8; doc2vec asks for dm 1, vector_size 9" in found[0]


def test_the_answer_for_a_client_is_words_and_a_vector_for_each(text):
    plan, weights = plan_of(text)
    answer, info = models.named("doc2vec").answer(plan.blueprint, weights)
    assert answer["words"] == list(plan.blueprint.plan.words)
    assert np.array(answer["vectors"], np.float32).tolist() == weights["wv"].tolist()
    assert (info["vectors"], info["dm"], info["vector_size"]) == ("wv", 1, 8)
    assert json.loads(json.dumps([answer, info], allow_nan=False))


@pytest.fixture
def model_file(text, tmp_path):
    plan, weights = plan_of(text)
    path = tmp_path / "m.npz"
    models.named("doc2vec").write(plan.blueprint, weights, path)
    with np.load(path, allow_pickle=False) as file:
        return path, {name: file[name] for name in file.files}


class Bomb:
    def __reduce__(self):
        return open, ("executed", "w")


def utf8(text):
    return np.frombuffer(text.encode(), np.uint8)


def header(arrays, **changes):
    head = json.loads(arrays["header"].tobytes())
    return {"header": utf8(json.dumps(head | changes))}


LIES = {
    "an object array": lambda a: {"wv": np.array([Bomb()], object)},
    "an object header": lambda a: {"header": np.array([Bomb()], object)},
    "a missing array": lambda a: {"wv": None},
    "another array": lambda a: {"more": np.ones(3)},
    "NaN": lambda a: {"wv": a["wv"] * np.float32(np.nan)},
    "infinity": lambda a: {"syn1neg": a["syn1neg"] + np.float32(np.inf)},
    "float64": lambda a: {"wv": a["wv"].astype(float)},
    "a row too few": lambda a: {"wv": a["wv"][1:]},
    "nine dimensions": lambda a: {"wv": a["wv"].reshape((1,) * 8 + (-1,))},
    "a word twice": lambda a: {"words": utf8("\n".join(["aa"] * len(a["counts"])))},
    "a word with NUL": lambda a: {"words": utf8("\0" + a["words"].tobytes().decode())},
    "a bidi word": lambda a: {"words": utf8("\u202e" + a["words"].tobytes().decode())},
    "a long word": lambda a: {
        "words": utf8("x" * 10**6 + a["words"].tobytes().decode())
    },
    "no UTF-8": lambda a: {"words": np.full(50, 0xFF, np.uint8)},
    "no words": lambda a: {"words": np.zeros(0, np.uint8)},
    "negative counts": lambda a: {"counts": -a["counts"]},
    "counts of float": lambda a: {"counts": a["counts"].astype(float)},
    "enormous counts": lambda a: {"counts": a["counts"] + (1 << 62)},
    "another format": lambda a: header(a, format="x"),
    "a deep header": lambda a: {"header": utf8("[" * 60_000)},
    "a long header": lambda a: {"header": utf8(" " * 10**6)},
    "a header of more": lambda a: header(a, evil=1),
    "a vast vector": lambda a: header(a, spec={"vector_size": 10**9}),
    "a float size": lambda a: header(a, passes=1e9),
    "many passes": lambda a: header(a, passes=10**9),
    "no rate": lambda a: header(a, learning_rate=-1.0),
    "a NaN rate": lambda a: header(a, learning_rate=float("nan")),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_model_file_with_false_declarations_is_refused_and_nothing_in_it_is_run(
    model_file, tmp_path, monkeypatch, lie
):
    path, arrays = model_file
    monkeypatch.chdir(tmp_path)
    changed = {k: v for k, v in (arrays | LIES[lie](arrays)).items() if v is not None}
    np.savez(path, **changed)
    with pytest.raises(ModelFileError, match=r"m\.npz"):
        to_gensim(path)
    assert not (tmp_path / "executed").exists()


def rezipped(path, change):
    members = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            members[name] = archive.read(name)
    with zipfile.ZipFile(path, "w") as archive:
        change(archive, members)


def test_compressed_doubled_and_renamed_members_are_refused(model_file):
    path, _ = model_file
    whole = path.read_bytes()

    def bomb(archive, members):
        members["wv.npy"] = members["wv.npy"][:128] + bytes(50 << 20)
        for name, content in members.items():
            archive.writestr(name, content, zipfile.ZIP_DEFLATED)

    def doubled(archive, members):
        for name, content in [*members.items(), ("wv.npy", b"")]:
            archive.writestr(name, content)

    def renamed(archive, members):
        for name, content in members.items():
            archive.writestr(name.replace("wv", "../wv"), content)

    def huge(archive, members):
        shape = io.BytesIO()
        form = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 8)}
        np.lib.format.write_array_header_1_0(shape, form)
        for name, content in members.items():
            archive.writestr(name, shape.getvalue() if name == "wv.npy" else content)

    import warnings

    for change in (bomb, doubled, renamed, huge):
        path.write_bytes(whole)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a name twice
            rezipped(path, change)
        with pytest.raises(ModelFileError):
            to_gensim(path)
    for n in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(ModelFileError):
            to_gensim(path)
    with pytest.raises(ModelFileError, match="there is no such file"):
        to_gensim(path.with_name("none.npz"))


def test_an_empty_vocabulary_is_an_error_that_names_the_settings_to_lower(text):
    from fedray.errors import ConfigError

    with pytest.raises(ConfigError, match=r"none is left: lower doc2vec\.min_count"):
        plan_of(text | {"doc2vec": {"min_parties": 3}})

"""doc2vec federations on the session's cluster, through `fedray.run` and queries."""

import contextlib
import io
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import ray

import fedray
from fedray.checkpoint import RunFolder
from fedray.cli import main
from fedray.errors import DataError, JoinFailed, RunFolderError, Stopped
from fedray.federation import queries
from fedray.messages import Progress
from fedray.models.doc2vec import to_gensim
from fedray.progress_display import ProgressDisplay, header, round_line

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def finished(cluster, texts, tmp_path_factory):
    """One run of four rounds that several tests look at."""
    folder = tmp_path_factory.mktemp("doc2vec")
    settings = texts(folder)
    return settings, fedray.run(settings, run_dir=folder / "run")


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    return all((ours[name] == theirs[name]).all() for name in ours)


def test_a_run_has_neither_loss_nor_accuracy_and_shows_none(finished):
    _, result = finished
    lines = [json.loads(line) for line in (result.folder / "history.jsonl").open()]
    assert [line["round"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert (line["loss"], line["accuracy"], line["fused"]) == (None, None, 2)
        assert [party["loss"] for party in line["parties"]] == [None, None]
        assert all(party["drift"] > 0 for party in line["parties"])
        assert [party["n_samples"] for party in line["parties"]] == [12, 12]
    assert result.accuracy is None
    page = result.report.read_text()
    assert "Bytes moved" in page
    assert "Accuracy" not in page
    assert "<dt>Loss" not in page
    shown = header(False) + round_line(result.history[0], 4, False)
    assert "loss" not in shown
    assert "-" not in shown
    screen = io.StringIO()
    done = Progress(result.history, 4, "done", 2, 2, {}, [])
    ProgressDisplay(4, screen, is_scored=False)(done)
    assert screen.getvalue().splitlines()[1] == round_line(result.history[0], 4, False)


def test_the_service_stores_words_and_vectors_for_its_clients(finished):
    from fedray.service.federation_actor import write_answer
    from fedray.service.store import ANSWER

    _, result = finished
    assert write_answer(result.folder)
    answer = json.loads((result.folder / ANSWER).read_bytes())
    loaded = to_gensim(result.model)
    assert answer["global_model"]["words"] == loaded.wv.index_to_key
    vectors = np.array(answer["global_model"]["vectors"], np.float32)
    assert (vectors == loaded.wv.vectors).all()
    assert answer["global_model_info"]["vector_size"] == 8


def test_parties_send_word_rows_and_their_lengths_only(finished):
    _, result = finished
    n_words = len(to_gensim(result.model).wv)
    rows = 2 * n_words * 8 * 4  # wv and syn1neg
    # one broadcast to the one node, and two updates as the parties made them
    assert [r.bytes_moved for r in result.history] == [3 * rows] * 4


def test_the_run_folder_holds_words_and_no_text(finished):
    settings, result = finished
    words = set(to_gensim(result.model).wv.index_to_key)
    kept = json.loads((result.folder / "vocabulary.json").read_text().splitlines()[1])
    assert set(kept["words"]) == words
    documents = Path(settings["parties"][0]["data"]).read_text().splitlines()
    phrase = json.loads(documents[0])["text"][:40].encode()
    for file in result.folder.rglob("*"):
        if file.is_file():
            assert phrase not in file.read_bytes()
    stays = Path(settings["party_dir"])
    assert {path.parent.name for path in stays.rglob("round-*.npz")} == {"a", "b"}


def test_a_query_finds_tags_at_every_party_and_never_text(finished, capsys):
    settings, result = finished
    line = Path(settings["parties"][1]["data"]).read_text().splitlines()[2]
    sought = json.loads(line)["text"]
    found, failed = fedray.query(result.folder, sought, k=3)
    assert failed == {}
    assert sorted(one.party for one in found) == ["a"] * 3 + ["b"] * 3
    scores = [one.score for one in found]
    assert scores == sorted(scores, reverse=True)
    assert fedray.query(result.folder, sought, k=3)[0] == found
    assert main(["query", str(result.folder), sought, "-k", "2"]) == 0
    message = capsys.readouterr().out.splitlines()
    assert len(message) == 3
    assert message[1].split() == [f"{scores[0]:.3f}", found[0].party, found[0].tag]
    assert main(["query", str(result.folder), sought, "-k", "1", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain == {"nearest": [vars(found[0])], "failed": {}}
    assert set(vars(found[0])) == {"party", "tag", "score"}


def test_a_query_that_cannot_be_answered_says_why(finished, tmp_path, capsys):
    settings, result = finished
    with pytest.raises(DataError, match="no word that the model knows"):
        fedray.query(result.folder, "zzyzx qwrtp")
    with pytest.raises(RunFolderError, match="there is no run in it"):
        fedray.query(tmp_path, "words")
    data = Path(settings["parties"][0]["data"])
    aside = data.rename(data.with_suffix(".away"))
    try:
        assert main(["query", str(result.folder), "the government"]) == 1
    finally:
        aside.rename(data)
    said = capsys.readouterr()
    assert "party a did not answer: " in said.err
    assert {line.split()[1] for line in said.out.splitlines()[1:]} == {"b"}


def test_resumed_and_killed_runs_end_in_the_same_bits(finished, tmp_path):
    settings, result = finished
    party_dir = str(tmp_path / "parties")
    killed = []

    def kill_a_party(progress):
        if progress.round and not killed:
            actor = ray.get_actor("party:parts:a")
            killed.append(ray.get(actor.__ray_call__.remote(lambda self: os.getpid())))
            os.kill(killed[0], signal.SIGKILL)
        if killed and progress.reports and progress.reports[-1].round >= 2:
            raise KeyboardInterrupt

    parts = settings | {"party_dir": party_dir}
    with contextlib.suppress(Stopped):  # unless all four rounds were done before
        fedray.run(parts, run_dir=tmp_path / "parts", watch=kill_a_party)
    assert killed
    again = fedray.run(parts, run_dir=tmp_path / "parts", resume=True)
    assert [report.round for report in again.history] == [1, 2, 3, 4]
    assert same(again.weights(), result.weights())
    assert not any(p.note for report in again.history for p in report.parties)
    vocabulary = tmp_path / "parts/vocabulary.json"
    vocabulary.write_text(vocabulary.read_text().replace("the", "teh", 1))
    with pytest.raises(RunFolderError, match=r"vocabulary\.json is lost or altered"):
        fedray.run(parts, run_dir=tmp_path / "parts", resume=True)


def test_lost_document_vectors_are_noted_in_the_history(text, tmp_path):
    text["parties"] = text["parties"][:1]
    fedray.run(text, run_dir=tmp_path / "run", rounds=2)
    shutil.rmtree(text["party_dir"])
    seen = []
    result = fedray.run(
        text, run_dir=tmp_path / "run", rounds=4, resume=True, watch=seen.append
    )
    message = [[party.note for party in report.parties] for report in result.history]
    why = "began its document vectors anew in round 3: none are on its node from before"
    assert message == [[None], [None], [why], [None]]
    assert why in result.report.read_text()
    assert f"party a {why}" in seen[-1].notes


def test_a_party_that_cannot_count_its_words_is_named(text, tmp_path):
    text["parties"][1]["data"] = str(tmp_path / "nothing.jsonl")
    with pytest.raises(JoinFailed, match=r"b: .*nothing there"):
        fedray.run(text, run_dir=tmp_path / "run")
    assert not RunFolder(tmp_path / "run").is_started()


def test_output_only_runs_can_be_searched(text, tmp_path):
    given = text | {"share": "output_only", "rounds": 2}
    result = fedray.run(given, run_dir=tmp_path / "run")
    assert [report.fused for report in result.history] == [2, 2]
    found, failed = queries(result.folder, ["the government", "the fire"], 1)
    assert failed == {}
    assert [len(answer) for answer in found] == [2, 2]


def test_many_parties_of_one_source_share_actors(text, tmp_path):
    joined = tmp_path / "all.jsonl"
    parts = [Path(party["data"]).read_text() for party in text["parties"]]
    joined.write_text("".join(parts))
    del text["parties"]
    partition = {"source": str(joined), "scheme": "shards", "shards_per_party": 1}
    given = text | {
        "partition": partition,
        "num_parties": 6,
        "parties_per_actor": 3,
        "rounds": 2,
    }
    result = fedray.run(given, run_dir=tmp_path / "run")
    assert [report.fused for report in result.history] == [6, 6]
    found, _ = fedray.query(result.folder, "the government said", k=1)
    assert {one.party for one in found} == {f"party-{i}" for i in range(6)}

"""Keras and doc2vec over REST, from start to stop."""

import io
import json

import numpy as np
import pytest
from support.rest import Client, data_file, json_of, torch_file

from fedray.models.doc2vec import to_gensim

pytestmark = pytest.mark.slow

SPACE = ["rocket", "orbit", "launch", "moon", "shuttle", "fuel", "crew", "nasa"]
FAITH = ["god", "faith", "church", "belief", "moral", "prayer", "bible", "soul"]


def started(client: Client, file: tuple[str, bytes] | None, **form) -> str:
    form = {"num_parties": "2", "rounds": "2", "epochs": "1"} | form
    words = {"files": {"model_file": file}} if file else {}
    answer = client.post("/start-aggregator", data=form, **words)
    assert answer.status_code == 200, answer.text
    client.ids.append(json_of(answer)["aggregator_id"])
    return client.ids[-1]


def test_a_keras_federation_gives_arrays_in_the_order_of_get_weights(client, tmp_path):
    from fedray.models.keras.backend import keras

    net = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    net.compile(optimizer="sgd", loss="categorical_crossentropy")
    net.save(tmp_path / "net.keras")
    file = "net.keras", (tmp_path / "net.keras").read_bytes()
    form = {"model_type": "keras", "optimizer": "Adadelta", "learning_rate": "1"}
    id = started(client, file, fusion_algorithm="fedavg", **form)
    for skip in (0, 40):
        data = data_file(40, skip)
        answer = client.join(id, data, data_handler_class_name="mnist_keras")
        assert answer.status_code == 200, answer.text
    answer = json_of(client.train(id))
    before = [array.copy() for array in net.get_weights()]
    net.set_weights([np.array(array, np.float32) for array in answer["global_model"]])
    moved = [
        np.abs(a - b).max() for a, b in zip(net.get_weights(), before, strict=True)
    ]
    assert min(moved) > 0
    assert answer["history"][-1]["accuracy"] is not None
    file = tmp_path / "fused.keras"
    file.write_bytes(client.get(f"/aggregators/{id}/weights").content)
    again = keras.saving.load_model(file)
    for ours, theirs in zip(net.get_weights(), again.get_weights(), strict=True):
        assert np.array_equal(ours, theirs)


def documents(words: list[str], seed: int) -> bytes:
    draw = np.random.default_rng(seed)
    lines = [
        {"text": " ".join(draw.choice(words, 30)), "tag": f"d{i}"} for i in range(20)
    ]
    return "\n".join(map(json.dumps, lines)).encode()


def test_a_doc2vec_federation_gives_words_and_vectors(client, tmp_path):
    spec = json.dumps({"vector_size": 8, "min_count": 1})
    kind = {"model_type": "doc2vec", "fusion_algorithm": "doc2vec", "doc2vec": spec}
    id = started(client, None, learning_rate="0.025", **kind)
    for seed, words in enumerate((SPACE, FAITH)):
        form = {"aggregator_id": id, "data_handler_class_name": "20_newsgroup"}
        files = {"data": ("posts.jsonl", io.BytesIO(documents(words, seed)))}
        answer = client.post("/start-party", data=form, files=files)
        assert answer.status_code == 200, answer.text
    answer = json_of(client.train(id))
    model, info = answer["global_model"], answer["global_model_info"]
    assert sorted(model["words"]) == sorted(SPACE + FAITH)
    assert np.shape(model["vectors"]) == (16, 8) == tuple(info["shape"])
    assert [line["accuracy"] for line in answer["history"]] == [None, None]
    file = tmp_path / "global_model.npz"
    file.write_bytes(client.get(f"/aggregators/{id}/weights").content)
    gensim = to_gensim(file)
    row = gensim.wv[model["words"][0]]
    assert np.allclose(row, model["vectors"][0])
    assert gensim.infer_vector(["rocket", "orbit"]).shape == (8,)


def test_what_is_frozen_is_in_the_answer_with_all_names(client):
    import torch

    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(784, 8), torch.nn.Linear(8, 10)
    )
    start = {name: one.clone().numpy() for name, one in net.state_dict().items()}
    id = client.ready(model=torch_file(net), trainable=json.dumps(["2.*"]))
    answer = json_of(client.train(id))
    assert answer["global_model_info"]["names"] == list(start)
    for (name, before), after in zip(
        start.items(), answer["global_model"], strict=True
    ):
        is_equal = np.array_equal(before, np.array(after, np.float32))
        assert is_equal == name.startswith("1."), name
    # what trains: two updates and a broadcast in every round
    assert answer["history"][1]["bytes_moved"] == 3 * 4 * (8 * 10 + 10)

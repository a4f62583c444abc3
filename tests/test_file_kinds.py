"""Files of another kind than is read are named in plain words, with what to do."""

import bz2
import gzip
import io
import pickle
import re
import tarfile
import zlib

import numpy as np
import pytest
import torch
from gensim.models.doc2vec import Doc2Vec, TaggedDocument
from safetensors.numpy import save as to_safetensors

from fedray import models
from fedray.config import FederationConfig
from fedray.data import read_npz
from fedray.errors import DataError, ModelFileError
from fedray.file_kinds import kind_of_members, kind_of_start


def saved_array(write, value) -> bytes:
    buffer = io.BytesIO()
    write(buffer, value)
    return buffer.getvalue()


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pt"))
    return buffer.getvalue()


def gensim() -> bytes:
    model = Doc2Vec([TaggedDocument(["a"], ["t"])], vector_size=2, min_count=1)
    return pickle.dumps(model)


W = np.ones(3, np.float32)
FILES = {  # name -> bytes, what the error says
    "m.onnx": (b"\x08\x08\x12\x07pytorch\x1a", "an ONNX graph.*exported from"),
    "m.pkl": (pickle.dumps({"w": W}), "bare pickle.*save the model with torch.save"),
    "m.p0": (pickle.dumps(np.ones(3), 0), "bare pickle"),
    "train-images-idx3-ubyte": (bytes([0, 0, 8, 3]) + bytes(12), "an IDX file"),
    "m.model": (gensim(), "gensim model, a pickle.*model_type: doc2vec"),
    "m.joblib": (zlib.compress(pickle.dumps(W)), "as joblib does: unpack it"),
    "m.tar.gz": (gzip.compress(tar()), "compressed with gzip: unpack it"),
    "m.tar": (tar(), "a tar archive: unpack it"),
    "m.bz2": (bz2.compress(b"model"), "compressed with bzip2"),
    "m.h5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5.*Keras.*model_type: keras"),
    "m.npy": (saved_array(np.save, W), "one array of numpy"),
    "m.npz": (saved_array(np.savez, W), "an npz of numpy's arrays"),
    "page.pt": (b"\n<!DOCTYPE html><title>404", "a web page.*download it again"),
    "lfs.pt": (b"version https://git-lfs.github.com/spec/v1\noid", "run git lfs pull"),
    "lfs.safetensors": (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    "error.pt": (b'{"error": "rate limit"}', "a JSON text.*download it again"),
    "net.py": (b"import torch\nclass Net: pass\n", "Python code: give architecture"),
    "empty.pt": (b"", "it is empty"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_model_file_of_another_kind_is_named(tmp_path, name):
    content, message = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelFileError, match=f"(?s){message}"):
        models.named("pytorch").read(FederationConfig(model_file=str(tmp_path / name)))


def test_doc2vec_names_a_gensim_model_and_says_what_it_takes(tmp_path):
    (tmp_path / "news.model").write_bytes(gensim())
    settings = {"model_type": "doc2vec", "fusion_algorithm": "doc2vec"}
    config = FederationConfig(**settings, model_file=str(tmp_path / "news.model"))
    (problem,) = models.named("doc2vec").problems(config)
    assert re.search(r"gensim model.*global_model\.npz", problem)


def test_a_data_file_of_another_kind_is_named(tmp_path):
    for name, message in (("page.pt", "a web page"), ("m.tar.gz", "gzip")):
        (tmp_path / name).write_bytes(FILES[name][0])
        with pytest.raises(DataError, match=f"not an npz, but .*{message}"):
            read_npz(tmp_path / name, ["x"])


def test_safetensors_and_torch_files_are_read_under_any_name(tmp_path, mlp):
    adapter = models.named("pytorch")
    _, weights = adapter.read(FederationConfig(architecture=mlp))
    (tmp_path / "safe.pt").write_bytes(to_safetensors(weights))
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    torch.save(tensors, tmp_path / "torch.safetensors")
    for name in ("safe.pt", "torch.safetensors"):
        file = str(tmp_path / name)
        _, read = adapter.read(FederationConfig(model_file=file, architecture=mlp))
        assert all(np.array_equal(read[key], weights[key]) for key in weights)


def test_keras_and_pytorch_files_are_told_apart(tmp_path):
    assert kind_of_members(["config.json", "model.weights.h5"]).advice.endswith("keras")
    assert kind_of_members(["m/data.pkl", "m/data/0"]).advice.endswith("pytorch")
    assert kind_of_start(to_safetensors({"w": W})).what == "a .safetensors file"
    assert kind_of_start(np.random.default_rng(0).bytes(999)) is None
    torch.save({"w": torch.ones(2)}, tmp_path / "m.keras")
    with pytest.raises(ModelFileError, match="a PyTorch file: set model_type: pytorch"):
        models.named("keras").read(
            FederationConfig(model_type="keras", model_file=str(tmp_path / "m.keras"))
        )

"""What practitioners bring: models and data, each in a tiny federation of two parties.

`python benchmarks/zoo.py [NUMBER ...]` writes each case's files, runs it, and prints
what came of it, with the lines of Python and YAML that its user wrote for fedray. Cases
need what they bring: transformers, peft, Keras, scikit-learn.
"""

import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fedray
from fedray.errors import FedrayError

RNG = np.random.default_rng


@dataclass(frozen=True)
class Case:
    """One user's model, data and config.

    code : their Python, ``user.py``.
    config : their YAML.
    prepare : writes what they have already: data and model files, in this folder.
    error : words of the error that is needed; empty: it has to run.
    after : looks at the result; raises AssertionError where it is wrong.
    most : lines of Python and of YAML that it may take.
    """

    number: int
    name: str
    config: str
    prepare: Callable[[Path], None]
    most: tuple[int, int]
    code: str = ""
    error: str = ""
    after: Callable[[Any], None] | None = None
    needs: tuple[str, ...] = ()

    def lines(self) -> tuple[int, int]:
        """Lines of Python and of YAML that the user writes."""
        return _count_lines(self.code), _count_lines(self.config)

    def write(self, folder: Path) -> Path:
        """Write the files; returns the config's."""
        self.prepare(folder)
        (folder / "user.py").write_text(textwrap.dedent(self.code))
        file = folder / "federation.yaml"
        file.write_text(textwrap.dedent(self.config))
        return file

    def play(self, folder: Path) -> fedray.Result:
        """Run it; the result, or the error that it ends with."""
        return fedray.run(self.write(folder), run_dir=folder / "run")


def _count_lines(text: str) -> int:
    return sum(bool(line.strip()) for line in text.splitlines())


def table(**settings: Any) -> str:
    """YAML of two parties with data a.npz and b.npz."""
    lines = [f"{key}: {value}" for key, value in settings.items()]
    parties = "parties: [{name: a, data: a.npz}, {name: b, data: b.npz}]"
    return "\n".join([*lines, parties]) + "\n"


def arrays(make: Callable[[np.random.Generator], dict[str, np.ndarray]]) -> Any:
    """Writes a.npz and b.npz of the arrays that `make` gives."""

    def prepare(folder: Path) -> None:
        for seed, name in enumerate("ab"):
            np.savez(folder / f"{name}.npz", **make(RNG(seed)))

    return prepare


def rows(n: int, targets: Callable[[np.random.Generator, int], np.ndarray]) -> Any:
    """Writes tables of 8 columns with the targets that a function makes."""
    return arrays(
        lambda rng: {"x": rng.normal(size=(n, 8)).astype("f4"), "y": targets(rng, n)}
    )


def tokens(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """32 texts of 12 tokens with a mask, and a class for each."""
    ids = rng.integers(5, 50, (32, 12))
    mask = (np.arange(12) < rng.integers(4, 13, (32, 1))).astype("int64")
    return {"input_ids": ids, "attention_mask": mask, "y": ids[:, 0] % 3}


def texts(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Texts of 12 tokens, which are their own labels."""
    ids = rng.integers(0, 50, (32, 12))
    return {"x": ids, "y": ids}


MLP = """
import torch
from torch import nn
def model():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
"""
ONE = """
from torch import nn
def model():
    return nn.Linear(8, 1)
"""
BATCH_NORM = """
from torch import nn
def model():
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 3))
"""
BERT = """
from transformers import BertConfig, BertForSequenceClassification
def model():
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, num_labels=3,
    )
    return BertForSequenceClassification(config)
"""
GPT = """
from transformers import GPT2Config, GPT2LMHeadModel
def model():
    size = {"n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = GPT2Config(vocab_size=50, bos_token_id=0, eos_token_id=0, **size)
    return GPT2LMHeadModel(config)
"""
LORA = """
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel
def model():
    size = {"n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = GPT2Config(vocab_size=50, bos_token_id=0, eos_token_id=0, **size)
    lora = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    return get_peft_model(GPT2LMHeadModel(config), lora)
"""
UNET = """
import torch
from torch import nn
def block(n_in, n_out):
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()
    )
class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = block(1, 8), block(8, 16)
        self.down, self.up = nn.MaxPool2d(2), nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.last, self.head = block(16, 8), nn.Conv2d(8, 3, 1)
    def forward(self, x):
        fine = self.first(x)
        coarse = self.up(self.second(self.down(fine)))
        return self.head(self.last(torch.cat([fine, coarse], 1)))
def model():
    return UNet()
"""
OWN_LOSS = """
import torch
from torch import nn
def model():
    return nn.Linear(8, 1)
def focal(output, target):
    p = torch.sigmoid(output)
    return -(target * (1 - p) ** 2 * p.log() + (1 - target) * (1 - p).log()).mean()
"""
# a handler in a project of several files
PROJECT = """
import mylib
class Table:
    def __init__(self, path):
        self.x, self.y = mylib.read(path)
    def get_data(self):
        return (self.x[:24], self.y[:24]), (self.x[24:], self.y[24:])
"""
MYLIB = """
import numpy as np
from functools import partial
from torch import nn
def read(path):
    file = np.load(path)
    return file["x"], file["y"]
def mlp(width):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3))
model = partial(mlp, 16)
"""
DATASET = """
from rows import Rows
from torch.utils.data import DataLoader
class Handler(Rows):
    def get_data(self):
        return DataLoader(self, batch_size=8), None
"""
ROWS = """
import numpy as np
from torch.utils.data import Dataset
class Rows(Dataset):
    def __init__(self, path):
        self.file = np.load(path)
    def __len__(self):
        return len(self.file["x"])
    def __getitem__(self, i):
        return self.file["x"][i], self.file["y"][i]
"""
TRANSFER = """
import keras
from keras import layers
def model():
    base = keras.Sequential([layers.Dense(64), layers.BatchNormalization()])
    base.trainable = False
    inputs = keras.Input((8,))
    return keras.Model(inputs, layers.Dense(3, "softmax")(base(inputs)))
"""


def labels(rng: np.random.Generator, n: int) -> np.ndarray:
    """One of three classes for each sample."""
    return rng.integers(0, 3, n)


def works(result: fedray.Result) -> None:
    """The run ended with a loss that is a number."""
    assert np.isfinite(result.loss), result.loss


def write_tied(folder: Path) -> None:
    """A transformer's model.safetensors, whose embedding is its last layer too."""
    arrays(texts)(folder)
    user: dict[str, Any] = {}
    exec(GPT, user)
    user["model"]().save_pretrained(folder / "base")


def write_images(folder: Path) -> None:
    """Two folders of class folders with images."""
    from PIL import Image

    for seed, party in enumerate("ab"):
        for label in ("cat", "dog"):
            (folder / party / label).mkdir(parents=True)
            for i in range(8):
                pixels = RNG([seed, i]).integers(0, 256, (8, 8, 3), dtype="uint8")
                Image.fromarray(pixels).save(folder / party / label / f"{i}.png")


def write_whole(folder: Path) -> None:
    """A module of the user's own class, saved whole."""
    import torch

    rows(32, labels)(folder)
    sys.modules.pop("user", None)
    (folder / "user.py").write_text(OWN_CLASS)
    sys.path.insert(0, str(folder))
    try:
        import user

        torch.save(user.Net(), folder / "net.pt")
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("user", None)


OWN_CLASS = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)
    def forward(self, x): return self.layer(x)
"""


def write_lstm(folder: Path) -> None:
    """A whole nn.LSTM."""
    import torch

    rows(32, labels)(folder)
    torch.save(torch.nn.LSTM(8, 3), folder / "lstm.pt")


def write_project(folder: Path) -> None:
    """A project of two files."""
    rows(32, labels)(folder)
    (folder / "mylib.py").write_text(MYLIB)
    (folder / "rows.py").write_text(ROWS)


NPZ = {"data_handler": "npz", "learning_rate": 0.1, "rounds": 2}
OURS = {"architecture": "user.py:model", **NPZ}
IDS = "{x: {input_ids: input_ids, attention_mask: attention_mask}}"
CASES = [
    Case(1, "multi-hot targets, no loss", table(**OURS),
         rows(32, lambda rng, n: rng.integers(0, 2, (n, 3)).astype("f4")), (8, 8), MLP,
         "do not sum to 1"),
    Case(2, "soft targets", table(**OURS, loss="cross_entropy"),
         rows(32, lambda rng, n: rng.dirichlet([1, 1, 1], n).astype("f4")), (8, 8),
         MLP, after=works),
    Case(3, "two columns of labels", table(**OURS),
         rows(32, lambda rng, n: rng.integers(0, 2, (n, 2))), (4, 8), MLP, "rows of 2"),
    Case(4, "regression, loss forgotten", table(**OURS),
         rows(32, lambda rng, n: rng.random((n, 1)).astype("f4")), (4, 8), ONE,
         "mse_loss"),
    Case(5, "257 samples and BatchNorm", table(**OURS, data_args="{test: 0.0}"),
         rows(257, labels), (8, 8), BATCH_NORM),
    Case(6, "BERT-like classifier", table(**OURS, data_args=IDS), arrays(tokens),
         (10, 9), BERT, after=works, needs=("transformers",)),
    Case(7, "causal language model, its own loss", table(**OURS, loss="model"),
         arrays(texts), (10, 9), GPT, after=works, needs=("transformers",)),
    Case(7, "causal language model, cross_entropy", table(**OURS, loss="cross_entropy"),
         arrays(texts), (10, 9), GPT, after=works, needs=("transformers",)),
    Case(8, "tied weights in .safetensors",
         table(model_file="base/model.safetensors", **OURS, loss="model"), write_tied,
         (6, 8), GPT, after=works, needs=("transformers",)),
    Case(9, "LoRA", table(**OURS, loss="model"), arrays(texts), (14, 9), LORA,
         after=lambda r: moved_less(r, 0.3), needs=("peft", "transformers")),
    Case(10, "U-Net, label maps", table(**OURS),
         arrays(lambda rng: {"x": rng.random((16, 1, 8, 8), "f4"),
                             "y": rng.integers(0, 3, (16, 8, 8))}),
         (25, 8), UNET, after=works),
    Case(11, "class weights, label smoothing",
         table(**OURS, loss="cross_entropy",
               loss_args="{weight: [1, 2, 3], label_smoothing: 0.1}"),
         rows(32, labels), (4, 9), MLP, after=works),
    Case(12, "a loss by its class", table(**OURS, loss="BCEWithLogitsLoss"),
         rows(32, lambda rng, n: rng.integers(0, 2, (n, 1)).astype("f4")), (4, 8), ONE,
         after=works),
    Case(12, "a loss of one's own", table(**OURS, loss="user.py:focal"),
         rows(32, lambda rng, n: rng.integers(0, 2, (n, 1)).astype("f4")), (7, 8),
         OWN_LOSS, after=works),
    Case(16, "predictions of a regression", table(**OURS, loss="mse_loss"),
         rows(32, lambda rng, n: rng.random((n, 1)).astype("f4")), (4, 8), ONE,
         after=lambda r: shaped(r, (5, 1))),
    Case(17, "SGDClassifier", table(model_type="sklearn",
         architecture="sklearn.linear_model.SGDClassifier", data_handler="npz"),
         rows(32, labels), (0, 8), after=lambda r: shaped(r, (5, 3)),
         needs=("sklearn", "skops")),
    Case(18, "a project of several files", table(architecture="mylib.py:model",
         data_handler="user.py:Table", rounds=2), write_project, (8, 6), PROJECT,
         after=works),
    Case(19, "a handler with a bug", table(architecture="mylib.py:model",
         data_handler="user.py:Table", rounds=2), write_project, (8, 6),
         PROJECT.replace("mylib.read(path)", "mylib.read(path, 5)"), "takes 1"),
    Case(20, "image folder", """
         architecture: user.py:model
         data_handler: image_folder
         loss: cross_entropy
         parties: [{name: a, data: a}, {name: b, data: b}]
         """, write_images, (6, 7),
         "from torch import nn\ndef model():\n"
         "    return nn.Sequential(nn.Flatten(), nn.Linear(192, 2))\n",
         after=works, needs=("PIL",)),
    Case(20, "DataLoader", table(architecture="mylib.py:model",
         data_handler="user.py:Handler", rounds=2), write_project, (6, 7), DATASET),
    Case(22, "Keras transfer learning",
         table(model_type="keras", **OURS, loss="sparse_categorical_crossentropy"),
         rows(32, labels), (10, 7), TRANSFER, after=lambda r: moved_less(r, 0.6),
         needs=("keras",)),
    Case(23, "an own class saved whole",
         table(model_file="net.pt", **OURS | {"architecture": "user.py:Net"}),
         write_whole, (6, 6), OWN_CLASS, after=works),
    Case(24, "a whole nn.LSTM", table(model_file="lstm.pt", **NPZ), write_lstm,
         (0, 8), error="LSTM"),
]  # fmt: skip


def shaped(result: fedray.Result, shape: tuple[int, ...]) -> None:
    """What the loaded model predicts for five samples has this shape."""
    works(result)
    predicted = fedray.load(result.folder).predict(np.zeros((5, 8), np.float32))
    assert predicted.shape == shape, predicted.shape


def moved_less(result: fedray.Result, share: float) -> None:
    """A later round moved less than a share of what the whole model would take."""
    works(result)
    whole = sum(array.nbytes for array in result.weights().values())
    last = result.history[-1]
    assert last.bytes_moved + last.bytes_saved < 1e12
    print(f"    {last.bytes_moved:,} bytes moved in the last round, model {whole:,}")


def play(case: Case, folder: Path) -> str:
    """Play one case; "works", "refused as needed", or what is wrong."""
    try:
        result = case.play(folder)
    except FedrayError as error:
        if case.error and case.error in str(error):
            return "refused in clear words"
        return f"WRONG: {type(error).__name__}: {error}"
    if case.error:
        return "WRONG: it ran"
    if case.after:
        try:
            case.after(result)
        except (AssertionError, FedrayError) as error:
            return f"WRONG: {error}"
    return "works"


def main(numbers: list[int]) -> None:
    """Play the cases of these numbers, or all."""
    n_wrong = 0
    for case in CASES:
        if numbers and case.number not in numbers:
            continue
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            outcome = play(case, Path(folder))
        seconds, n_lines = time.perf_counter() - started, case.lines()
        if any(n > most for n, most in zip(n_lines, case.most, strict=True)):
            outcome += f"; more than {case.most} lines"
        n_wrong += "WRONG" in outcome or "more than" in outcome
        print(f"{case.number:2} {case.name:38} {n_lines[0]:2} + {n_lines[1]}  "
              f"{seconds:5.1f} s  {outcome}", flush=True)  # fmt: skip
    print(f"{n_wrong} wrong" if n_wrong else "all as needed")


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])

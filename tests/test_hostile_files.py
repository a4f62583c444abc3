"""Files from strangers: told in bounded time and memory by every loader, never run.

PyTorch's own files are in test_model_files.py.
"""

import io
import json
import os
import pickle
import resource
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.aggregator.validation import checkpoint_flaw
from fedray.checkpoint import Checkpoint, RunFolder
from fedray.cli import main
from fedray.config import FederationConfig, parse, read_overrides
from fedray.data.base import read_npz
from fedray.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ModelFileError,
    RunFolderError,
)
from fedray.federation import read_config
from fedray.messages import PartyLine, RoundReport
from fedray.models.pytorch import safe_load as model_file
from fedray.weights import schema

quick = settings(max_examples=60, deadline=None)
BOUND = 300 << 20  # bytes that reading any of these files may take


class Ran:
    """A pickle that would make a file if it was ever loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def little_memory():
    """Fail at once where a file's lies are believed: there is no memory for them."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + BOUND, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def npy(array, **keys) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asarray(array), **keys)
    return out.getvalue()


def zipped(path: Path, members: dict, how=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def lying(shape: str) -> bytes:
    """One number under a header that declares another shape."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}"
    padded = header.ljust(117) + "\n"
    return (
        b"\x93NUMPY\x01\x00"
        + struct.pack("<H", len(padded))
        + padded.encode()
        + b"x" * 8
    )


ODD = ["../../a", "/etc/a", "a\x00b", "\u202ea", "a" * 60_000, "\xed\xa0\x80", ""]


# data: npz


def all_directory(path: Path, n: int = 2_000_000) -> Path:
    """A zip of nothing but names: as Python objects ten times its size."""
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"a"
    end = struct.pack("<4H2LH", 0, 0, 0xFFFF, 0xFFFF, n * len(entry), 4, 0)
    path.write_bytes(b"PK\x03\x04" + entry * n + b"PK\x05\x06" + end)
    return path


@pytest.mark.usefixtures("little_memory")
def test_inconsistent_npz_files_are_reported(tmp_path):
    bad = {
        "a huge shape": {"x.npy": lying("(99999999999,)")},
        "a shape past all integers": {"x.npy": lying(f"({10**40},)")},
        "a negative shape": {"x.npy": lying("(-1,)")},
        "nine dimensions": {"x.npy": npy(np.ones((1,) * 9))},
        "no header": {"x.npy": b""},
        "half a header": {"x.npy": npy(np.ones(3))[:40]},
        "code as a shape": {"x.npy": lying("(__import__('os').system('x'),)")},
        "a deep header": {"x.npy": lying("(" * 50 + "1" + ")" * 50)},
        "an older pickle": {"x.npy": b"\x80\x04."},
        "text": {"x.npy": npy(np.array(["a"]))},
        "dates": {"x.npy": npy(np.array([0], "M8[s]"))},
        "records": {"x.npy": npy(np.zeros(1, [("a", "f4")]))},
    }
    for kind, members in bad.items():
        with pytest.raises(DataError) as told:
            read_npz(zipped(tmp_path / "n.npz", members), ["x"])
        assert len(str(told.value)) < 1000, kind


@pytest.mark.usefixtures("little_memory")
def test_an_npz_bomb_takes_no_memory(tmp_path):
    path = tmp_path / "bomb.npz"
    header = lying(f"({1 << 25},)")[:-8]
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w") as member,
    ):
        member.write(header)
        for _ in range(32):
            member.write(bytes(8 << 20))
    assert path.stat().st_size < 2 << 20
    with pytest.raises(DataError, match="inflates"):
        read_npz(path, ["x"])


@pytest.mark.usefixtures("little_memory")
def test_an_oversized_npz_directory_is_reported_before_it_is_read(tmp_path):
    with pytest.raises(DataError):
        read_npz(all_directory(tmp_path / "n.npz"), ["x"])


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_pickles_in_an_npz_are_never_loaded(tmp_path):
    mark = tmp_path / "ran"
    objects = np.empty(1, object)
    objects[0] = Ran(mark)
    start = npy(objects, allow_pickle=True)[:128]
    for protocol in range(6):
        members = {
            "x.npy": start + pickle.dumps(objects, protocol),
            "y.npy": npy(np.ones(2)),
        }
        path = zipped(tmp_path / "n.npz", members)
        with pytest.raises(DataError, match="holds Python objects"):
            read_npz(path, ["x"])
        assert (read_npz(path, ["y"])["y"] == 1).all()
    assert not mark.exists()


def test_unsafe_names_in_an_npz_write_nothing_and_are_shortened(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ODD:
        path = zipped(folder / "n.npz", {f"{name}.npy": npy(np.ones(1))})
        with pytest.raises(DataError) as told:
            read_npz(path, ["x"])
        assert len(str(told.value)) < 400
        assert "\u202e" not in str(told.value)
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "n.npz"]


WHOLE = io.BytesIO()
np.savez(WHOLE, x=np.arange(6.0), y=np.arange(3))
CHANGE = st.tuples(st.integers(0, len(WHOLE.getvalue()) - 1), st.integers(0, 255))


@quick
@given(
    st.lists(CHANGE, min_size=1, max_size=8), st.one_of(st.none(), st.integers(0, 500))
)
def test_a_mutated_npz_is_reported_or_read_unchanged(changes, length):
    content = bytearray(WHOLE.getvalue())
    for place, value in changes:
        content[place] = value
    path = Path(f"/tmp/fedray-fuzz-{os.getpid()}.npz")
    path.write_bytes(content[:length])
    try:
        with suppress(DataError):
            assert (read_npz(path, ["x"])["x"] == np.arange(6.0)).all()
    finally:
        path.unlink()


@quick
@given(st.binary(max_size=300))
def test_random_bytes_are_neither_data_nor_model(content):
    for suffix, read, error in (
        (".npz", lambda p: read_npz(p, ["x"]), DataError),
        (".safetensors", model_file.read, ModelFileError),
        (".pt", model_file.read, ModelFileError),
    ):
        path = Path(f"/tmp/fedray-fuzz-{os.getpid()}{suffix}")
        path.write_bytes(content if suffix != ".npz" else b"PK\x03\x04" + content)
        try:
            with pytest.raises(error):
                read(path)
        finally:
            path.unlink()


# models: safetensors


def safe(header, body=bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


GOOD = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@quick
@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=9),
                  st.floats(allow_nan=False)),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=9), inner, max_size=3),
        max_leaves=9,
    ),
    st.sampled_from(["dtype", "shape", "data_offsets", "w", "__metadata__"]),
)  # fmt: skip
def test_any_safetensors_header_raises_only_model_file_errors(value, key):
    header = {"w": dict(GOOD["w"])}
    (header if key in ("w", "__metadata__") else header["w"])[key] = value
    path = Path(f"/tmp/fedray-fuzz-{os.getpid()}.safetensors")
    path.write_bytes(safe(header))
    try:
        with suppress(ModelFileError):
            assert model_file.read(path).weights["w"].shape == (2,)
    finally:
        path.unlink()


@pytest.mark.usefixtures("little_memory")
def test_safetensors_that_claim_too_much_memory_are_reported(tmp_path):
    path = tmp_path / "m.safetensors"
    for header in (
        {"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}},
        {"w": {"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]}},
        {"w": {"dtype": "F32", "shape": [2**63, 2**63], "data_offsets": [0, 8]}},
        b"[" * 100_000,
        b'{"a":' * 100_000,
        {f"w{i}": GOOD["w"] for i in range(20_000)},
        {"../../w\x00": GOOD["w"]},
        {"w" * 10**6: GOOD["w"]},
    ):
        path.write_bytes(safe(header))
        with pytest.raises(ModelFileError) as told:
            model_file.read(path)
        assert len(str(told.value)) < 600
    path.write_bytes(struct.pack("<Q", 1 << 60))
    with pytest.raises(ModelFileError):
        model_file.read(path)


# configs: YAML


BILLION = "\n".join(
    ["optimizer_args:", "  a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    + [f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    "text",
    [
        BILLION,
        BILLION.replace("optimizer_args:", "rounds:"),
        BILLION.replace("optimizer_args:", "name:"),
        BILLION.replace("optimizer_args:", "parties:"),
        BILLION.replace("optimizer_args:", "unheard_of:"),
        "optimizer_args: &a {b: *a}",
        "optimizer_args: {a: &a [*a]}",
        "rounds: &a [*a]",
        "parties: &a [*a]",
        "[" * 100_000,
        "a: " * 10_000,
        "{" * 50_000,
        "rounds: " + "9" * 100_000,
        "seed: 1" + "0" * 4000,
        "rounds: !!python/object/apply:os.system ['touch ran']",
        "rounds: !!binary " + "A" * 1000,
        "? [a]\n: 1",
        "? {a: 1}\n: 1",
        "1: 2",
        "rounds: 2026-01-01",
        "name: \"\\0\"",
        "model_file: \"\\0\"",
        "data_handler: \"a\\0.py:B\"",
        "partition: {source: \"\\0\"}",
        "parties: [{name: a, data: \"\\0\"}]",
        "rounds: .nan",
        "learning_rate: -.inf",
        "learning_rate: 1e999",
        "num_parties: 1e308",
        "<<: [1]",
        "\u202e: 1",
        "a" * 10**6 + ": 1",
        "model_file: " + "a" * 10**6,
        "model_file: ../../../../etc/passwd",
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_a_hostile_config_is_reported_with_a_reason(text, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as told:
        read_config(path)
    assert told.value.problems
    assert all(len(problem) < 2000 for problem in told.value.problems)
    assert not (Path.cwd() / "ran").exists()


PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12),
    st.sampled_from(["krum", "optim.__class__", "__import__('os')", "1e3", "NaN"]),
)  # fmt: skip
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = list(FederationConfig.model_fields)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), VALUES, max_size=5))
def test_any_config_raises_only_config_errors(values):
    _, found = parse(values)
    assert all(isinstance(problem, str) for problem in found)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=4))
def test_any_override_is_read_or_reported(words):
    values, found = read_overrides(words)
    parse({k: v for k, v in values.items() if isinstance(k, str)})
    assert len(found) <= len(words)


# the command line


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04" * 30, b"\x80\x05K\x01."])
def test_fuse_and_split_report_a_hostile_file_and_write_nothing(
    suffix, content, tmp_path, capsys
):
    path, out = tmp_path / f"bad{suffix}", tmp_path / f"out{suffix}"
    path.write_bytes(content)
    assert main(["fuse", str(path), str(path), "--out", str(out)]) == 1
    assert f"fedray: model file {path}" in capsys.readouterr().err
    data = path.rename(tmp_path / "bad.npz")
    assert main(["split", "--source", str(data), "--out", str(tmp_path)]) == 1
    assert f"fedray: data {data}" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["bad.npz"]


@pytest.mark.usefixtures("little_memory")
def test_run_reports_a_hostile_config_and_starts_nothing(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text(BILLION)
    assert main(["run", str(path), f"parties={'[' * 5000}", "rounds=&a [*a]"]) == 1
    told = capsys.readouterr().err
    assert "aliases written out" in told
    assert "cannot read the value of" in told
    assert len(told) < 8000


# run folders


REPORT = RoundReport(
    round=1, chosen=1, reported=1, fused=1, aggregated=True, refused=0, loss=0.5,
    accuracy=0.5, bytes_moved=1, seconds=1.0, train_seconds=1.0, evaluate_seconds=0.0,
    evaluated=1, parties=[PartyLine("a", outcome="fused")],
)  # fmt: skip
WEIGHTS = {"w": np.ones(4, "f4"), "n": np.array(3)}


def run_folder(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.save(Checkpoint(1, WEIGHTS, {"momentum": {"w": np.ones(4, "f4")}}, REPORT))
    return folder


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """A file of 480 MB in 0.5; takes seconds to make, and more than `little_memory`."""
    file = io.BytesIO()
    np.savez_compressed(file, **{"w:w": np.zeros(60 << 20)})
    return file.getvalue()


def harms() -> dict:
    objects = io.BytesIO()
    np.savez(objects, allow_pickle=True, **{"w:w": np.array([Ran("/tmp/fedray-ran")])})
    many = io.BytesIO()
    with zipfile.ZipFile(many, "w") as archive:
        archive.writestr("w:w.npy", lying("(99999999999,)"))
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as archive:
        archive.writestr("w:w.npy", npy(np.ones(4, "f4")))
        archive.writestr("w:w", npy(np.ones(4, "f4")))
    good = json.dumps(REPORT.to_json())
    return {
        "a bomb": ("weights.npz", None),  # the fixture `bomb`
        "objects": ("weights.npz", objects.getvalue()),
        "a lying header": ("weights.npz", many.getvalue()),
        "one name twice": ("weights.npz", twice.getvalue()),
        "a bare array": ("weights.npz", npy(np.ones(4))),
        "a pickle": ("weights.npz", b"\x80\x04}."),
        "nothing": ("weights.npz", b""),
        "random bytes": ("weights.npz", bytes(range(256)) * 9),
        "a state bomb": ("state-momentum.npz", None),  # the fixture `bomb`
        "no JSON": ("round.json", b"\x00"),
        "JSON of another kind": ("round.json", b"[1, 2]"),
        "a round that is text": (
            "round.json",
            good.replace('"round": 1', '"round": "9"').encode(),
        ),
        "another round": (
            "round.json",
            good.replace('"round": 1', '"round": 900').encode(),
        ),
        "no round": (
            "round.json",
            good.replace('"round": 1', '"round": null').encode(),
        ),
        "keys too many": (
            "round.json",
            good.replace('"round": 1', '"round": 1, "x": 2').encode(),
        ),
        "parties of another kind": (
            "round.json",
            good.replace('"parties": [', '"parties": [7, ').encode(),
        ),
        "deep JSON": ("round.json", b"[" * 200_000),
    }


HARMS = harms()


@pytest.mark.parametrize("kind", HARMS)
def test_a_hostile_checkpoint_is_reported_and_never_executed(
    kind, bomb, tmp_path, little_memory
):
    name, content = HARMS[kind]
    content = bomb if content is None else content
    folder = run_folder(tmp_path / "run")
    (tmp_path / "run/checkpoints/round-00001" / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="round-00001 is damaged") as told:
        folder.newest_checkpoint()
    assert len(str(told.value)) < 1000
    assert not Path("/tmp/fedray-ran").exists()


@pytest.mark.parametrize(
    "line",
    [b"\x00\xff\n", b"[]\n", b"7\n", b"{}\n", b"[" * 100_000, b'{"parties": 3}\n',
     b'{"round": null, "parties": []}\n', b"\n\n\n", b'"' + b"a" * 10**6 + b'"\n'],
    ids=lambda line: repr(line[:20]),
)  # fmt: skip
def test_a_foreign_line_of_a_history_is_left_out_at_its_end_and_refused_within(
    line, tmp_path
):
    folder = run_folder(tmp_path / "run")
    good = folder.history_file.read_bytes()
    folder.history_file.write_bytes(good + line.rstrip(b"\n"))  # cut by a crash
    assert [report.round for report in folder.history()] == [1]
    folder.history_file.write_bytes(good + line.rstrip(b"\n") + b"\n" + good)
    checkpoint, _ = folder.newest_checkpoint()
    for use in (folder.history, lambda: folder.rewind(checkpoint)):
        with pytest.raises(RunFolderError, match="altered: line 2 is no round's"):
            use()


@pytest.mark.parametrize(
    ("weights", "state", "told"),
    [
        ({}, {}, "tensors missing: ['w', 'n']"),
        (WEIGHTS | {"w": np.full(4, np.nan, "f4")}, {}, "'w' is not finite"),
        (WEIGHTS, {}, "weights are a NoneType"),
        (WEIGHTS, {"momentum": {}}, "tensors missing: ['w']"),
        (WEIGHTS, {"momentum": {"w": np.ones(5, "f4")}}, "needed float32[4]"),
        (WEIGHTS, {"momentum": {"w": np.full(4, np.inf)}}, "'w' is not finite"),
        (WEIGHTS, {"momentum": {"w": np.ones(4)}}, None),
        (WEIGHTS, {"momentum": {"w": np.ones(4, "f4")}, "more": {}}, None),
    ],
)
def test_a_checkpoint_of_another_federation_is_not_resumed(weights, state, told):
    start = {"momentum": {"w": np.zeros(4, "f4")}}
    flaw = checkpoint_flaw(
        Checkpoint(1, weights, state, REPORT), schema(WEIGHTS), start
    )
    assert told in flaw if told else flaw is None


def test_other_files_beside_checkpoints_are_not_touched(tmp_path):
    folder = run_folder(tmp_path / "run")
    for name in ("round-", "round-x", "round-٣", "round--1", "round-1e3", "..round-9",
                 "round-00001.part", "\u202eround-00007", "a" * 200):  # fmt: skip
        (folder.checkpoints / name).mkdir()
    checkpoint, wrong = folder.newest_checkpoint()
    assert (checkpoint.round, wrong) == (1, [])

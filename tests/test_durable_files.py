"""Files are replaced as a whole, and are on disk when the call returns. No Ray."""

import asyncio
import errno
import os
from pathlib import Path

import pytest

from fedray import durable_files
from fedray.checkpoint import write_config
from fedray.config import PartitionSpec, parse
from fedray.data.split import split
from fedray.service.uploads import FormData, Upload


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, str]]:
    """Names of what is flushed and renamed, in the order of the system's calls."""
    seen = []
    fsync, replace = os.fsync, os.replace

    def logged_fsync(handle):
        path = os.readlink(f"/proc/self/fd/{handle}")
        seen.append(("fsync", path))
        fsync(handle)

    def logged_replace(source, target):
        seen.append(("replace", str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "replace", logged_replace)
    return seen


def flushed_then_renamed(calls: list[tuple[str, str]], path: Path) -> bool:
    """The new file is flushed, renamed to `path`, and then its folder is flushed."""
    (first, aside), *rest = calls
    renamed = [("replace", str(path)), ("fsync", str(path.parent))]
    return first == "fsync" and Path(aside).parent == path.parent and rest == renamed


def test_a_file_is_flushed_before_it_is_renamed_and_its_folder_after(calls, tmp_path):
    path = tmp_path.resolve() / "a.json"
    path.write_text("old")
    with durable_files.replace_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.suffix == ".json"
    assert flushed_then_renamed(calls, path)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_config_is_on_disk_when_it_is_written(calls, tmp_path, settings):
    config, _ = parse(settings)
    path = tmp_path.resolve()
    write_config(path, config)
    assert flushed_then_renamed(calls, path / "config.yaml")


def test_what_fails_half_way_leaves_the_old_file_and_nothing_else(calls, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail_half_way():
        with durable_files.replace_file(path) as temporary:
            temporary.write_text("ne")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    assert calls == []


def test_split_flushes_each_party_file_before_it_gets_its_name(calls, tmp_path):
    out = tmp_path.resolve()
    split("mnist", out, 2, PartitionSpec(samples_per_party=10), seed=0)
    for name in ("data_party0.npz", "data_party1.npz"):
        place = calls.index(("replace", str(out / name)))
        (before, aside), _, after = calls[place - 1 : place + 2]
        assert (before, Path(aside).name) == ("fsync", name)
        assert after == ("fsync", str(out))


def test_an_upload_is_on_disk_under_its_new_name(calls, tmp_path):
    path = tmp_path.resolve() / "a.txt"
    path.write_text("class Readings: ...")
    form = FormData(files={"custom_data_handler": Upload(path, 19)})
    renamed = asyncio.run(form.rename("custom_data_handler", ".py"))
    assert (renamed, form.paths) == (path.with_suffix(".py"), [renamed])
    assert calls[0] == ("fsync", str(path))
    assert calls[1:] == [("replace", str(renamed)), ("fsync", str(path.parent))]


def test_a_secret_file_is_never_readable_by_others(tmp_path):
    path = tmp_path / "keys"
    with durable_files.replace_file(path, mode=0o600) as temporary:
        assert temporary.stat().st_mode & 0o777 == 0o600
        temporary.write_text("secret")
    assert path.stat().st_mode & 0o777 == 0o600


def test_text_and_bytes_replace_a_file(tmp_path):
    path = tmp_path / "a"
    durable_files.write_text(path, "ä\n")
    assert path.read_bytes() == b"\xc3\xa4\n"
    durable_files.write_bytes(path, b"\0")
    assert path.read_bytes() == b"\0"


@pytest.mark.parametrize("link", [False, True])
def test_a_device_or_a_pipe_is_not_replaced(tmp_path, link):
    pipe = path = tmp_path / "pipe"
    os.mkfifo(pipe)
    if link:
        path = tmp_path / "link"
        path.symlink_to(pipe)
    (tmp_path / "file").write_text("new")
    for write in (
        lambda: durable_files.write_text(path, "new", 0o600),
        lambda: durable_files.move(tmp_path / "file", path),
    ):
        with pytest.raises(OSError, match="a device or a pipe") as told:
            write()
        assert told.value.filename == str(path)
        assert pipe.is_fifo()
    assert (tmp_path / "file").read_text() == "new"


def test_a_folder_is_moved_and_its_new_parent_flushed(calls, tmp_path):
    source, target = tmp_path.resolve() / "a.part", tmp_path.resolve() / "a"
    source.mkdir()
    durable_files.move(source, target)
    assert target.is_dir()
    assert calls == [
        ("fsync", str(source)),
        ("replace", str(target)),
        ("fsync", str(target.parent)),
    ]


def test_an_error_names_the_file_and_a_rename_that_is_not_flushed_is_undone(
    tmp_path, monkeypatch
):
    path, new = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_text("old")

    def fail(handle):
        if Path(os.readlink(f"/proc/self/fd/{handle}")).is_dir():
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    for file in (path, new):
        with pytest.raises(OSError, match=f"Input/output error: '{file}'"):
            durable_files.write_text(file, "text")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"
    with pytest.raises(OSError, match="Input/output error"):
        durable_files.move(path, new)
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_system_that_cannot_flush_folders_is_written_to(tmp_path, monkeypatch):
    def refuse(handle):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    durable_files.make_folder(tmp_path / "a" / "b")
    durable_files.write_text(tmp_path / "a" / "b" / "c", "text")
    assert (tmp_path / "a" / "b" / "c").read_text() == "text"


def test_new_folders_are_flushed_where_they_lie(calls, tmp_path):
    top = tmp_path.resolve()
    durable_files.make_folder(top / "a" / "b")
    durable_files.make_folder(top / "a" / "b")
    assert calls == [("fsync", str(top)), ("fsync", str(top / "a"))]

"""What stands in Ray's way on a machine is told before Ray starts. No Ray."""

import os
import stat
import tempfile
from pathlib import Path

import pytest
from support.processes import NOBODY, as_stranger

from fedray.errors import ClusterError
from fedray.federation import host_checks
from fedray.federation.host_checks import (
    check_address_space,
    check_shared_memory,
    check_thread_limit,
    check_token,
    exposure_notes,
    has_token_place,
    is_open_to_others,
    prepare_ray_folder,
    state_folder,
    token_file,
    token_path,
)

GIB = 1 << 30


def folder_of(n_bytes: int) -> str:
    return "/" + "a" * (n_bytes - 1)


def test_the_longest_path_that_ray_can_use_passes_and_one_byte_more_is_told(
    monkeypatch,
):
    monkeypatch.setattr(host_checks, "_check_writable", lambda *_: None)
    # ray's limit is 107; /ray/session_2026-01-01_00-00-00_000000_12345/sockets/plasma
    # _store has 4 + 1 + 40 + 21 bytes
    n_most = 107 - len("/ray/session_2026-01-01_00-00-00_000000_12345")
    n_most -= len("/sockets/plasma_store")
    prepare_ray_folder({"RAY_TMPDIR": folder_of(n_most)}, 12345)
    with pytest.raises(ClusterError) as caught:
        prepare_ray_folder({"RAY_TMPDIR": folder_of(n_most + 1)}, 12345)
    assert f"has {n_most + 1} bytes, at most {n_most} are possible" in str(caught.value)
    assert "RAY_TMPDIR=/aaa" in str(caught.value)
    assert "Set RAY_TMPDIR to a short folder" in str(caught.value)
    # bytes count, not letters
    with pytest.raises(ClusterError, match="too long for sockets"):
        prepare_ray_folder({"RAY_TMPDIR": "/" + "ä" * (n_most // 2 + 1)}, 12345)


@pytest.mark.parametrize(
    ("environ", "needed"),
    [
        ({"RAY_TMPDIR": "here"}, r"must be an absolute path \(RAY_TMPDIR=here\)"),
        ({"TMPDIR": ""}, r"must be an absolute path \(TMPDIR=\)"),
        (
            {"TMPDIR": "/etc/passwd"},
            r"\(TMPDIR=/etc/passwd\): /etc/passwd is no folder",
        ),
        (
            {"TMPDIR": "/dev/null/a"},
            "/dev/null is no folder. Set RAY_TMPDIR to a short",
        ),
    ],
)
def test_a_temporary_folder_that_cannot_be_is_told(environ, needed):
    with pytest.raises(ClusterError, match=needed):
        prepare_ray_folder(environ, 1)


@pytest.fixture
def open_folder():
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="fr-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_a_temporary_folder_of_another_user_is_told_with_its_owner(open_folder):
    (open_folder / "ray").mkdir(mode=0o755)
    environ = {"RAY_TMPDIR": str(open_folder)}
    prepare_ray_folder(environ, 1)  # its owner may
    if os.getuid():
        pytest.skip("needs to be root, to be another user then")
    text = as_stranger(lambda: prepare_ray_folder(environ, 1))
    assert f"folder {open_folder}/ray cannot be written" in text
    assert "belongs to user root" in text
    missing = {"TMPDIR": str(open_folder / "missing")}
    text = as_stranger(lambda: prepare_ray_folder(missing, 1))
    assert f"TMPDIR={open_folder}/missing" in text
    assert "belongs to user root. Set RAY_TMPDIR" in text


def test_a_temporary_folder_that_is_only_missing_is_made_by_ray(open_folder):
    parent = open_folder / "missing"
    prepare_ray_folder({"RAY_TMPDIR": str(parent)}, 1)
    assert not parent.exists()


def test_without_ray_tmpdir_rays_folder_is_in_one_of_the_users_own(open_folder):
    environ = {"TMPDIR": str(open_folder)}
    made = prepare_ray_folder(environ, 1)
    own = open_folder / f"fedray-{os.getuid()}"
    assert (made.path, made.is_own) == (own / "ray", True)
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert not (open_folder / "ray").exists()
    assert prepare_ray_folder(environ, 1) == made  # it is there: the next run's too
    made.path.mkdir(mode=0o777)  # as Ray does
    made.path.chmod(0o777)
    assert not is_open_to_others(made.path)
    if not os.getuid():
        text = as_stranger(lambda: os.listdir(made.path))
        assert text.startswith("PermissionError")


def test_a_long_tmpdir_leaves_rays_folder_in_tmp():
    made = host_checks.ray_folder({"TMPDIR": "/" + "a" * 60}, 12345)
    assert made.path == Path(f"/tmp/fedray-{os.getuid()}/ray")
    made = host_checks.ray_folder({"TMPDIR": "/" + "a" * 90}, 12345)
    assert made.path == Path(f"/tmp/fedray-{os.getuid()}/ray")


def test_a_folder_that_another_user_made_first_is_not_taken(open_folder, tmp_path):
    environ = {"TMPDIR": str(open_folder)}
    own = open_folder / f"fedray-{os.getuid()}"
    own.symlink_to(tmp_path)  # /tmp is everybody's: a link to where others can read
    with pytest.raises(ClusterError, match="not a folder of this user alone"):
        prepare_ray_folder(environ, 1)
    own.unlink()
    own.mkdir(mode=0o777)
    own.chmod(0o777)
    with pytest.raises(ClusterError, match=r"alone\. Set RAY_TMPDIR"):
        prepare_ray_folder(environ, 1)
    if not os.getuid():
        own.chmod(0o700)
        os.chown(own, NOBODY, NOBODY)
        with pytest.raises(ClusterError, match="not a folder of this user alone"):
            prepare_ray_folder(environ, 1)


def test_what_others_can_read_is_told_with_what_mends_it(open_folder):
    ray, token = open_folder / "tmp" / "ray", open_folder / ".ray" / "auth_token"
    for folder in (ray, token.parent):
        folder.mkdir(parents=True)
    token.write_text("secret")
    token.chmod(0o644)
    first, second = exposure_notes({}, open_folder, ray)
    assert f"can read {token}" in first
    assert f"chmod 600 {token}" in first
    assert f"can read Ray's logs in {ray}" in second
    assert "RAY_TMPDIR" in second
    token.chmod(0o600)
    ray.parent.chmod(0o700)
    assert list(exposure_notes({}, open_folder, ray)) == []
    token.chmod(0o644)
    open_folder.chmod(0o700)  # nobody can come by
    assert list(exposure_notes({}, open_folder, ray)) == []


def test_a_full_disk_is_told(small_disk, monkeypatch):
    monkeypatch.setattr(host_checks, "MAX_SOCKET_PATH", 1000)
    with pytest.raises(ClusterError, match=r"its disk has 1\.0 MB free. Make room"):
        prepare_ray_folder({"RAY_TMPDIR": str(small_disk)}, 1)


def test_a_token_can_be_made_at_home_or_comes_from_the_environment(tmp_path):
    assert has_token_place({}, tmp_path)
    assert not has_token_place({}, None)
    assert has_token_place({"RAY_AUTH_TOKEN": "x"}, None)
    assert has_token_place({"RAY_AUTH_TOKEN_PATH": "/x"}, None)
    assert has_token_place({"RAY_AUTH_MODE": "disabled"}, None)
    assert not has_token_place({"RAY_AUTH_MODE": "token"}, None)
    assert not has_token_place({}, tmp_path / "missing")
    if not os.getuid():  # HOME=/, as in many containers
        assert as_stranger(lambda: has_token_place({}, Path("/"))) == "False"


def test_a_token_at_home_is_written_for_its_owner_alone_and_once(tmp_path):
    file = token_path({}, tmp_path)
    assert file == tmp_path / ".ray" / "auth_token"
    text = token_file(file).read_text()
    assert len(text) == 64
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert token_file(file).read_text() == text
    assert token_path({"RAY_AUTH_MODE": "disabled"}, tmp_path) is None
    assert token_path({"RAY_AUTH_TOKEN": "x"}, tmp_path) is None
    assert token_path({"RAY_AUTH_TOKEN_PATH": "/x"}, tmp_path) == Path("/x")


def test_a_token_file_that_cannot_be_read_is_told(tmp_path):
    check_token({})
    (tmp_path / "token").write_text(" \n")
    with pytest.raises(ClusterError, match=r"is empty\. `ray get-auth-token"):
        check_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")})
    with pytest.raises(ClusterError, match="cannot be read: No such file"):
        check_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")})
    check_token({"RAY_AUTH_TOKEN_PATH": "/none", "RAY_AUTH_TOKEN": "counts"})


@pytest.mark.parametrize("mode", ["", "tokens", "on", "1"])
def test_an_unknown_way_of_authentication_is_told(mode):
    check_token({"RAY_AUTH_MODE": "TOKEN"})
    check_token({"RAY_AUTH_MODE": "disabled"})
    with pytest.raises(ClusterError, match=f"is '{mode}'; it can be token or disabled"):
        check_token({"RAY_AUTH_MODE": mode})  # Ray would take no token, silently


@pytest.mark.parametrize("home", [None, "/none", "/dev/null"])
def test_without_a_home_notes_and_token_are_in_a_folder_of_ones_own(
    monkeypatch, tmp_path, home
):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    if home is None:
        monkeypatch.setattr(Path, "home", no_home)
    else:
        monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = state_folder()
    assert folder == tmp_path / f"fedray-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    token = token_file()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(token.read_text()) == 64
    assert token_file().read_text() == token.read_text()  # made once
    folder.chmod(0o777)  # others may have put files there
    with pytest.raises(ClusterError, match="not a folder of this user alone"):
        token_file()


def test_with_a_home_notes_are_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_folder() == tmp_path / ".fedray"


def test_a_small_address_space_is_told():
    check_address_space(-1, 100 * GIB)
    check_address_space(13 * GIB, 6 * GIB)
    with pytest.raises(ClusterError, match=r"to 12 GiB .*needs about 13 GiB here"):
        check_address_space(13 * GIB - 1, 6 * GIB)


def test_too_few_threads_are_told():
    check_thread_limit(-1)
    check_thread_limit(256)
    with pytest.raises(ClusterError, match=r"to 255 processes .*ulimit -u 4096"):
        check_thread_limit(255)


def test_small_shared_memory_is_a_note_and_none_is_an_error(small_disk, tmp_path):
    assert list(check_shared_memory(tmp_path, 1)) == []
    (note,) = check_shared_memory(small_disk, 2 << 20)
    assert "1 MiB free, and Ray's object store 2 MiB" in note
    assert "--shm-size" in note
    with pytest.raises(ClusterError, match="none, which Ray needs, is missing"):
        list(check_shared_memory(tmp_path / "none", 1))

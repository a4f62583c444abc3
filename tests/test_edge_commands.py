"""`fedray edges`, and the flags of `fedray serve` that open the edges' door. No Ray."""

import json

import pytest
from support.certificates import make_certificates

from fedray.cli import main
from fedray.edge_door.actor import DoorSettings, find_run_folders
from fedray.edge_door.tls import Certificate
from fedray.edges.contacts import Contacts
from fedray.edges.protocol import Enrol, read_invitation
from fedray.edges.registry import Registry
from fedray.errors import CallRefused, ConfigError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def enrol(folder, invitation):
    request = Enrol(
        invitation=invitation,
        public_key="1" * 64,
        token_hash="2" * 64,
        version="0.1.0",
    )
    return Registry(folder).enrol(request)


def test_an_invitation_is_all_of_stdout_and_enrols_an_edge_of_that_run(home, capsys):
    assert main(["edges", "invite", "clinics", "--name", "hospital-a"]) == 0
    out, err = capsys.readouterr()
    assert read_invitation(out) is not None
    assert out.count("\n") == 1
    assert "clinics has not begun: start it by `fedray run CONFIG name=clinics`" in err
    assert "--invitation-file FILE --data PATH --data-handler HANDLER" in err
    folder = home / ".fedray" / "runs" / "clinics"
    assert enrol(folder, out.strip()).name == "hospital-a"
    assert folder in set(find_run_folders(home / "service"))


def test_many_go_to_a_new_file_that_nobody_else_reads(home, capsys):
    file = home / "invitations"
    words = ["edges", "invite", str(home / "run"), "--count", "3", "--out", str(file)]
    assert main(words) == 0
    assert capsys.readouterr().out == ""
    assert len({read_invitation(line) for line in file.read_text().splitlines()}) == 3
    assert file.stat().st_mode & 0o777 == 0o600
    before = file.read_text()
    assert main(words) == 1
    assert "is there already" in capsys.readouterr().err
    assert file.read_text() == before
    assert len(list(Registry(home / "run").invitations())) == 3


def test_a_mistake_leaves_no_file_and_no_invitation(home, capsys):
    file = home / "invitations"
    words = ["edges", "invite", str(home / "run"), "--count", "0", "--out", str(file)]
    assert main(words) == 1
    assert "count must be 1 to 1000000, got 0" in capsys.readouterr().err
    assert not file.exists()
    assert not (home / "run").exists()


def test_edges_are_listed_with_what_the_door_knows_of_them(home, capsys):
    registry = Registry(home / "run")
    for name in ("a", "b"):
        enrol(home / "run", registry.invite(name)[0])
    row = Contacts(home / "run" / "edges").row(0)
    row["last_seen"], row["version"], row["round"] = 1e9, b"0.1.0", 7
    row["bytes_up"], row["rate"], row["state"] = 5_000_000, 2e6, 1
    run = str(home / "run")
    assert main(["edges", "list", run]) == 0
    first, second = capsys.readouterr().out.splitlines()
    for word in (
        "a ",
        "enrolled, training",
        "d ago",
        "0.1.0",
        "round 7",
        "up 5 MB",
        "2 MB/s",
    ):
        assert word in first
    assert "never seen" in second
    assert main(["edges", "list", run, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed[0]["activity"] == "training"
    assert (listed[0]["round"], listed[1]["last_seen"]) == (7, None)


def test_revoked_and_rotated_edges_are_shut_out(home, capsys):
    run, registry = str(home / "run"), Registry(home / "run")
    enrol(home / "run", registry.invite("a")[0])
    enrol(home / "run", registry.invite()[0])
    assert main(["edges", "revoke", run, "edge-1"]) == 0
    assert main(["edges", "rotate", run, "a"]) == 0
    out = capsys.readouterr().out
    assert "edge edge-1 is shut out of" in out
    invitation = out.splitlines()[-1]
    assert enrol(home / "run", invitation).party == 0
    assert main(["edges", "invitations", run, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["state"] for one in listed] == ["used", "used", "used"]
    assert main(["edges", "revoke", run, "edge-1"]) == 1
    assert "no edge or unused invitation 'edge-1'" in capsys.readouterr().err


def test_a_name_that_has_not_enrolled_is_shut_out_by_its_name(home, capsys):
    run, registry = str(home / "run"), Registry(home / "run")
    enrol(home / "run", registry.invite("a")[0])
    again = registry.rotate("a")
    registry.invite("b")
    for name in ("a", "b"):
        assert main(["edges", "revoke", run, name]) == 0
        assert f"invitation of {name} is shut out of" in capsys.readouterr().out
        assert main(["edges", "revoke", run, name]) == 1
    with pytest.raises(CallRefused, match="revoked"):
        enrol(home / "run", again)


def test_invitations_are_for_runs_not_for_other_folders(home, capsys):
    (home / "thesis.txt").touch()
    assert main(["edges", "invite", str(home)]) == 1
    assert "is no run's folder, it has 'thesis.txt' in it" in capsys.readouterr().err
    assert not (home / "edges").exists()
    new = home / "runs" / "new"
    assert main(["edges", "invite", str(new)]) == 0
    assert f"`fedray run CONFIG --run-dir {new}`" in capsys.readouterr().err


def test_a_long_list_shows_its_end_and_says_how_to_see_all(home, capsys):
    Registry(home / "run").invite(count=60)
    assert main(["edges", "invitations", str(home / "run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (len(lines), lines[0][:7]) == (51, "... 10 ")
    assert main(["edges", "invitations", str(home / "run"), "--all"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 60


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["list", "nosuch"], "no run 'nosuch' here"),
        (["list", "./nosuch"], "no run './nosuch' here"),
        (["list", "a\x1b[31mb"], "cannot be a run's name"),
        (["invite", ""], "cannot be a run's name"),
        (["invite", "x", "--name", "../y"], "names become part of paths"),
        (["invite", "x", "--days", "0"], "days must be above 0"),
        (["invite", "x", "--out", "/nosuch/file"], "--out /nosuch/file"),
    ],
)
def test_mistakes_are_one_clear_line(words, says, capsys):
    assert main(["edges", *words]) == 1
    assert says in capsys.readouterr().err


def test_a_run_of_the_service_is_named_by_its_id(home, monkeypatch, capsys):
    monkeypatch.setenv("FEDRAY_ROOT", str(home / "service"))
    folder = home / "service" / ("a" * 32)
    folder.mkdir(parents=True)
    assert main(["edges", "invite", "a" * 32]) == 0
    assert enrol(folder, capsys.readouterr().out.strip()).name == "edge-0"
    assert folder in set(find_run_folders(home / "service"))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--edge-host", "0.0.0.0"], "edges at --edge-host 0.0.0.0 need TLS"),
        (["--edge-port", "0", "--tls-cert", "c"], "go together: give both"),
        (["--tls-cert", "c", "--tls-key", "k"], "give --edge-host or --edge-port, too"),
        (
            ["--edge-port", "0", "--tls-cert", "/nosuch", "--tls-key", "/nosuch"],
            "--tls-cert, --tls-key: cannot be read: No such file or directory",
        ),
        (["--edge-port", "99999"], "there is no port 99999"),
    ],
)
def test_a_door_that_cannot_open_ends_serve_before_a_cluster_starts(
    flags, says, home, capsys, monkeypatch
):
    from fedray.service import http_server

    monkeypatch.delattr(http_server, "cluster_connection")
    words = ["serve", "--port", "0", "--root", str(home / "service"), *flags]
    assert main(words) == 1
    assert says in capsys.readouterr().err


def test_a_certificate_with_another_key_or_a_password_is_refused(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    mine, others = make_certificates(one), make_certificates(other)
    with pytest.raises(ConfigError, match="with the key that is its own"):
        Certificate(str(mine.cert), str(others.key))
    with pytest.raises(ConfigError, match="with the key that is its own"):
        Certificate(str(mine.key), str(mine.key))
    text = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY"
    mine.key.write_text(text + "-----\n")
    with pytest.raises(ConfigError, match="--tls-cert, --tls-key"):
        Certificate(str(mine.cert), str(mine.key))


def test_this_machine_alone_is_served_without_tls():
    for host in ("127.0.0.1", "localhost", "::1"):
        assert DoorSettings(host).certificate() is None


def test_a_port_of_the_door_that_is_taken_is_named_by_its_own_flag(
    home, capsys, monkeypatch
):
    import socket

    from fedray.service import http_server

    monkeypatch.delattr(http_server, "cluster_connection")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        words = ["serve", "--port", "0", "--root", str(home), "--edge-port", port]
        assert main(words) == 1
    assert "Take another --edge-port" in capsys.readouterr().err

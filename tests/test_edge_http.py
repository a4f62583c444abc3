"""An edge's HTTPS client, its waiting, and its policy file; no training."""

import http.server
import json
import shutil
import socket
import threading

import pytest
from support.certificates import make_certificates

from fedray.cli import main
from fedray.edge.backoff import LONGEST_S, Backoff
from fedray.edge.bandwidth import Bandwidth
from fedray.edge.condition import Condition
from fedray.edge.errors import EdgeEnded, PolicyError, Unreachable
from fedray.edge.heartbeat import EVERY_S, interval_s
from fedray.edge.http_client import Call, HttpClient, check_urls
from fedray.edge.policy import EdgePolicy, read_policy
from fedray.edge.sending import chunk_size
from fedray.edge.sent_log import SentLog
from fedray.edge.service import Service
from fedray.edge.state import StateFolder, default_folder
from fedray.edge.work import TaskFailed, Work
from fedray.edges import tensor_file
from fedray.edges.plan import PlanSummary
from fedray.errors import ConfigError


class Server:
    """Answers each request by `answers[path]`: status, headers, body."""

    def __init__(self, certificates=None):
        self.answers, self.requests = {}, []
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def serve(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                owner.requests.append((self.command, self.path, self.headers, body))
                status, headers, data = owner.answers.get(
                    self.path.removeprefix("/edge/v1/"), (200, {}, b"ok")
                )
                self.send_response(status)
                for name, text in headers.items():
                    self.send_header(name, text)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def __getattr__(self, name):
                if name.startswith("do_"):
                    return self.serve
                raise AttributeError(name)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if certificates:
            import ssl

            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificates.cert, certificates.key)
            self.server.socket = context.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = self.server.server_port
        scheme = "https" if certificates else "http"
        self.url = f"{scheme}://localhost:{self.port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


GET = Call("GET", "x")


def test_urls_are_https_but_for_this_machine():
    assert check_urls(["https://a.example/", "https://a.example"]) == [
        "https://a.example"
    ]
    assert check_urls(["https://a.example:8443/edge/v1"]) == ["https://a.example:8443"]
    assert check_urls(["http://127.0.0.1:80", "http://[::1]:1", "http://localhost"])
    wrong = [
        "http://a.example", "ftp://a.example", "a.example", "https://", "https://a:b",
        "https://user@a.example", "https://a.example?x=1", "http://127.0.0.1.evil",
    ]  # fmt: skip
    with pytest.raises(ConfigError) as error:
        check_urls(wrong)
    assert len(error.value.problems) == len(wrong)
    assert "http:// is for localhost alone" in error.value.problems[0]


def test_the_token_goes_to_the_service_and_nothing_of_netrc_does(tmp_path, monkeypatch):
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine localhost login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with Server() as server:
        HttpClient([server.url], token="t").call(GET)
        HttpClient([server.url]).call(GET)
    headers = [headers.get("Authorization") for _, _, headers, _ in server.requests]
    assert headers == ["Bearer t", None]


def test_an_unknown_certificate_is_refused_and_two_cas_stand_side_by_side(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    old, new = (make_certificates(tmp_path / name) for name in ("old", "new"))
    ca = tmp_path / "ca.pem"
    shutil.copy(old.ca, ca)
    client = None
    with Server(old) as first, Server(new) as second:
        client = HttpClient([first.url], ca)
        assert client.call(GET).status == 200
        other = HttpClient([second.url], ca)
        with pytest.raises(Unreachable, match="certificate is not verified"):
            other.call(GET)
        assert second.requests == []
        ca.write_bytes(old.ca.read_bytes() + new.ca.read_bytes())
        assert other.call(GET).status == 200  # read anew, without a restart
        assert client.call(GET).status == 200
        with pytest.raises(Unreachable, match="give --ca"):
            HttpClient([first.url]).call(GET)  # no public CA knows it
        ca.write_text("half of a file")
        with pytest.raises(Unreachable, match="has no certificate"):
            HttpClient([first.url], ca).call(GET)
        ca.unlink()
        with pytest.raises(Unreachable, match="--ca is not there"):
            HttpClient([first.url], ca).call(GET)


def test_where_one_service_does_not_answer_the_next_one_is_asked():
    with socket.socket() as taken, Server() as server:
        taken.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}"
        client = HttpClient([dead, server.url])
        assert client.call(GET).status == 200
        assert client.url == server.url  # kept to
        said = b'{"error": "e", "detail": "No such run yet.", "hint": ""}'
        server.answers["x"] = 429, {}, said
        with pytest.raises(Unreachable, match=r"No such run yet \(429\)"):
            client.call(GET)
        server.answers["x"] = 503, {"Retry-After": "7"}, b""
        with pytest.raises(Unreachable) as error:
            client.call(GET)
    assert error.value.retry_after_s == 7
    assert "Service Unavailable (503)" in str(error.value)
    assert "nothing listens there" in str(error.value)


def test_a_redirect_is_followed_to_hosts_of_url_and_with_no_token_elsewhere(tmp_path):
    certificates = make_certificates(tmp_path)
    with Server() as here, Server() as there, Server(certificates) as far:
        client = HttpClient([here.url, there.url], certificates.ca, token="t")
        here.answers["x"] = 307, {"Location": f"{there.url}/edge/v1/y"}, b""
        assert client.call(Call("POST", "x", b"{}")).body == b"ok"
        assert there.requests[-1][2]["Authorization"] == "Bearer t"
        assert there.requests[-1][3] == b"{}"
        here.answers["x"] = 302, {"Location": f"{far.url}/o"}, b""
        with pytest.raises(EdgeEnded, match=f"add --url https://localhost:{far.port}"):
            client.call(Call("GET", "x"))
        assert far.requests == []
        pieces = []
        sink = lambda status, piece: pieces.append(piece)  # noqa: E731
        assert client.call(Call("GET", "x", sink=sink)).status == 200
        assert pieces == [b"ok"]
        assert far.requests[-1][2].get("Authorization") is None
        here.answers["x"] = 302, {"Location": "http://elsewhere.example/"}, b""
        with pytest.raises(EdgeEnded, match="is not https"):
            client.call(Call("GET", "x", sink=sink))
        far.answers["x"] = 302, {"Location": f"{here.url}/edge/v1/y"}, b""
        n_here = len(here.requests)
        client = HttpClient([f"https://localhost:{far.port}"], certificates.ca)
        with pytest.raises(EdgeEnded, match="which is not https"):
            client.call(Call("GET", "x", sink=sink))
        assert len(here.requests) == n_here
        here.answers["x"] = 302, {"Location": f"{here.url}/edge/v1/x"}, b""
        with pytest.raises(Unreachable, match="in a circle"):
            HttpClient([here.url]).call(GET)


def test_a_leave_is_done_where_the_service_knows_the_edge_no_more(tmp_path):
    with Server() as here:
        service = Service(HttpClient([here.url], token="t"), SentLog(tmp_path))
        assert service.leave()
        here.answers["leave"] = 401, {}, b""  # the answer of the first one was lost
        assert not service.leave()
        here.answers["leave"] = 426, {}, b""
        with pytest.raises(EdgeEnded, match="update it here"):
            service.leave()


def test_a_body_is_listed_each_time_that_it_leaves(tmp_path):
    with Server() as busy, Server() as here:
        busy.answers["leave"] = 503, {}, b""
        here.answers["leave"] = 307, {"Location": f"{here.url}/edge/v1/y"}, b""
        log = SentLog(tmp_path)
        Service(HttpClient([busy.url, here.url]), log).leave()
        assert [one[3] for one in (*busy.requests, *here.requests)] == [b"{}"] * 3
        lines = [json.loads(line) for line in log.path.read_text().splitlines()]
        assert [(line["kind"], line["bytes"]) for line in lines] == [("leave", 2)] * 3


def test_an_answer_without_end_or_with_an_encoding_is_not_taken():
    with Server() as server:
        client = HttpClient([server.url])
        server.answers["x"] = 200, {}, bytes(2 << 20)
        with pytest.raises(Unreachable, match="does not end"):
            client.call(GET)
        server.answers["x"] = 200, {"Content-Encoding": "gzip"}, b"..."
        with pytest.raises(Unreachable, match="compressed"):
            client.call(GET)


def test_proxies_of_the_environment_are_used_but_not_for_this_machine(monkeypatch):
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as proxy:

        def serve():
            while True:
                try:
                    connection, _ = proxy.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(4096).split(b"\r\n")[0])
                    connection.sendall(b"HTTP/1.1 403 no\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        with pytest.raises(Unreachable, match="the proxy does not let it through"):
            HttpClient(["https://fusion.example"]).call(GET)
        assert [line.split()[:2] for line in asked] == [
            [b"CONNECT", b"fusion.example:443"]
        ]
        with pytest.raises(Unreachable, match=r"nothing listens|not answer|broke"):
            HttpClient(["https://127.0.0.1:1"]).call(GET)
        assert len(asked) == 1
        monkeypatch.setenv("no_proxy", "fusion.invalid")
        with pytest.raises(Unreachable):
            HttpClient(["https://fusion.invalid"]).call(GET)
        assert len(asked) == 1


def test_bytes_leave_no_faster_than_allowed():
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    bandwidth = Bandwidth(1000, lambda: now[0], sleep)
    assert bandwidth.piece == 200
    for _ in range(10):
        bandwidth.take(500)
    assert now[0] == pytest.approx(4.5)  # by hand: the last may go at 9 · 500 / 1000
    assert Bandwidth().piece == 64 << 10
    assert chunk_size(Bandwidth(10_000)) == 200_000  # 20 s
    assert chunk_size(Bandwidth(1)) == 16 << 10
    assert chunk_size(Bandwidth()) == 8 << 20


def test_waiting_doubles_with_jitter_and_what_the_service_asks_for_counts():
    least, most = Backoff(lambda a, b: a), Backoff(lambda a, b: b)
    assert [least.delay_s() for _ in range(4)] == [0.5, 1, 2, 4]
    assert [most.delay_s() for _ in range(4)] == [1, 2, 4, 8]
    assert [most.delay_s() for _ in range(20)][-1] == LONGEST_S
    assert (least.delay_s(60), most.delay_s(60)) == (60, 72)
    most.reset()
    assert most.delay_s() == 1


def test_heartbeats_come_every_30_s_give_or_take_a_fifth():
    assert interval_s(EVERY_S, lambda a, b: a) == pytest.approx(24)
    assert interval_s(EVERY_S, lambda a, b: b) == pytest.approx(36)


def test_the_owners_command_is_run_again_only_after_a_while(tmp_path):
    now, count = [0.0], tmp_path / "count"
    condition = Condition(f"echo x >> {count}; false", lambda: now[0])
    assert not condition.holds()
    assert not condition.holds()
    assert count.read_text().count("x") == 1
    now[0] = 11
    assert not condition.holds()
    assert count.read_text().count("x") == 2
    assert Condition().holds()


def test_work_waits_while_the_owners_command_fails(tmp_path):
    now, charging = [0.0], tmp_path / "charging"

    def sleep(seconds):
        charging.touch()
        now[0] += 20

    condition = Condition(f"test -e {charging}", lambda: now[0], sleep)
    condition.wait(lambda: True)  # nobody waits for the work
    assert not condition.holds()
    condition.wait()
    assert condition.holds()
    assert now[0] == 20


def summary(**settings) -> PlanSummary:
    return PlanSummary("r", "r", "pytorch", "layers", "", "npz", settings, 1000)


@pytest.mark.parametrize(
    ("policy", "settings", "words"),
    [
        ({"models": ["keras"]}, {}, "models ['keras'], not a model of pytorch"),
        ({"max_model_bytes": 999}, {}, "max_model_bytes 999, not 1,000 bytes"),
        ({"max_epochs": 2}, {"epochs": 3}, "max_epochs 2, not 3 epochs"),
        ({"max_epochs": 2}, {"epochs": 1, "personal_epochs": 2}, "not 3 epochs"),
        ({"max_epochs": 1}, {"ditto_lambda": 0.1}, "not 2 epochs"),
        ({"max_epochs": 1}, {"finetune_epochs": 9}, "not 10 epochs"),
        ({"privacy": {"secure_aggregation": True}}, {}, "without secure_aggregation"),
        ({"privacy": {"noise_at_least": 1}}, {}, "would add no noise itself"),
        ({"privacy": {"noise_at_least": 1}}, {"privacy": {"mechanism": "central"}},
         "would add no noise itself"),
    ],
)  # fmt: skip
def test_a_plan_beyond_the_policy_is_refused(policy, settings, words):
    with pytest.raises(PolicyError) as error:
        EdgePolicy.model_validate(policy).check_plan(summary(**settings))
    assert words in str(error.value)


def test_weights_beyond_the_policy_are_not_fetched_whatever_the_plan_says():
    work = Work(None, None, EdgePolicy(max_model_bytes=1000), None, "")
    work.check_sizes(1000 + tensor_file.MAX_HEADER)
    with pytest.raises(TaskFailed, match=r"max_model_bytes 1,000, not 1,001 bytes"):
        work.check_sizes(1001 + tensor_file.MAX_HEADER)


def test_samples_and_noise_are_compared_once_the_data_is_known():
    policy = EdgePolicy(max_samples=100, max_epochs=3)
    policy.check_training({"epochs": 2}, 50, None)
    with pytest.raises(PolicyError, match="max_samples 100, not 150 samples"):
        policy.check_training({"epochs": 3}, 50, None)
    with pytest.raises(PolicyError, match="max_epochs 3, not 4 epochs"):
        policy.check_training({"local_steps": 5, "batch_size": 20}, 25, None)
    noisy = EdgePolicy.model_validate({"privacy": {"noise_at_least": 1.5}})
    noisy.check_training({}, 10, 1.5)
    with pytest.raises(PolicyError, match=r"not a noise multiplier of 1\.4"):
        noisy.check_training({}, 10, 1.4)
    with pytest.raises(PolicyError, match="not no noise"):
        noisy.check_training({}, 10, None)


def test_a_policy_file_is_read_whole_or_not_at_all(tmp_path):
    path = tmp_path / "edge.yaml"
    path.write_text("max_epochs: 5\nmax_model_bytes: 1e9\nprivacy:\n"
                    "  noise_at_least: 1\n  secure_aggregation: no\n")  # fmt: skip
    policy = read_policy(path)
    assert (policy.max_epochs, policy.max_model_bytes) == (5, 1_000_000_000)
    assert policy.privacy.noise_at_least == 1
    path.write_text("# nothing is limited\n")
    assert read_policy(path) == EdgePolicy()
    for text, words in (
        ("max_epoch: 5", "max_epoch: Extra inputs"),
        ("max_epochs: 0", "max_epochs"),
        ("max_epochs: many", "got 'many'"),
        ("max_epochs: true", "max_epochs"),
        ("models: pytorch", "models"),
        ("models: [torch]", "models"),
        ("privacy: {noise_at_least: -1}", "noise_at_least"),
        ("privacy: {noise_at_least: .nan}", "noise_at_least"),
        ("- a", "the file"),
        ("max_epochs: 5\nmax_epochs: 6", "twice"),
        ("max_epochs: [", "not YAML"),
        ("\0", "not YAML"),
    ):
        path.write_text(text)
        with pytest.raises(PolicyError, match=words.replace("[", r"\[")):
            read_policy(path)
    with pytest.raises(PolicyError, match="No such file"):
        read_policy(tmp_path / "no")


def test_a_state_folder_is_named_by_its_invitation(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    one = "fedray-invite." + "ab" * 16 + "." + "x" * 43
    assert default_folder(one) == default_folder(one + "\n")
    assert default_folder(one) != default_folder(one.replace("x", "y"))
    assert default_folder(one).parent == tmp_path / ".fedray" / "edge"
    with StateFolder(default_folder(one)):
        assert default_folder(None) == default_folder(one)
    with StateFolder(default_folder(one.replace("x", "y"))):
        pass
    with pytest.raises(Exception, match="it has 2 edges"):
        default_folder(None)


def test_key_and_token_are_made_once(tmp_path):
    with StateFolder(tmp_path / "state") as state:
        first = state.identity()
        again = state.identity()
    assert first.public_key == again.public_key
    assert first.secret == again.secret
    assert first.secret not in repr(first)
    (tmp_path / "state" / "identity.key").write_bytes(b"short")
    with pytest.raises(Exception, match="it is damaged"):
        state.identity()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--url", "http://a.example"], "http:// is for localhost alone"),
        (["--ca", "/no/such/file"], "there is no such file"),
        (["--data-args", "3"], "--data-args takes a mapping"),
        (["--data", "/no/such.npz"], "--data /no/such.npz: there is no such file"),
        (["--data-handler", "nps"], "did you mean 'npz'"),
        (["--data-handler", "/no/mine.py:Mine"], "cannot read data_handler"),
        (["--data-args", "{colour: red}"], "data_args of npz"),
        (["--architecture", "net.py"], "file.py:name is needed"),
        (["--architecture", "/no/net.py:net"], "cannot read --architecture"),
        (["--model-class", "/no/net.py:Net"], "cannot read --model-class"),
        (["--invitation-file", "/no/such/file"], "No such file"),
        (["--invitation-file", __file__], "it has several lines"),
        (["--policy", "/no/such/file", "--state-dir", "{tmp}"], "cannot read policy"),
        (["--state-dir", "{tmp}"], "this edge has not enrolled"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(tmp_path, capsys, words, expected):
    command = ["edge", "--data-handler", "npz", "--data", str(tmp_path)]
    if "--url" not in words:
        command += ["--url", "https://localhost:1"]
    words = [word.replace("{tmp}", str(tmp_path / "s")) for word in words]
    assert main(command + words) == 1
    message = capsys.readouterr().err
    assert expected in message
    assert "Traceback" not in message


@pytest.mark.parametrize("size", ["", "0", "-1", "2X", "1e3", "nan", "k"])
def test_a_size_that_is_none_is_a_usage_error(size, capsys):
    command = ["edge", "--url", "https://a", "--data", "a", "--data-handler", "npz"]
    with pytest.raises(SystemExit) as end:
        main([*command, f"--max-disk={size}"])
    assert end.value.code == 2
    assert "number of bytes: 500000, 500k, 2M or 1G" in capsys.readouterr().err

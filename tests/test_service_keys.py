"""API keys, separation of clients, loopback-only access, operator settings."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient
from support.rest import DIGITS, FORM, Client, data_file, json_of, opened_form

from fedray.cli import main
from fedray.config import parse
from fedray.errors import CallRefused, ConfigError
from fedray.service import (
    asgi,
    auth,
    client_words,
    json_text,
    membership,
    schemas,
)
from fedray.service.settings import Settings
from fedray.service.uploads import FormData, PartHeader, Upload

WITHOUT = ["/", "/page.js", "/curves.js", "/page.css", "/docs", "/openapi.json",
           "/health"]  # fmt: skip


@pytest.fixture(scope="module")
def guarded(cluster, tmp_path_factory):
    """A service with keys, in this process; gives (two clients, none, key file)."""
    folder = tmp_path_factory.mktemp("guarded")
    file = folder / "keys"
    own = [auth.add_key(file, name) for name in ("ann", "bob")]
    settings = Settings(str(folder / "root"), str(file), max_open=2)
    with TestClient(asgi.build(settings), raise_server_exceptions=False) as http:
        clients = [
            Client(http=http, **{"X-IBM-Client-Id": id, "X-IBM-Client-Secret": secret})
            for id, secret in own
        ]
        yield *clients, Client(http=http), file


def test_a_secret_is_printed_once_and_only_its_hash_is_kept(tmp_path, capsys):
    file = tmp_path / "keys"
    assert main(["keys", "add", str(file), "ann"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["X-IBM-Client-Id", "ann"]
    secret = shown[1].split()[1]
    assert len(secret) >= 43  # 256 bits in base64
    assert secret not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert auth.secret_matches(auth.read_keys(file), "ann", secret)
    assert not auth.secret_matches(auth.read_keys(file), "ann", secret + "x")
    assert not auth.secret_matches(auth.read_keys(file), "bob", secret)
    assert main(["keys", "add", str(file), "ann"]) == 1
    assert main(["keys", "add", str(file)]) == 0
    assert main(["keys", "list", str(file)]) == 0
    assert main(["keys", "remove", str(file), "ann"]) == 0
    assert main(["keys", "remove", str(file), "ann"]) == 1
    assert len(auth.read_keys(file)) == 1


@pytest.mark.parametrize(
    "text", ["ann", "ann secret", "ann sha256:12", "a b c", "\xff"]
)
def test_a_key_file_of_another_form_is_refused(tmp_path, text):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ConfigError, match="keys"):
        auth.read_keys(tmp_path / "keys")


def test_a_federation_is_visible_to_its_own_client_only(guarded):
    ann, bob, _, _ = guarded
    id = json_of(ann.start())["aggregator_id"]
    assert ann.state(id)["state"] == "waiting for parties"
    unknown = bob.get(f"/aggregators/{'0' * 32}")
    for answer in (
        bob.join(id),
        bob.train(id),
        bob.stop(id),
        bob.get(f"/aggregators/{id}"),
        bob.get(f"/aggregators/{id}/weights"),
    ):
        assert (answer.status_code, json_of(answer)) == (404, json_of(unknown))
    assert json_of(bob.get("/aggregators"))["aggregators"] == []
    assert len(json_of(ann.get("/aggregators"))["aggregators"]) == 1
    assert ann.state(id)["remaining_parties"] == 2
    ann.stop(id)


def test_open_federations_of_a_client_are_limited(guarded):
    ann, bob, _, _ = guarded
    ids = [json_of(ann.start())["aggregator_id"] for _ in range(2)]
    more = ann.start()
    assert (more.status_code, "2 of your" in json_of(more)["detail"]) == (429, True)
    ids.append(json_of(bob.start())["aggregator_id"])
    assert ann.stop(ids[0]).status_code == 200
    again = ann.start()
    assert again.status_code == 200
    for client, id in (
        (ann, ids[1]),
        (bob, ids[2]),
        (ann, json_of(again)["aggregator_id"]),
    ):
        client.stop(id)


def test_without_a_valid_key_every_call_is_401(guarded):
    ann, bob, nobody, _ = guarded
    own, secret = ann.headers.values()
    bobs = bob.headers["X-IBM-Client-Secret"]
    for headers in (
        {},
        {"X-IBM-Client-Id": own},
        {"X-IBM-Client-Secret": secret},
        {"X-IBM-Client-Id": own, "X-IBM-Client-Secret": bobs},
        {"X-IBM-Client-Id": own, "X-IBM-Client-Secret": secret[:-1]},
        {"X-IBM-Client-Id": own, "X-IBM-Client-Secret": secret + " x"},
        {"X-IBM-Client-Id": "", "X-IBM-Client-Secret": ""},
        {"X-IBM-Client-Id": "a" * 10_000, "X-IBM-Client-Secret": secret},
        {"X-IBM-Client-Id": own, "X-IBM-Client-Secret": b"\xff\xfe\x80"},
        {"X-IBM-Client-Id": "änn".encode(), "X-IBM-Client-Secret": secret},
        [("X-IBM-Client-Id", own), ("X-IBM-Client-Id", own),
         ("X-IBM-Client-Secret", secret)],
        [("X-IBM-Client-Id", own), ("X-IBM-Client-Secret", "x"),
         ("X-IBM-Client-Secret", secret)],
    ):  # fmt: skip
        for call in ("GET /aggregators", "POST /train", "POST /stop", "GET /nope"):
            verb, path = call.split()
            answer = nobody.http.request(verb, path, headers=headers)
            assert answer.status_code == 401, (headers, path)
            assert json_of(answer)["error"] == "unauthorized"
    for path in WITHOUT:  # nothing of anyone's is in them
        assert nobody.get(path).status_code == 200


def test_added_and_removed_keys_take_effect_at_once(guarded):
    _, _, nobody, file = guarded
    id, secret = auth.add_key(file, "eve")
    eve = Client(
        http=nobody.http, **{"X-IBM-Client-Id": id, "X-IBM-Client-Secret": secret}
    )
    assert eve.get("/aggregators").status_code == 200
    auth.remove_key(file, "eve")
    assert eve.get("/aggregators").status_code == 401


def test_a_custom_handler_and_a_path_are_403_unless_the_operator_allows(guarded):
    ann, *_ = guarded
    id = json_of(ann.start())["aggregator_id"]
    files = {"data": ("d", data_file()), "custom_data_handler": ("h.py", b"1/0")}
    form = {"aggregator_id": id, "data_handler_class_name": "Mine"}
    answer = ann.post("/start-party", data=form, files=files)
    assert answer.status_code == 403
    assert "--allow-custom-handlers" in json_of(answer)["hint"]
    form = {"aggregator_id": id, "data_path": "a.npz"} | DIGITS
    answer = ann.post("/start-party", data=form)
    assert answer.status_code == 403
    assert "--data-root" in json_of(answer)["hint"]
    ann.stop(id)


def test_without_keys_only_this_machine_is_served(tmp_path):
    app = asgi.build(Settings(str(tmp_path)))
    near = TestClient(app, "http://localhost", client=("127.0.0.1", 1))
    assert near.get("/aggregators").status_code == 200
    far = TestClient(app, "http://localhost", client=("10.0.0.7", 1))
    answer = far.post("/start-aggregator", data=FORM)
    assert answer.status_code == 403
    assert "--api-keys" in json_of(answer)["hint"]


def test_serving_other_machines_without_keys_is_refused_before_anything_starts(
    tmp_path, capsys, monkeypatch
):
    from fedray.service import http_server

    monkeypatch.delattr(
        http_server, "cluster_connection"
    )  # which would start a cluster
    words = ["serve", "--host", "0.0.0.0", "--root", str(tmp_path)]
    assert main(words) == 1
    assert "without --api-keys only this machine is served" in capsys.readouterr().err
    (tmp_path / "keys").write_text("# none\n")
    assert main([*words, "--api-keys", str(tmp_path / "keys")]) == 1
    assert "no key in" in capsys.readouterr().err


def test_answers_carry_security_headers(guarded):
    *_, nobody, _ = guarded
    page = nobody.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"


def test_docs_load_nothing_from_other_sites(guarded):
    import re

    *_, nobody, _ = guarded
    html = nobody.get("/docs").text
    linked = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert len(linked) >= 2
    for path in linked:
        assert path.startswith("/"), path
        assert nobody.get(path).status_code == 200
    described = nobody.get("/openapi.json").json()["paths"]
    assert set(described) >= {"/start-aggregator", "/start-party", "/train", "/stop"}
    form = described["/start-party"]["post"]["requestBody"]["content"]
    fields = form["multipart/form-data"]["schema"]["properties"]
    assert fields["data"]["format"] == "binary"


REST_KEYS = [
    "fusion_algorithm", "model_type", "num_parties", "rounds", "epochs",
    "trainable", "learning_rate", "optimizer", "optimizer_args", "batch_size",
    "drop_last", "loss",
    "loss_args", "party_fraction", "selection", "quorum", "over_select",
    "deadline_s", "late",
    "buffer_size", "concurrency", "staleness", "max_staleness", "lease_s", "normalise",
    "round_timeout_s", "stacked", "wire_dtype", "aggregation", "drift_tolerance",
    "drift_threshold", "max_rounds_apart", "metrics", "evaluate_every", "proximal_mu",
    "early_stopping", "target", "keep_best", "compare",
    "scheduler", "scheduler_args", "scheduler_every", "gradient_clip_norm",
    "mixed_precision", "local_steps", "personal", "personal_epochs", "ditto_lambda",
    "finetune_epochs",
    "server_learning_rate", "server_momentum", "server_beta2", "server_tau",
    "candidates", "adopt", "n_hostile", "n_selected", "clip_norm", "bucketing",
    "privacy", "dp_sgd", "secure_aggregation", "min_sum",
    "max_update_norm", "max_refused", "doc2vec", "share", "cap", "row_momentum",
    "seed",
]  # fmt: skip


FILE = {"model_file": "bytes"}
DOC2VEC = {"model_type": "doc2vec", "fusion_algorithm": "doc2vec"}


@pytest.mark.parametrize(
    ("fields", "is_right"),
    [(FILE, True), ({}, False), ({"model_type": "keras"}, False), (DOC2VEC, True),
     ({"model_type": "doc2vec"}, False), ({"fusion_algorithm": "fedadam"}, False),
     (DOC2VEC | FILE, True), ({"model_type": "keras"} | FILE, True)],
)  # fmt: skip
def test_the_description_asks_for_a_model_file_where_the_call_does(fields, is_right):
    described = Draft202012Validator(schemas.AGGREGATOR_FORM)
    assert described.is_valid({"num_parties": 2} | fields) == is_right
    _, problems = parse({"num_parties": 2, "partition": {}} | fields)
    assert (problems == []) == is_right


@pytest.mark.parametrize(
    ("fields", "is_right"),
    [({"data": "bytes"}, True), ({"data_path": "a.npz"}, True), ({}, False),
     ({"data": "bytes", "data_path": "a.npz"}, False),
     ({"data": "bytes", "edge": False}, True), ({"edge": True}, True),
     ({"edge": True, "data_path": "a.npz"}, False), ({"edge": False}, False)],
)  # fmt: skip
def test_the_description_asks_for_data_or_its_path_as_the_call_does(fields, is_right):
    described = Draft202012Validator(schemas.PARTY_FORM)
    call = {"aggregator_id": "a", "data_handler_class_name": "mnist_pytorch"}
    if fields == {"edge": True}:
        del call["data_handler_class_name"]
    assert described.is_valid(call | fields) == is_right
    files = {"data": Upload(Path("a.npz"), 5)} if "data" in fields else {}
    values = {k: v for k, v in fields.items() if k not in files}
    form = FormData(call | values, files)
    refused = contextlib.nullcontext() if is_right else pytest.raises(ConfigError)
    with refused:
        membership.check_fields(form)


ALGORITHMS = schemas.AGGREGATOR_FORM["properties"]["fusion_algorithm"]["enum"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("is_adaptive", [False, True])
def test_the_form_on_docs_is_right_as_it_opens_for_every_algorithm(
    algorithm, is_adaptive
):
    values, _ = opened_form(schemas.AGGREGATOR_FORM, lambda path: b"")
    assert set(values) == set(schemas.REST_KEYS)
    assert "string" not in values.values()
    kind = "doc2vec" if algorithm == "doc2vec" else "pytorch"
    when = "adaptive" if is_adaptive else "always"
    changes = {"fusion_algorithm": algorithm, "model_type": kind}
    if is_adaptive and algorithm in ("fedavg", "fedadam"):
        changes["aggregation"] = when
    settings = schemas.read_settings(values | {"num_parties": "9"} | changes, 256)
    assert settings["fusion_algorithm"] == algorithm
    assert not {"deadline_s", "loss", "optimizer"} & set(settings)  # left empty


def test_a_default_for_other_algorithms_is_as_if_not_sent_but_other_values_stay():
    sent = {"num_parties": "2", "server_momentum": "0.9", "cap": "fourth"}
    assert schemas.read_settings(sent, 256) == {"num_parties": "2"}
    sent |= {"fusion_algorithm": "fedavgm", "server_momentum": "0.5"}
    assert schemas.read_settings(sent, 256)["server_momentum"] == "0.5"


def test_a_config_key_that_is_no_field_says_what_rest_has_instead():
    for key, said in {
        "architecture": "the file model_file",
        "parties": "POST /start-party",
        "data_handler": "data_handler_class_name of /start-party",
        "party_cpus": "only the operator sets it",
    }.items():
        with pytest.raises(ConfigError, match=key) as caught:
            schemas.read_settings({"num_parties": "2", key: "1"}, 256)
        assert said in str(caught.value)


def test_files_under_wrong_names_and_a_missing_model_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        schemas.read_settings({"rounds": "x"}, 256, ["num_parties", "model"])
    assert caught.value.problems == [
        "num_parties is a value, not a file: send it without a file name",
        "unknown file 'model'; did you mean 'model_file'? choose from ['model_file']",
        "model_file is missing: send it as a file of a multipart/form-data form",
        "rounds must be a whole number, got 'x'",
    ]


def test_a_mistyped_aggregator_id_of_a_party_is_named():
    form = FormData({"agregator_id": "x", "data_path": "a.npz"} | DIGITS)
    with pytest.raises(ConfigError) as caught:
        membership.check_fields(form)
    mistyped, missing = caught.value.problems
    assert "unknown field 'agregator_id'; did you mean 'aggregator_id'?" in mistyped
    assert missing == "aggregator_id is missing"


UPLOADS = {
    "a" * 32 + ".pt": "model_file cnn.pt",
    "b" * 32 + ".npz": "data März.npz",
    "c" * 32 + ".py": "custom_data_handler h.py",
    "/srv/data/a.npz": "data_path a.npz",
}
MODEL, DATA, CODE, _ = (f"/srv/my files/.incoming/{name}" for name in UPLOADS)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"model file {MODEL}: holds arrays without their layers; give architecture: "
         "file.py:name", "model_file cnn.pt: holds arrays without their layers"),
        (f"model file {MODEL}: it holds weights without their layers: give "
         "architecture: file.py:function, or call model.save('a.keras')",
         "model_file cnn.pt: it holds weights without their layers: "
         "call model.save('a.keras')"),
        (f"data {DATA}: got 3 x; needed 4", "data März.npz: got 3 x; needed 4"),
        (f"a: DataError: data {DATA}: got 3", "a: data März.npz: got 3"),
        ("data /srv/data/a.npz: got 3; needed 4", "data_path a.npz: got 3; needed 4"),
        (f"no 'B' in data_handler {CODE}: it has ['A']; write {CODE}:name",
         "no 'B' in custom_data_handler h.py: it has ['A']"),
        ("data_handler a is not for keras; take one of ['b'] or your own "
         "file.py:ClassName",
         "data_handler_class_name a is not for keras; take one of ['b']"),
        ("model_file is missing: give it, or an architecture",
         "model_file is missing: send it as a file of a multipart/form-data form"),
        ("cannot place a: wanted 2 CPUs; found 1: lower party_cpus, or wait",
         "cannot place a: wanted 2 CPUs; found 1: wait"),
        ("stopped after 1 round, kept in /srv/my files/x; go on with --resume",
         "stopped after 1 round, kept in x"),
        ("keras needs an extra: pip install 'fedray[keras]'", "keras needs an extra"),
        ("unknown key '--rounds'; did you mean 'rounds'? write rounds=3",
         "unknown key '--rounds'; did you mean 'rounds'?"),
        ("3 refused, max_refused is 2: history.jsonl in /srv/my files/x says whose "
         "and why. 1 round is kept; leave those parties out",
         "3 refused, max_refused is 2. 1 round is kept; leave those parties out"),
        ("a: ModuleNotFoundError: no module 'x' on node 4b: install it there, or put "
         f"x.py beside the file that imports it by a statement ({'c' * 32}.py:4: "
         "`import x`)",
         "a: ModuleNotFoundError: no module 'x' on node 4b: only the operator can "
         "install it there (custom_data_handler h.py:4: `import x`)"),
        ("round 1 failed. 0 rounds are kept in /srv/my files. Mend it --resume",
         "round 1 failed. 0 rounds are kept."),
        ("unknown fusion_algorithm 'x'; choose from ['doc2vec', 'ensemble', 'krum']",
         "unknown fusion_algorithm 'x'; choose from ['doc2vec', 'krum']"),
        ("ValueError: no (/usr/lib/python3/a.py:12)", "ValueError: no (a.py:12)"),
    ],
)  # fmt: skip
def test_a_client_is_told_of_its_fields_and_files_and_of_what_rest_takes(text, told):
    assert client_words.translate(text, UPLOADS, "/srv/my files") == told


def part_of(disposition: bytes, kind: bytes = b"") -> PartHeader:
    headers = {b"content-disposition": b"form-data; " + disposition}
    return PartHeader(headers | {b"content-type": kind})


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        (b"name=\"data\"; filename*=UTF-8''M%c3%a4rz%20a.npz", "März a.npz"),
        (b"name=data; filename*=utf-8'de'b.npz; filename=\"a.npz\"", "b.npz"),
        (b"name=data; filename=\"a.npz\"; filename*=UTF-8''b.npz", "b.npz"),
        (b"name=data; filename*=iso-8859-1''M%E4rz.npz", "März.npz"),
        (b'name=data; filename*0="ab"; filename*1="c.npz"', "abc.npz"),
        (b'name=data; FILENAME="a;b\\"c.npz"', 'a;b"c.npz'),
        ('name=data; filename="März.npz"'.encode(), "März.npz"),
        ('name=data; filename="März.npz"'.encode("latin-1"), "März.npz"),
        (b'name=data; filename=""', ""),
        (b"name=data; filename*=UTF-8''", ""),
        (b"name*=UTF-8''data; filename=a", "a"),
        (b"name=data", None),
    ],
)
def test_a_part_with_a_file_name_in_any_form_is_a_file(disposition, name):
    header = part_of(disposition)
    assert (header.name, header.file_name) == ("data", name)


def test_a_parts_type_says_its_charset_or_that_it_is_a_file():
    assert part_of(b"name=a", b"text/plain; charset=iso-8859-1").charset == "iso-8859-1"
    assert part_of(b"name=a", b"text/plain").file_name is None
    assert part_of(b"name=a", b"application/octet-stream").file_name == ""


def test_every_rest_setting_is_documented_with_type_default_and_help(guarded):
    *_, nobody, _ = guarded
    call = nobody.get("/openapi.json").json()["paths"]["/start-aggregator"]["post"]
    form = call["requestBody"]["content"]["multipart/form-data"]["schema"]
    fields = form["properties"]
    assert sorted(fields) == sorted([*REST_KEYS, "model_file"])
    types = {name: field["type"] for name, field in fields.items()}
    assert (types["rounds"], types["quorum"], types["late"], types["doc2vec"]) == (
        "integer", "number", "string", "object",
    )  # fmt: skip
    assert sum(kind != "string" for kind in types.values()) >= 30
    assert (fields["rounds"]["default"], fields["rounds"]["minimum"]) == (1, 1)
    assert (fields["quorum"]["default"], fields["quorum"]["maximum"]) == (1.0, 1)
    assert fields["late"]["enum"] == ["discard", "next_round"]
    assert "trimmed_mean" in fields["fusion_algorithm"]["enum"]
    assert all(fields[key]["description"] for key in REST_KEYS)


def test_the_serve_application_is_configured_by_environment_variables(monkeypatch):
    import fedray.service

    assert type(fedray.service.app).__name__ == "Application"
    monkeypatch.setenv("FEDRAY_ROOT", "/srv/federations")
    monkeypatch.setenv("FEDRAY_API_KEYS", "/srv/keys")
    monkeypatch.setenv("FEDRAY_ALLOW_CUSTOM_HANDLERS", "no")
    settings = Settings.from_environment()
    assert (str(settings.folder), settings.api_keys) == (
        "/srv/federations",
        "/srv/keys",
    )
    assert settings.allow_custom_handlers is False


@pytest.mark.parametrize("package", ["fastapi", "orjson", "python_multipart"])
def test_without_the_extra_serve_says_what_to_install(package):
    code = (
        f"import sys; sys.modules[{package!r}] = None; from fedray.cli import main; "
        "sys.exit(main(['serve']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'fedray[serve]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "text", ['{"rounds": 1, "rounds": 2}', '{"a": [{"rounds": 1, "rounds": 1}]}']
)
def test_json_that_gives_a_key_twice_is_refused(text):
    with pytest.raises(CallRefused, match="gives the key 'rounds' twice"):
        json_text.read_json(text)
    with pytest.raises(ValueError, match="nested too deep"):
        json_text.read_json("[" * 100_000)


def test_code_is_no_value_of_a_field_that_takes_names():
    for loss in ("mine.py:loss", "/tmp/mine.py:Loss", "mine.py"):
        with pytest.raises(ConfigError, match=r"loss '.*mine.py.* names code"):
            schemas.read_settings({"num_parties": "2", "loss": loss}, 256)

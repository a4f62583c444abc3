"""cluster.yaml, checked without a cluster: Ray's validator, and its own commands."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from ray._private.label_utils import parse_node_labels_from_yaml_file
from ray.autoscaler._private.util import (
    prepare_config,
    validate_config,
    with_head_node_ip,
)

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
CONFIG = yaml.safe_load(TEXT)
FAKE_RAY = """#!/bin/sh
echo "$@"
echo "token=$RAY_AUTH_MODE threads=$OMP_NUM_THREADS python=$(command -v python)"
echo "$RAY_USE_TLS $RAY_TLS_CA_CERT $RAY_TLS_SERVER_CERT $RAY_TLS_SERVER_KEY" >&2
"""


@pytest.fixture
def host(tmp_path):
    """Run a node's commands as `ray up` does, with a `ray` that only says its words."""
    tools = tmp_path / "fedray-venv" / "bin"
    tools.mkdir(parents=True)
    for name in ("ray", "python"):
        (tools / name).write_text(FAKE_RAY)
        (tools / name).chmod(0o755)

    def run(commands: list[str]) -> subprocess.CompletedProcess:
        whole = " && ".join(f"({command})" for command in commands)
        env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            ["bash", "-c", whole], env=env, capture_output=True, text=True, timeout=300
        )

    return run


def test_rays_own_validator_accepts_it():
    prepared = prepare_config(CONFIG)
    validate_config(prepared)
    assert prepared["max_workers"] == 2  # one for each of the two parties' hosts
    assert prepared["provider"]["type"] == "local"


def test_a_party_host_starts_with_its_label_and_the_token(host, tmp_path):
    (tmp_path / "fedray-labels.yaml").write_text('fedray-party: "hospital-a"\n')
    commands = with_head_node_ip(CONFIG["worker_start_ray_commands"], "10.0.0.1")
    done = host(commands)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        f"start --address=10.0.0.1:6379 --labels-file {tmp_path}/fedray-labels.yaml",
        f"token=token threads= python={tmp_path}/fedray-venv/bin/python",
    ]


def test_a_party_host_without_a_label_is_an_error_with_the_remedy(host):
    commands = with_head_node_ip(CONFIG["worker_start_ray_commands"], "10.0.0.1")
    done = host(commands)
    assert done.returncode == 1
    assert "write 'fedray-party: NAME' to ~/fedray-labels.yaml" in done.stderr
    assert "start" not in done.stdout


def test_the_head_starts_with_the_token_and_without_a_label(host, tmp_path):
    done = host(CONFIG["head_start_ray_commands"])
    assert done.returncode == 0, done.stderr
    words, env = done.stdout.splitlines()[-2:]
    assert words.startswith("start --head --port=6379 --autoscaling-config=")
    assert "label" not in words
    assert env == f"token=token threads= python={tmp_path}/fedray-venv/bin/python"


def test_the_token_reaches_every_host_and_only_its_owner_reads_it():
    assert CONFIG["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert CONFIG["setup_commands"][0].startswith("chmod 600 ~/.ray/auth_token")
    assert not re.search(r"[0-9a-f]{32}", TEXT), "a token does not belong in here"


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_hosts_speak_tls_with_the_files_that_are_copied_to_them(host, tmp_path, kind):
    (tmp_path / "fedray-labels.yaml").write_text('fedray-party: "a"\n')
    commands = with_head_node_ip(CONFIG[f"{kind}_start_ray_commands"], "10.0.0.1")
    is_on, *files = host(commands).stderr.splitlines()[-1].split()
    assert is_on == "1"
    names = ["ca.crt", "host.crt", "host.key"]
    assert files == [f"{tmp_path}/.ray/tls/{name}" for name in names]
    copied = [to for to in CONFIG["file_mounts"] if "/tls/" in to]
    assert copied == [f"~/.ray/tls/{name}" for name in names]  # and never ca.key
    assert "~/.ray/tls/host.key" in CONFIG["setup_commands"][0]


def test_the_certificates_that_the_comment_makes_are_good_for_every_host(tmp_path):
    shown = re.search(r"^# +mkdir -p (.*\n)+?.*host\.crt$", TEXT, re.MULTILINE)[0]
    script = re.sub(r"^#", "", shown, flags=re.MULTILINE)
    addresses = ("HEAD-ADDRESS", "FIRST-PARTY-ADDRESS", "SECOND-PARTY-ADDRESS")
    for i, address in enumerate(addresses):
        script = script.replace(address, f"10.0.0.{i + 1}")
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    quiet = {"env": env, "capture_output": True, "text": True}
    subprocess.run(["bash", "-ec", script], check=True, **quiet)
    tls = tmp_path / ".ray" / "tls"
    verify = ["openssl", "verify", "-CAfile", tls / "ca.crt", "-verify_ip"]
    for address in ("127.0.0.1", "10.0.0.1", "10.0.0.3"):
        done = subprocess.run([*verify, address, tls / "host.crt"], **quiet)
        assert done.returncode == 0, done.stderr
    stranger = subprocess.run([*verify, "10.0.0.4", tls / "host.crt"], **quiet)
    assert stranger.returncode != 0


def test_what_is_copied_to_the_hosts_exists_and_is_enough_to_install():
    sources = [source for source in CONFIG["file_mounts"].values() if "~" not in source]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for needed in re.findall(r"README\.md|LICENSE", project):
        assert needed in sources
    assert not any("data" in source for source in sources)


def test_hosts_user_and_key_are_placeholders_that_nobody_takes_for_real():
    provider, auth = CONFIG["provider"], CONFIG["auth"]
    filled = [provider["head_ip"], *provider["worker_ips"], auth["ssh_user"]]
    filled.append(os.path.basename(auth["ssh_private_key"]))
    assert [word for word in filled if not re.fullmatch(r"[A-Z-]+", word)] == []


def test_the_label_file_that_the_comment_shows_is_one_that_ray_reads(tmp_path):
    shown = re.search(r"^# +(echo .*fedray-party.*) > ~/\S+$", TEXT, re.MULTILINE)
    file = tmp_path / "labels.yaml"
    file.write_text(subprocess.check_output(["bash", "-c", shown[1]], text=True))
    labels = parse_node_labels_from_yaml_file(str(file))
    assert labels == {"fedray-party": "hospital-a"}


def test_the_cloud_variant_in_the_comments_is_valid_too():
    commented = TEXT[TEXT.index("# provider:") :]
    cloud = yaml.safe_load(re.sub("^# ?", "", commented, flags=re.MULTILINE))
    config = {**CONFIG, **cloud}
    prepared = prepare_config(config)
    validate_config(prepared)
    types = prepared["available_node_types"]
    labels = {name: kind.get("labels") for name, kind in types.items()}
    assert labels == {
        "head": None,
        "hospital-a": {"fedray-party": "hospital-a"},
        "hospital-b": {"fedray-party": "hospital-b"},
    }

"""deploy/kuberay.yaml by rules of hand: the CRD's own schema is a megabyte.

It was validated once against the schemas of KubeRay's RayCluster and RayJob (v1).
"""

import re
from pathlib import Path

import pytest
import yaml

from fedray.cli import _parser

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "deploy" / "kuberay.yaml").read_text(encoding="utf-8")
CLUSTER, JOB = yaml.safe_load_all(TEXT)
SPEC = CLUSTER["spec"]
GROUPS = SPEC["workerGroupSpecs"]
PODS = [SPEC["headGroupSpec"], *GROUPS]


def container(group: dict) -> dict:
    (one,) = group["template"]["spec"]["containers"]
    return one


def test_they_are_a_cluster_and_a_job_on_it():
    kinds = [(d["apiVersion"], d["kind"]) for d in (CLUSTER, JOB)]
    assert kinds == [("ray.io/v1", "RayCluster"), ("ray.io/v1", "RayJob")]
    selector = JOB["spec"]["clusterSelector"]
    assert selector == {"ray.io/cluster": CLUSTER["metadata"]["name"]}
    assert JOB["spec"]["backoffLimit"] == 0  # all that a selected cluster allows
    for document in (CLUSTER, JOB):
        assert re.fullmatch(r"[a-z][a-z0-9-]{0,46}", document["metadata"]["name"])


def test_the_token_and_encryption_are_on_and_no_token_is_in_the_file():
    assert SPEC["authOptions"] == {"mode": "token", "secretName": "fedray-token"}
    assert "secret generic fedray-token" in TEXT
    assert SPEC["tlsOptions"] == {"enabled": True}
    assert "RayClusterMTLS" in TEXT  # the operator's gate for it
    assert not re.search(r"[0-9a-f]{32}", TEXT)


def test_every_party_has_one_pod_with_its_label_and_its_own_data():
    labels = [group["labels"]["fedray-party"] for group in GROUPS]
    assert labels == ["hospital-a", "hospital-b"]
    claims = []
    for group in GROUPS:
        assert group["groupName"] == group["labels"]["fedray-party"]
        counts = {group[key] for key in ("replicas", "minReplicas", "maxReplicas")}
        assert counts == {1}
        assert "labels" not in group["rayStartParams"]  # KubeRay refuses them there
        (mount,) = container(group)["volumeMounts"]
        (volume,) = group["template"]["spec"]["volumes"]
        assert (mount["name"], mount["mountPath"]) == (volume["name"], "/data")
        assert mount["readOnly"]
        claims.append(volume["persistentVolumeClaim"]["claimName"])
    assert claims == ["hospital-a-data", "hospital-b-data"]
    assert "labels" not in SPEC["headGroupSpec"]


def test_results_outlive_the_pod_that_the_job_runs_in():
    head = SPEC["headGroupSpec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in head["volumes"]}
    mounts = {m["mountPath"]: volumes[m["name"]] for m in head["containers"][0]
              ["volumeMounts"]}  # fmt: skip
    assert "persistentVolumeClaim" in mounts["/runs"]
    assert "configMap" in mounts["/config"]
    words = JOB["spec"]["entrypoint"].split()
    assert words[0] == "fedray"
    arguments = _parser().parse_args(words[1:])
    assert arguments.config.startswith("/config/")
    assert arguments.run_dir.startswith("/runs/")


@pytest.mark.parametrize("group", PODS, ids=["head", "hospital-a", "hospital-b"])
def test_pods_have_one_image_and_bounds_that_ray_can_count_on(group):
    one = container(group)
    assert one["image"] == "REGISTRY/fedray:TAG"  # to be filled in
    resources = one["resources"]
    assert resources["requests"] == resources["limits"]
    assert set(resources["limits"]) >= {"cpu", "memory"}


def test_ray_is_the_version_that_was_tested():
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"\nray=={SPEC['rayVersion']}\n" in pins
    assert f"rayproject/ray:{SPEC['rayVersion']}-py311" in TEXT


def test_the_claims_and_objects_that_it_needs_are_listed():
    head = TEXT[: TEXT.index("apiVersion")]
    volumes = [v for group in PODS for v in group["template"]["spec"]["volumes"]]
    for volume in volumes:
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        assert (claim or volume["configMap"]["name"]) in head

"""Manifests for KubeRay against its schema, and against what its operator demands besides."""

from __future__ import annotations

import functools
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tats_core.cluster import manifests, submission
from tats_core.cluster.manifests import Settings, Size
from tats_core.errors import SpecError

FIELDS = yaml.safe_load((Path(__file__).parent / "kuberay" / "fields.yaml").read_text(encoding="utf-8"))
CRDS = os.environ.get("TATS_KUBERAY_CRDS")
PINNED = f"registry.example:5000/lab/tats@sha256:{'0' * 64}"
EVERYTHING = Settings.model_validate(
    {
        "namespace": "lab", "data_claim": "videos", "tracking_uri": "http://mlflow:5000", "retries": 5,
        "tracking_secret": "mlflow", "pull_secret": "registry", "deadline_hours": 2, "keep_minutes": 1,
        "labels": {"lab.example/team": "video"}, "annotations": {"cost-centre": "1: #2"}, "queue": "night",
        "head": {"node_selector": {"pool": "steady"}},
        "workers": {"spot": "gke", "tolerations": [{"key": "lab", "operator": "Equal", "value": "video"}]},
    }
)  # fmt: skip

NIGHTLY = EVERYTHING.model_copy(
    update={"queue": None, "suspend": True, "schedule": "0 3 * * *", "time_zone": "Europe/Zurich"}
)

Write = Callable[..., submission.Submission]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return a function that makes a pipeline of one command; `sets` as on the command line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pipelines").mkdir()

    def call(name: str = "mine", sets: tuple[str, ...] = (), **config: Any) -> submission.Submission:
        stage = {"kind": "command", "run": "true", **config}
        (tmp_path / "pipelines" / f"{name}.yaml").write_text(
            yaml.safe_dump({"stages": {"work": stage}}, default_style='"')
        )
        return submission.load("pipeline", name, sets)

    return call


def rendered(
    submitted: submission.Submission,
    settings: Settings = EVERYTHING,
    target: manifests.Target = "kuberay",
    home: str | None = None,
) -> list[Any]:
    return list(yaml.safe_load_all(manifests.render(submitted, target, PINNED, settings, home=home)))


def cluster_of(manifest: Any) -> Any:
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


def schema_of(fields: Any) -> dict[str, Any]:
    """Return the JSON schema of a part of `fields.yaml`."""
    if isinstance(fields, list):
        return {"type": "array", "items": schema_of(fields[0])}
    if isinstance(fields, dict):
        return {
            "type": "object",
            "properties": {name.rstrip("!"): schema_of(below) for name, below in fields.items()},
            "required": [name[:-1] for name in fields if name.endswith("!")],
            "additionalProperties": False,
        }
    quantity = {"type": ["integer", "string"]}
    special = {
        "map": {"type": "object", "additionalProperties": {"type": "string"}},
        "quantities": {"type": "object", "additionalProperties": quantity},
        "quantity": quantity,
    }
    return special.get(fields, {"type": fields})


def strict(schema: Any) -> Any:
    """Return a CRD's schema as JSON schema in which an unknown field is an error, as for a strict API server.

    Rules in CEL (x-kubernetes-validations) are not checked.
    """
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: strict(value) for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if schema.get("x-kubernetes-int-or-string"):
        plain["type"] = ["integer", "string"]
    closed = "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields")
    if closed and isinstance(schema["properties"], dict) and schema.get("type") == "object":
        plain.setdefault("additionalProperties", False)
    return plain


@functools.cache
def crd(kind: str) -> Any:
    assert CRDS is not None
    text = (Path(CRDS) / f"ray.io_{kind.lower()}s.yaml").read_text(encoding="utf-8")
    (version,) = (known for known in yaml.safe_load(text)["spec"]["versions"] if known["name"] == "v1")
    return strict(version["schema"]["openAPIV3Schema"])


@pytest.mark.parametrize("target", ["kuberay", "raycluster"])
@pytest.mark.parametrize("settings", [Settings(), EVERYTHING], ids=["defaults", "everything"])
@pytest.mark.parametrize(
    ("kind", "name"), [("pipeline", "demo"), ("pipeline", "full_ssv2"), ("sweep", "ppo")]
)
def test_the_manifests_match_the_schema(kind, name, settings, target):
    manifest = rendered(submission.load(kind, name), settings, target)[-1]
    assert manifest["kind"] == {"kuberay": "RayJob", "raycluster": "RayCluster"}[target]
    jsonschema.validate(manifest, schema_of(FIELDS[manifest["kind"]]))
    if CRDS:
        jsonschema.validate(manifest, crd(manifest["kind"]))


def test_a_schedule_makes_a_raycronjob_of_the_same_job(write):
    nightly, once = rendered(write(), NIGHTLY)[-1], rendered(write(), EVERYTHING)[-1]
    jsonschema.validate(nightly, schema_of(FIELDS["RayCronJob"]))
    if CRDS:
        jsonschema.validate(nightly, crd("RayCronJob"))
    assert nightly["kind"] == "RayCronJob"
    long = rendered(write("a" * 60), NIGHTLY)[-1]
    assert len(long["metadata"]["name"]) + len("-12345") <= 47
    job = nightly["spec"].pop("jobTemplate")
    assert nightly["spec"] == {"schedule": "0 3 * * *", "timeZone": "Europe/Zurich", "suspend": True}
    # A job of its own is known by its id; those of a schedule are known by the times of their start.
    assert once["spec"].pop("jobId")
    assert once["spec"].pop("suspend")
    assert job == once["spec"]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"schedule": "@daily", "queue": "night"}, "give schedule or queue"),
        ({"time_zone": "UTC"}, "without schedule"),
    ],
)
def test_what_does_not_fit_to_a_schedule_is_refused(tmp_path, wrong, reason):
    path = tmp_path / "lab.yaml"
    path.write_text(yaml.safe_dump(wrong))
    with pytest.raises(SpecError, match=reason):
        manifests.settings(path)


@pytest.mark.skipif(CRDS is None, reason="TATS_KUBERAY_CRDS names no folder with KubeRay's CRDs")
@pytest.mark.parametrize("kind", ["RayJob", "RayCronJob", "RayCluster"])
def test_the_list_of_fields_agrees_with_the_crds(kind):
    def compare(fields: Any, schema: Any, where: str) -> None:
        if isinstance(fields, list):
            assert schema["type"] == "array", where
            compare(fields[0], schema["items"], where)
        elif isinstance(fields, dict):
            known = schema.get("properties")
            assert known or where == ".metadata", where
            required = {name[:-1] for name in fields if name.endswith("!")}
            assert required >= set(schema.get("required", ())) & {name.rstrip("!") for name in fields}, where
            for name, below in fields.items() if known else ():
                compare(below, known[name.rstrip("!")], f"{where}.{name.rstrip('!')}")
        elif fields in ("map", "quantities"):
            wanted = "string" if fields == "map" else ["integer", "string"]
            assert schema["additionalProperties"]["type"] == wanted, where
        else:
            assert schema["type"] == (["integer", "string"] if fields == "quantity" else fields), where

    compare(FIELDS[kind], crd(kind), "")


def test_an_unknown_field_and_a_wrong_type_are_refused(write):
    manifest = rendered(write())[-1]
    schema = schema_of(FIELDS["RayJob"])
    for wrong in ({"backoffLimits": 3}, {"backoffLimit": "3"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**manifest, "spec": {**manifest["spec"], **wrong}}, schema)


def test_a_job_has_a_deadline_is_retried_and_leaves_no_cluster_behind(write):
    spec = rendered(write())[-1]["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    limits = [spec[key] for key in ("backoffLimit", "ttlSecondsAfterFinished", "activeDeadlineSeconds")]
    assert limits == [5, 60, 7200]


@pytest.mark.parametrize("name", ["My_very_long_pipeline_of_many_words_and_Capitals", "2-.fast", "A" * 80])
def test_the_name_suits_kubernetes_and_is_that_of_the_submission(write, name):
    submitted = write(name)
    files, job = rendered(submitted)
    name = job["metadata"]["name"]
    assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert len(name) <= 47
    assert name.endswith(submitted.identity()[-12:])
    assert job["spec"]["jobId"] == f"{submitted.identity()}-a1", "as `tats submit` would call it"
    assert files["metadata"]["name"] == name


def test_the_files_travel_and_the_command_survives_its_shells(write):
    submitted = write(sets=("work.run=echo 'it is' \"$HOME\" && true; [0, 1] {a}",))
    files, job = rendered(submitted, home="/srv/tats/second")
    assert files["data"]["pipelines.mine.yaml"] == Path("pipelines/mine.yaml").read_text()
    cd, command = files["data"]["run"].splitlines()
    assert cd == "cd /etc/tats"
    assert shlex.split(command)[1:] == submitted.command("/srv/tats/second")
    assert job["spec"]["entrypoint"] == "sh /etc/tats/run"
    pod = cluster_of(job)["headGroupSpec"]["template"]["spec"]
    (volume,) = (volume["configMap"] for volume in pod["volumes"] if "configMap" in volume)
    assert {item["path"] for item in volume["items"]} == {"run", "pipelines/mine.yaml"}


HOSTILE = [
    "two: keys", "- item", "# comment", "line\nkind: Pod\n---\nkind: Pod", "\"double\" 'single' \\", "{a: [1",
    "true", "0123", "1e3", "~", "&anchor *alias !tag", "{{ settings }}{% include 'x' %}", "<&amp;>",
    "%YAML 1.1", "\t", " ", "\x85\u2028\u2029\ufeff\x07", "\U0001f600",
]  # fmt: skip


@pytest.mark.parametrize("target", ["kuberay", "raycluster"])
@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_is_read_as_yaml(write, text, target):
    def settings(text: str) -> Settings:
        toleration = manifests.Toleration(key=text, value=text)
        workers = manifests.Workers(node_selector={text: text}, tolerations=(toleration,))
        head = manifests.Head(node_selector={text: text})
        return EVERYTHING.model_copy(update={"tracking_uri": text, "head": head, "workers": workers})

    def swap(value: Any) -> Any:
        if isinstance(value, dict):
            return {swap(key): swap(below) for key, below in value.items()}
        if isinstance(value, list):
            return [swap(below) for below in value]
        return text if value == "harmless" else value

    submitted, home = write(env={"X": text}), f"/srv/tats/{text}"
    manifest = rendered(submitted, settings(text), target, home)
    assert manifest == swap(rendered(submitted, settings("harmless"), target, home))
    if target == "kuberay":
        assert manifest[0]["data"]["pipelines.mine.yaml"] == Path("pipelines/mine.yaml").read_text()
        command = manifest[0]["data"]["run"].removeprefix("cd /etc/tats\nexec ")
        assert shlex.split(command) == submitted.command(home)


@pytest.mark.parametrize(
    "text", [*HOSTILE, "", "\n", "a\n\n", "a", " a\nb\n", "a \nb\n", "a\n\nb\n", "a\r\nb\n", "a\x0cb\n"]
)
def test_a_file_survives_its_way_through_a_config_map(write, text):
    submitted = write()
    (path,) = submitted.files.values()
    path.write_bytes(text.encode())
    assert rendered(submitted)[0]["data"]["pipelines.mine.yaml"] == path.read_text(encoding="utf-8")


def test_a_sweep_travels_with_its_pipeline():
    variant = submission.load("pipeline", "full_k400", [])
    assert set(variant.files) == {"pipelines/full_k400.yaml", "pipelines/full_ssv2.yaml"}
    files, _ = rendered(submission.load("sweep", "demo_ratio", ["seeds.values=[0]"]))
    assert set(files["data"]) == {"run", "sweeps.demo_ratio.yaml", "pipelines.demo.yaml"}
    assert files["data"]["run"].endswith("exec tats sweep demo_ratio --set 'seeds.values=[0]' --continue\n")


@pytest.mark.parametrize("target", ["kuberay", "raycluster"])
def test_nothing_runs_as_root_and_no_pod_without_a_token(target):
    manifest = rendered(submission.load("pipeline", "full_ssv2"), target=target)[-1]
    cluster = cluster_of(manifest)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"]
    pods = [cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]["template"]]
    pods += [manifest["spec"]["submitterPodTemplate"]] if target == "kuberay" else []
    for pod in (template["spec"] for template in pods):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        (container,) = pod["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["image"] == PINNED


def test_pods_see_the_claims_and_get_the_servers_password_from_its_secret(write):
    cluster = cluster_of(rendered(write())[-1])
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        claims = {
            volume["name"]: volume["persistentVolumeClaim"]["claimName"]
            for volume in spec["volumes"]
            if "persistentVolumeClaim" in volume
        }
        assert claims == {"home": "tats-home", "data": "videos"}
        (container,) = spec["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        env = {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}
        assert mounts["home"] == env["TATS_HOME"]
        assert mounts["data"] == env["TATS_DATA"]
        assert mounts["shm"] == "/dev/shm"
        assert env["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
        assert env["MLFLOW_TRACKING_PASSWORD"] == {"secretKeyRef": {"name": "mlflow", "key": "password"}}
        assert container["readinessProbe"]["httpGet"]["path"].startswith("/api/")


@pytest.mark.parametrize("target", ["kuberay", "raycluster"])
def test_job_and_cluster_wait_in_the_queue_and_objects_and_pods_carry_the_labels(write, target):
    labels = {"lab.example/team": "video", "app.kubernetes.io/name": "tats"}
    *others, manifest = rendered(write(), target=target)
    assert manifest["metadata"]["labels"] == {**labels, "kueue.x-k8s.io/queue-name": "night"}
    assert manifest["spec"]["suspend"] is True
    cluster = cluster_of(manifest)
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for part in (*others, *(pod["template"] for pod in pods)):
        assert part["metadata"]["labels"] == labels, "Kueue would take a pod with the queue for a job"
        assert part["metadata"]["annotations"] == {"cost-centre": "1: #2"}


def test_without_a_queue_pods_are_created_at_once_unless_suspended(write):
    assert "suspend" not in rendered(write(), Settings())[-1]["spec"]
    assert rendered(write(), Settings(suspend=True))[-1]["spec"]["suspend"] is True


@pytest.mark.parametrize("label", ["two words", "-a", "a" * 64, "a/b/c", ""])
def test_what_cannot_be_a_label_is_refused(tmp_path, label):
    path = tmp_path / "lab.yaml"
    path.write_text(yaml.safe_dump({"labels": {label: "x"}}))
    with pytest.raises(SpecError, match=r"lab.yaml: labels"):
        manifests.settings(path)


def test_spot_machines_are_for_workers_alone():
    cluster = cluster_of(rendered(submission.load("pipeline", "full_ssv2"))[-1])
    workers = cluster["workerGroupSpecs"][0]["template"]["spec"]
    assert workers["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
    assert {toleration["key"] for toleration in workers["tolerations"]} == {
        "lab",
        "cloud.google.com/gke-spot",
        "nvidia.com/gpu",
    }
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert head["nodeSelector"] == {"pool": "steady"}
    assert "tolerations" not in head


@pytest.mark.parametrize(
    ("stage", "workers", "expected"),
    [
        ({"cpus": 2}, {}, Size(1, 2, 0, 1)),
        ({"cpus": 40}, {}, Size(3, 14, 0, 3)),
        ({"cpus": 40}, {"cpus": 8}, Size(5, 8, 0, 5)),
        ({"gpus": 12}, {}, Size(2, 6, 6, 2)),
        ({"gpus": 4}, {"cpus": 30}, Size(1, 30, 4, 1)),
    ],
)
def test_the_pods_hold_the_largest_stage(write, stage, workers, expected):
    assert manifests.size(write(**stage).stages, manifests.Workers.model_validate(workers)) == expected


def test_a_gpu_comes_with_the_cpus_that_decode_for_it():
    # 32 workers of one GPU and 8 decoding processes each, on machines of 8 GPUs.
    assert manifests.size(submission.load("pipeline", "full_ssv2").stages, manifests.Workers()) == Size(
        4, 72, 8, 4
    )


def test_with_min_workers_the_cluster_grows_from_their_machines_to_all():
    fewest = [f"{stage}.min_workers=8" for stage in ("pretrain", "finetune_ssv2", "finetune_k400")]
    submitted = submission.load("pipeline", "full_ssv2", fewest)
    manifest = rendered(submitted)[-1]
    jsonschema.validate(manifest, crd("RayJob") if CRDS else schema_of(FIELDS["RayJob"]))
    cluster = cluster_of(manifest)
    (group,) = cluster["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (1, 1, 4)
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["template"]["spec"]["automountServiceAccountToken"] is True, (
        "it creates pods"
    )
    assert group["template"]["spec"]["automountServiceAccountToken"] is False
    assert "enableInTreeAutoscaling" not in cluster_of(rendered(submission.load("pipeline", "full_ssv2"))[-1])


@pytest.mark.parametrize(
    "image", ["tats", "tats:latest", "registry.example:5000/tats", "ghcr.io/lab/tats:latest"]
)
def test_an_image_without_a_fixed_tag_is_refused(image):
    with pytest.raises(SpecError, match="name a tag other than 'latest'"):
        manifests.check_image(image)


@pytest.mark.parametrize("image", ["", "tats:", "a b:1", f"tats@sha256:{'0' * 63}", "x/"])
def test_an_invalid_image_name_is_refused(image):
    with pytest.raises(SpecError, match="is not the name of an image"):
        manifests.check_image(image)


@pytest.mark.parametrize("image", ["tats:1.0", "registry.example:5000/lab/tats:2026-11", PINNED])
def test_a_pinned_image_is_accepted(image):
    assert manifests.check_image(image) == image


def test_a_project_folder_that_is_not_on_the_claim_is_refused(write):
    with pytest.raises(SpecError, match="must lie below /srv/tats, where the claim tats-home is mounted"):
        rendered(write(), home="/elsewhere")


def test_the_documented_settings_are_all_settings_at_their_defaults():
    path = Path(__file__).resolve().parents[2] / "docker" / "kuberay.yaml"
    assert manifests.settings(path) == Settings()
    documented = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert documented.keys() == Settings.model_fields.keys()
    for part, model in (("head", manifests.Head), ("workers", manifests.Workers)):
        assert documented[part].keys() == model.model_fields.keys()


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        (
            "http://me:hidden@mlflow:5000",
            "has a user or password, which the manifest would show; use",
        ),
        ("http://mlflow:5000\n# kind: Pod", "must not hold spaces, line breaks or control characters"),
        ("http://me:hidden@mlflow:port", "has an impossible port"),
    ],
)
def test_a_tracking_address_with_a_password_or_a_line_break_is_refused(tmp_path, uri, sentence):
    path = tmp_path / "lab.yaml"
    path.write_text(yaml.safe_dump({"tracking_uri": uri}))
    with pytest.raises(SpecError, match=sentence) as error:
        manifests.settings(path)
    assert "hidden" not in str(error.value)


def test_a_typo_in_the_settings_names_file_and_key(tmp_path):
    path = tmp_path / "lab.yaml"
    path.write_text("workers: {spott: gke}")
    with pytest.raises(SpecError, match=r"lab.yaml: workers has no key 'spott'; did you mean 'spot'"):
        manifests.settings(path)

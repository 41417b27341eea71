"""infra/kubernetes without a cluster: its overlays, and the Jobs that Prefect's worker makes, in three versions."""

import asyncio
import re
import shutil
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas import FlowRun

from infra.worker import work
from serving.model.errors import UserError
from tests.helpers.commands import assert_raises_in_words
from tests.helpers.kubernetes import KUBERNETES, Resource, dangling, invalid, named, render
from tests.helpers.state import ROOT

OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
# What docs/kubernetes.md tells to make.
MADE_BY_HAND = {"local": set(), "gpu": {"Secret mlflow", "Secret prefect"}}
# How many GPUs a run has.
GPUS = {"local": "0", "gpu": "1"}


def job(folder: Path, settings: dict[str, str], flow: str = "retrain") -> Resource:
    """The Job that the worker makes of a run of FLOW/kubernetes, with an overlay's settings."""
    worker = pytest.importorskip("prefect_kubernetes.worker", reason="prefect-kubernetes is not installed: make scale")
    file = yaml.safe_load((ROOT / "infra" / "prefect.yaml").read_text())
    (pool,) = (
        each["work_pool"]
        for each in file["deployments"]
        if each["name"] == "kubernetes" and each["entrypoint"].endswith(f":{flow}")
    )
    variables = yaml.safe_dump(pool["job_variables"])
    variables = re.sub(r"\{\{ \$(\w+) \}\}", lambda name: settings.get(name[1], ""), variables)
    template = yaml.safe_load((folder / "job.yaml").read_text())
    kind, nobody = worker.KubernetesWorkerJobConfiguration, PrefectClient("http://127.0.0.1:9/api")  # is not asked
    configuration = asyncio.run(kind.from_template_and_values(template, yaml.safe_load(variables), client=nobody))
    configuration.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="red-fox"))
    manifest: Resource = configuration.job_manifest
    return manifest


def everything(folder: Path, overlay: str) -> list[Resource]:
    """An overlay's resources, the Job of a run last."""
    resources = render(folder / "overlays" / overlay)
    settings = {**named(resources, "ConfigMap", "settings")["data"], "RUN_NAMESPACE": "cifar10-classifier"}
    return [*resources, job(folder, settings)]


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(KUBERNETES, tmp_path / "kubernetes"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_and_its_runs_are_what_kubernetes_reads_and_refer_to_what_is_there(overlay: str) -> None:
    resources = everything(KUBERNETES, overlay)
    assert invalid(resources) == []
    assert {problem.partition(": no ")[2] for problem in dangling(resources)} == MADE_BY_HAND[overlay]


def broken(folder: Path, file: str, right: str, wrong: str) -> list[Resource]:
    path = folder / file
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    return everything(folder, "local")


@pytest.mark.parametrize(
    ("file", "right", "wrong", "problem"),
    [
        ("base/service.yaml", "kind: PodDisruptionBudget", "kind: PodDisruptionBudgets", "PodDisruptionBudgets"),
        ("base/service.yaml", "averageUtilization:", "utilization:", "'utilization' was unexpected"),
        ("job.yaml", "restartPolicy:", "completions: 1\n          restartPolicy:", "'completions' was unexpected"),
    ],
)
def test_what_kubernetes_does_not_have_is_found(changed: Path, file: str, right: str, wrong: str, problem: str) -> None:
    assert problem in "\n".join(invalid(broken(changed, file, right, wrong)))


@pytest.mark.parametrize(
    ("file", "right", "wrong", "problem"),
    [
        ("base/service.yaml", "selector: {app: service}", "selector: {app: server}", "no pod has {'app': 'server'}"),
        ("base/service.yaml", "path: /readyz, port: 3000", "path: /readyz, port: 3001", "nothing listens at 3001"),
        ("base/service.yaml", "kind: Deployment, name: service", "kind: Deployment, name: s", "no Deployment s"),
        ("base/network.yaml", "values: [worker, run]", "values: [worker, runs]", "no pod has {'app': 'runs'}"),
        ("base/network.yaml", "ports: [{port: 4200}]", "ports: [{port: 5000}]", "nothing listens at 5000"),
        ("base/worker.yaml", "serviceAccountName: worker", "serviceAccountName: w", "no ServiceAccount w"),
        ("job.yaml", "claimName: state", "claimName: states", "no PersistentVolumeClaim states"),
        ("job.yaml", "labels: {app: run}", "labels: {app: runs}", "no pod has {'app': 'run'}"),
    ],
)
def test_what_refers_to_nothing_is_found(changed: Path, file: str, right: str, wrong: str, problem: str) -> None:
    assert problem in "\n".join(dangling(broken(changed, file, right, wrong)))


def pods(resources: list[Resource]) -> dict[str, dict[str, Any]]:
    """What each pod is to be, by its label."""
    templates = [each["spec"]["template"] for each in resources if "template" in each.get("spec", {})]
    return {template["metadata"]["labels"]["app"]: template["spec"] for template in templates}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_pod_has_more_rights_than_it_needs(overlay: str) -> None:
    found = pods(everything(KUBERNETES, overlay))
    assert found.keys() == {"service", "mlflow", "prefect", "worker", "run"}
    for name, pod in found.items():
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"], name
        assert container["securityContext"]["readOnlyRootFilesystem"], name
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys() & container["resources"]["limits"].keys()
        assert {"/state", "/tmp"} <= {mount["mountPath"] for mount in container["volumeMounts"]}, name
        assert pod["enableServiceLinks"] is False, f"{name}: MLFLOW_PORT would be the address of a Service"
        assert pod.get("automountServiceAccountToken", True) == (name == "worker"), name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_runs_and_worker_share_image_and_volume_and_runs_have_the_overlay_s_gpus(overlay: str) -> None:
    found = pods(everything(KUBERNETES, overlay))
    (run,), (worker,) = found["run"]["containers"], found["worker"]["containers"]
    assert run["image"] == worker["image"]
    assert run["resources"]["limits"]["nvidia.com/gpu"] == GPUS[overlay]
    assert found["run"]["volumes"][0] == {"name": "state", "persistentVolumeClaim": {"claimName": "state"}}
    assert found["run"]["volumes"][0] in found["worker"]["volumes"]
    given = {each["name"]: each.get("value") for each in run["env"]}
    assert given["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert given["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule"
    (service,) = found["service"]["containers"]
    assert str(service["resources"]["limits"].get("nvidia.com/gpu", 0)) == GPUS[overlay]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_clean_up_has_the_runs_volume_and_asks_for_no_gpu(overlay: str) -> None:
    resources = everything(KUBERNETES, overlay)
    settings = {**named(resources, "ConfigMap", "settings")["data"], "RUN_NAMESPACE": "cifar10-classifier"}
    clean_up = job(KUBERNETES, settings, "clean_up")
    assert invalid([clean_up]) == []
    found = pods([clean_up])["run"]
    assert found["volumes"] == pods(resources)["run"]["volumes"]
    (container,) = found["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "0"
    assert {"name": "MLFLOW_TRACKING_URI", "value": "http://mlflow:5000"} in container["env"]


def test_the_service_answers_with_a_file_where_the_overlay_says_so(changed: Path) -> None:
    overlay = changed / "overlays" / "local" / "kustomization.yaml"
    overlay.write_text(overlay.read_text() + "components: [../../model-file]\n")
    resources = everything(changed, "local")
    assert invalid(resources) + dangling(resources) == []
    (service,) = pods(resources)["service"]["containers"]
    assert {"name": "SERVING_MODEL", "value": "/models/model.onnx"} in service["env"]


def test_a_worker_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prefect_kubernetes.worker", None)
    assert_raises_in_words(UserError, lambda: work("kubernetes", "kubernetes"), "type=kubernetes", "make scale")

"""The service's Deployment as infra/kubernetes has it, in a pod of Podman's."""

import shutil
from pathlib import Path

import httpx
import pytest
import yaml

from tests.helpers.containers import Images, podman
from tests.helpers.kubernetes import KUBERNETES, named, render
from tests.helpers.pictures import png
from tests.helpers.state import Trained
from tests.helpers.waiting import free_port, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_the_deployment_of_the_service_answers_with_a_file(images: Images, trained: Trained, tmp_path: Path) -> None:
    """Podman takes a claim for a volume of its own, and what is not a pod's for granted."""
    folder = Path(shutil.copytree(KUBERNETES, tmp_path / "kubernetes")) / "overlays" / "local"
    with open(folder / "kustomization.yaml", "a") as overlay:
        overlay.write("components: [../../model-file]\n")
    resources = render(folder)
    deployment = named(resources, "Deployment", "service")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    port = free_port()
    container["ports"] = [{**container["ports"][0], "hostPort": port, "hostIP": "127.0.0.1"}]
    settings = named(resources, "ConfigMap", "settings")
    file = tmp_path / "pod.yaml"
    file.write_text(yaml.safe_dump_all([settings, deployment]))
    podman("volume", "create", "models")
    try:
        mounts = "--volume=models:/models", f"--volume={trained.onnx}:/model.onnx:ro"
        copy = ("cp", "/model.onnx", "/models/model.onnx")
        podman("run", "--rm", "--user=root", *mounts, images.serve, *copy)
        podman("kube", "play", str(file))
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: httpx.get(f"{url}/readyz").is_success)
        answer = httpx.post(f"{url}/classify", files={"image": png(40, 30)}).raise_for_status().json()
        assert answer["model"]["run_id"] == trained.run_id
        (name,) = podman("ps", "--format", "{{.Names}}", "--filter=name=service").split()
        assert podman("exec", name, "id", "-u") == "1000"
        assert podman("inspect", "--format", "{{.HostConfig.ReadonlyRootfs}}", name) == "true"
    finally:
        print(podman("pod", "logs", "service-pod-0") if "service-pod-0" in podman("pod", "ps") else "no pod")
        podman("kube", "down", str(file))
        podman("volume", "rm", "--force", "models")

"""The images as a user builds and starts them."""

import ast
import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.helpers.containers import READ_ONLY, Images, podman
from tests.helpers.pictures import png
from tests.helpers.state import CONTRACT_0, ROOT, Trained
from tests.helpers.waiting import free_port, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def inside(image: str, *command: str) -> str:
    return podman("run", "--rm", *READ_ONLY, image, *command)


def test_the_serving_image_is_small_and_holds_nothing_that_trains(images: Images) -> None:
    limit = 1.2e9 if images.device == "cpu" else 4e9  # NVIDIA's libraries are most of it
    assert int(podman("image", "inspect", "--format", "{{.Size}}", images.serve)) < limit
    names = ("torch", "timm", "prefect", "training", "pyarrow", "serving.batch")
    check = f"import importlib.util as u; print([m for m in {names} if u.find_spec(m)])"
    assert inside(images.serve, "python", "-c", check) == "[]"


@pytest.mark.parametrize("name", ["serve", "train"])
def test_an_image_holds_the_packages_that_its_list_names(images: Images, name: str, tmp_path: Path) -> None:
    subprocess.run(["make", "sbom", f"STATE_DIR={tmp_path}"], cwd=ROOT, check=True)
    list_name = f"{name}-gpu" if images.device == "gpu" else name
    listed = json.loads((tmp_path / "sbom" / f"{list_name}.cdx.json").read_text())["components"]
    check = "import importlib.metadata as m; print([(d.name, d.version) for d in m.distributions()])"
    installed = ast.literal_eval(inside(getattr(images, name), "python", "-c", check))

    def without_build(packages: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
        """`2.14.1+cpu` is a build of 2.14.1; CUDA's packages are not in an image for CPUs."""
        names = ((re.sub("[-_.]+", "-", name).lower(), version.partition("+")[0]) for name, version in packages)
        return {name for name in names if not name[0].startswith(("nvidia-", "cuda-", "triton"))}

    more = without_build(installed) ^ without_build((part["name"], part["version"]) for part in listed)
    # What asyncpg needs in addition before Python 3.11.3, which the stand-in for the base image may have.
    assert {package for package, _ in more} <= {"async-timeout"}


# What the linker does not find, in NVIDIA's packages, for the CUDA provider and for what that loads later.
LINKED = """
import glob, os, subprocess, onnxruntime
folder = os.path.dirname(onnxruntime.__file__)
nvidia = os.path.join(os.path.dirname(folder), "nvidia", "*", "lib")
files = [f"{folder}/capi/libonnxruntime_providers_cuda.so"]
for name in ("cublas", "cublasLt", "cudart", "cudnn*", "cufft", "curand", "nvrtc"):
    found = glob.glob(f"{nvidia}/lib{name}.so.*")
    assert found, name
    files += found
paths = {**os.environ, "LD_LIBRARY_PATH": ":".join(glob.glob(nvidia))}
lines = subprocess.run(["ldd", *files], env=paths, capture_output=True, text=True, check=True).stdout.splitlines()
print(*sorted({line.split()[0] for line in lines if "not found" in line}))
"""
# The same by the program's own way: what is the first that fails?
OPENED = """
from ctypes import CDLL
from pathlib import Path
import onnxruntime
from serving.model.runtime import CPU, CUDA, OnnxRuntime
runtime = OnnxRuntime(Path("/model.onnx"), (CUDA, CPU))
assert runtime.units == [CPU], runtime.units
try:
    CDLL(str(Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"))
except OSError as error:
    print(str(error).split(":")[0])
"""


@pytest.mark.parametrize("name", ["serve", "train"])
def test_an_image_for_gpus_lacks_nothing_but_the_driver(images: Images, name: str) -> None:
    """NVIDIA's toolkit brings that from outside."""
    if images.device != "gpu":
        pytest.skip("the images are for CPUs here")
    assert inside(getattr(images, name), "python", "-c", LINKED) == "libcuda.so.1"
    volume = f"--volume={CONTRACT_0}:/model.onnx:ro"
    opened = podman("run", "--rm", *READ_ONLY, volume, getattr(images, name), "python", "-c", OPENED)
    assert opened == "libcuda.so.1"


@pytest.mark.parametrize("name", ["serve", "train"])
def test_an_image_holds_no_root_no_compiler_and_nothing_of_the_building_host(images: Images, name: str) -> None:
    image = getattr(images, name)
    assert inside(image, "id", "-u") == "1000"
    leftovers = (
        "ls -d /etc/pip.conf /run/secrets/* /state/.cache /root/.cache /opt/venv/bin/pip; command -v gcc cc make"
    )
    assert inside(image, "sh", "-c", f"({leftovers}) 2>/dev/null || true") == ""
    labels = json.loads(podman("image", "inspect", "--format", "{{json .Config.Labels}}", image))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert labels["org.opencontainers.image.revision"] == commit.strip()
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


@pytest.fixture
def answering(images: Images, trained: Trained) -> Iterator[tuple[str, str]]:
    """The serving image with an ONNX file, read-only: the container's id, and the service's address."""
    port = free_port()
    container = podman(
        "run",
        "--detach",
        *READ_ONLY,
        f"--publish=127.0.0.1:{port}:3000",
        f"--volume={trained.onnx}:/model.onnx:ro",
        "--env=SERVING_MODEL=/model.onnx",
        images.serve,
    )
    try:
        yield container, f"http://127.0.0.1:{port}"
    finally:
        print(podman("logs", container))
        podman("rm", "--force", "--volumes", container)


def test_the_service_answers_from_a_read_only_container(
    answering: tuple[str, str], images: Images, trained: Trained
) -> None:
    (container, url), device = answering, images.device
    wait_until(lambda: httpx.get(f"{url}/readyz").is_success)
    answer = httpx.post(f"{url}/classify", files={"image": png(40, 30)}).raise_for_status().json()
    assert answer["model"]["run_id"] == trained.run_id
    assert answer["label"] in answer["probabilities"]
    lacks = httpx.get(f"{url}/model").json()["lacks"]
    # There is no GPU here, and only a build for GPUs is asked for one.
    assert [lack.partition(":")[0] for lack in lacks] == ["CUDAExecutionProvider"] * (device == "gpu")
    podman("healthcheck", "run", container)
    # SIGTERM reaches the service: it ends by itself, before the engine loses its patience.
    podman("stop", "--time", "60", container)
    assert podman("inspect", "--format", "{{.State.ExitCode}}", container) == "0"


@pytest.mark.parametrize("limit", ["--cpus=0.5", "--cpuset-cpus=0"])
@pytest.mark.parametrize("name", ["serve", "train"])
def test_an_image_takes_the_cpus_that_it_is_given(images: Images, name: str, limit: str) -> None:
    """Beside it what the same image takes without a limit, so that a machine of one CPU can't hide a mistake."""
    program = "from serving.model.cpus import batches, cpus; print(cpus(), batches())"

    def told(*limits: str) -> str:
        return podman("run", "--rm", *limits, *READ_ONLY, getattr(images, name), "python", "-c", program)

    machine = len(os.sched_getaffinity(0))
    if machine > 1:
        assert told() == f"{machine} {machine + 1}"
    assert told(limit) == "1 1"

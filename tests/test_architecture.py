"""Arrows point one way: flows -> training -> serving/model, and flows -> serving. No folder is a heap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRAINS = {"torch", "torchvision", "timm", "albumentations", "hydra", "prefect"}
ANSWERS = {"bentoml", "fastapi", "starlette", "prometheus_client"}
# What a folder must not import: packages by their first name, our own modules by their path.
FORBIDDEN = {
    "serving": {"flows", "training", *TRAINS},
    "serving/model": {"flows", "training", "serving.online", "serving.batch", "serving.settings", *TRAINS, *ANSWERS},
    "serving/online": {"serving.batch", "pyarrow"},
    "serving/batch": {"serving.online", *ANSWERS},
    "training": {"flows", "prefect", "serving.online", "serving.batch", "serving.settings", "serving.port", *ANSWERS},
    "training/data": {"training.model", "training.loop", "training.quality", "training.release"},
    "training/model": {"training.data", "training.loop", "training.quality", "training.release"},
    "training/machine": {"training.data", "training.model", "training.loop", "training.quality", "training.release"},
    "training/loop": {"training.quality", "training.release"},
    "training/quality": {"training.loop", "training.release"},
}
MODULES_IN_A_FOLDER = 8


def imports(path: Path) -> set[str]:
    """The modules that a file imports, and all that lie above them: a.b.c, a.b and a."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {".".join(parts[:count]) for parts in (name.split(".") for name in names) for count in range(1, 4)}


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_a_folder_imports_only_what_it_may(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    wrong = {str(path): found for path in files if (found := imports(path) & FORBIDDEN[folder])}
    assert not wrong


@pytest.mark.parametrize("package", ["flows", "serving", "training"])
def test_a_folder_has_at_most_eight_modules(package: str) -> None:
    folders = [path for path in [ROOT / package, *(ROOT / package).rglob("*/")] if path.name != "conf"]
    counts = {path: len({file.stem for file in path.glob("*.py")} - {"__init__"}) for path in folders}
    assert max(counts.values()) > 1
    assert not {path: count for path, count in counts.items() if count > MODULES_IN_A_FOLDER}


def test_no_test_imports_another_test() -> None:
    tests = ROOT / "tests"
    for path in tests.rglob("*.py"):
        for name in imports(path):
            parts = name.split(".")
            allowed = len(parts) < 2 or parts[0] != "tests" or parts[1] in ("helpers", "benchmarks")
            assert allowed, f"{path} imports {name}"


LOCKS = {path.name for path in (ROOT / "requirements").glob("*.txt")} - {"scale.txt"}  # which is installed beside one


@pytest.mark.parametrize("lock", sorted(LOCKS))
def test_an_environment_has_one_build_of_onnx_runtime(lock: str) -> None:
    """Two would write over each other's files, and the one for GPUs needs NVIDIA's."""
    names = {line.partition("==")[0] for line in (ROOT / "requirements" / lock).read_text().splitlines()}
    assert names & {"onnxruntime", "onnxruntime-gpu"} == {"onnxruntime-gpu" if "gpu" in lock else "onnxruntime"}
    assert "gpu" not in lock or {"nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-cufft", "nvidia-curand"} <= names


def loaded_by(*modules: str, without: str = "nothing") -> set[str]:
    """The packages that importing these loads, also through the libraries that they use, where one can't be had."""
    program = f"import sys; sys.modules[{without!r}] = None; import {', '.join(modules)}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return {name.partition(".")[0] for name in result.stdout.split()}


def test_the_service_loads_nothing_that_trains_and_no_pyarrow() -> None:
    loaded = loaded_by("serving.online.service", "serving.model.store", without="pyarrow")
    assert {"onnxruntime", "bentoml"} <= loaded
    assert not (TRAINS | {"training", "flows"}) & loaded


def test_the_contract_loads_neither_torch_nor_the_service() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "serving" / "model").rglob("*.py")
        if path.stem not in ("__init__", "parquet")
    ]
    loaded = loaded_by(*modules, without="pyarrow")
    assert "onnxruntime" in loaded
    assert not (TRAINS | ANSWERS | {"training", "flows"}) & loaded

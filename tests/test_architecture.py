"""Arrows point one way: flows -> training, flows -> serving; serving and training never meet."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "training": {"flows", "serving", "prefect", "bentoml"},
    "serving": {"flows", "training", "prefect", "torch", "torchvision", "timm", "albumentations", "hydra"},
}


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(path): found for path in files if (found := imports(path) & FORBIDDEN[package])}
    assert not wrong


def test_the_service_loads_nothing_that_trains() -> None:
    """Not even through a library that it uses."""
    program = "import serving.service, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert "onnxruntime" in output.split()
    assert not FORBIDDEN["serving"] & set(output.split())

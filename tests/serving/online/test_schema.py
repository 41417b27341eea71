"""Every answer is one that the OpenAPI document describes, whatever is sent."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.slow
def test_every_answer_is_as_described(service: str, tmp_path: Path) -> None:
    # Its own command: its plugin does not know this pytest.
    schemathesis = Path(sys.executable).with_name("schemathesis")
    command = [schemathesis, "run", f"{service}/docs.json", f"--checks={CHECKS}", "--max-examples=50"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr

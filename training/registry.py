"""MLflow's registry: register, compare, promote, and roll back: python -m training.registry rollback"""

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from scipy.stats import binomtest

from training import tracking
from training.data import load_data
from training.errors import UserError, exit_on_user_error
from training.evaluation import predict
from training.export import MODEL_FILE, onnx_classify, onnx_metadata

log = logging.getLogger(__name__)

REGISTERED_MODEL = "cifar10-classifier"
CHAMPION, CHALLENGER = "champion", "challenger"
# The tag that names the version a champion replaced.
PREVIOUS = "previous_champion"
# How sure a comparison must be before the champion changes.
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Decision:
    """Whether a candidate becomes the champion, and why, in a sentence."""

    promote: bool
    reason: str


def register(run_id: str, model_uri: str) -> str:
    """Registers a run's checked ONNX model as a new version, the challenger; returns the version.

    A second call with the same model, as after an answer that got lost, finds the version of the first.
    """
    client = tracking.connect()
    run = client.get_run(run_id)
    tags = {key: run.data.tags[key] for key in ("model", "data", "data_fingerprint", "git_commit")}
    tags |= {"test_accuracy": f"{run.data.metrics['test_accuracy']:.4f}", "model_uri": model_uri}
    known = client.search_model_versions(f"name = '{REGISTERED_MODEL}' and tags.model_uri = '{model_uri}'")
    version = known[0] if known else mlflow.register_model(model_uri, REGISTERED_MODEL, tags=tags)
    client.set_registered_model_alias(REGISTERED_MODEL, CHALLENGER, version.version)
    log.info("registered %s version %s", REGISTERED_MODEL, version.version)
    return str(version.version)


def champion() -> ModelVersion | None:
    """The version that the alias `champion` names."""
    try:
        return tracking.connect().get_model_version_by_alias(REGISTERED_MODEL, CHAMPION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def onnx_file(model: str) -> Path:
    """A local copy of an ONNX file.

    Args:
        model: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or a path.

    Raises:
        UserError: there is no such version or file.
    """
    if model.startswith("models:/"):
        tracking.connect()
        try:
            return Path(mlflow.artifacts.download_artifacts(model)) / MODEL_FILE
        except (MlflowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{model} is not in the registry at {mlflow.get_tracking_uri()} ({reason})") from error
    if not Path(model).is_file():
        raise UserError(f"{model}: no such file; give an ONNX file, models:/NAME@ALIAS or models:/NAME/VERSION")
    return Path(model)


def version_uri(version: str) -> str:
    return f"models:/{REGISTERED_MODEL}/{version}"


def decide(version: str) -> Decision:
    """Compares a version with the champion on the version's own test set."""
    current = champion()
    if current is None:
        return Decision(True, "there was no champion")
    run_id = str(tracking.connect().get_model_version(REGISTERED_MODEL, version).run_id)
    config = tracking.run_config(run_id)
    data = load_data(config.data, config.seed)
    champion_file = onnx_file(version_uri(str(current.version)))
    if json.loads(onnx_metadata(champion_file)["classes"]) != data.classes:
        return Decision(True, f"the champion, version {current.version}, knows other classes")
    candidate = np.load(tracking.artifact(run_id, tracking.SERVED_PROBABILITIES_FILE))
    reigning = predict(onnx_classify(champion_file), data.test, "scoring the champion")
    return better(candidate, reigning, data.test.labels, f"the champion, version {current.version}")


def better(candidate: np.ndarray, reigning: np.ndarray, labels: np.ndarray, name: str) -> Decision:
    """Whether a candidate's answers are better than another model's by more than chance.

    An exact one-sided McNemar test (McNemar 1947) on the pictures that just one of the two gets right.

    Args:
        candidate, reigning: probabilities (N, classes) on the same pictures.
        labels: (N,).
    """
    right, right_before = candidate.argmax(axis=1) == labels, reigning.argmax(axis=1) == labels
    gained, lost = int((right & ~right_before).sum()), int((right_before & ~right).sum())
    p_value = binomtest(gained, gained + lost, alternative="greater").pvalue if gained + lost else 1.0
    promote = bool(p_value < SIGNIFICANCE)
    verdict = "beats" if promote else "does not beat"
    return Decision(
        promote,
        f"{right.mean():.2%} {verdict} the {right_before.mean():.2%} of {name} on {len(labels)} test pictures "
        f"(gained {gained}, lost {lost}, p = {p_value:.2g}; needed: p < {SIGNIFICANCE})",
    )


def promote_if_better(version: str) -> Decision:
    """Makes a version the champion if it should be, and records the reason with the version either way."""
    client = tracking.connect()
    current = champion()
    if current and str(current.version) == version:  # a second call, as after an answer that got lost
        return Decision(True, current.tags["decision"])
    decision = decide(version)
    client.set_model_version_tag(REGISTERED_MODEL, version, "decision", decision.reason)
    if decision.promote:
        if current:
            client.set_model_version_tag(REGISTERED_MODEL, version, PREVIOUS, str(current.version))
        client.set_registered_model_alias(REGISTERED_MODEL, CHAMPION, version)
    log.info(
        "version %s %s: %s", version, "is the champion" if decision.promote else "is not promoted", decision.reason
    )
    return decision


def rollback() -> str:
    """Makes the version that the champion replaced the champion again; returns it.

    Raises:
        UserError: there is no champion, or none before it.
    """
    current = champion()
    if current is None:
        raise UserError(f"{REGISTERED_MODEL} has no champion in the registry at {mlflow.get_tracking_uri()}")
    previous = current.tags.get(PREVIOUS)
    if previous is None:
        raise UserError(f"the champion, version {current.version}, is the first: there is none to go back to")
    tracking.connect().set_registered_model_alias(REGISTERED_MODEL, CHAMPION, previous)
    log.info("version %s is the champion again, in place of version %s", previous, current.version)
    return previous


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with exit_on_user_error():
        if sys.argv[1:] != ["rollback"]:
            raise UserError("usage: python -m training.registry rollback")
        rollback()

"""Our registered model in MLflow's registry: its versions, its champion, and the way back to the one before."""

import logging

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from serving.model.errors import UserError
from serving.model.registry import CHALLENGER, CHAMPION, NOT_THERE, REGISTERED_MODEL
from training import tracking

log = logging.getLogger(__name__)

PREVIOUS = "previous_champion"  # the tag that names the version a champion replaced


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
        if error.error_code in NOT_THERE:
            return None
        raise


def rollback() -> str:
    """Makes the version that the champion replaced the champion again, and returns it; UserError where none is."""
    current = champion()
    if current is None:
        raise UserError(f"{REGISTERED_MODEL} has no champion in the registry at {mlflow.get_tracking_uri()}")
    previous = current.tags.get(PREVIOUS)
    if previous is None:
        raise UserError(f"the champion, version {current.version}, is the first: there is none to go back to")
    tracking.connect().set_registered_model_alias(REGISTERED_MODEL, CHAMPION, previous)
    log.info("version %s is the champion again, in place of version %s", previous, current.version)
    return previous

"""Our registered model in MLflow's registry: its versions, its champion, and the way back to the one before."""

import logging

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from serving.model.errors import UserError
from serving.model.predictor import Predictor
from serving.model.registry import CHALLENGER, CHAMPION, NOT_THERE, named_error, onnx_file, version_uri
from training import tracking

log = logging.getLogger(__name__)

PRECISIONS = "precisions"  # the tag of a run that says what each costs and gains
PREVIOUS = "previous_champion"  # the tag that names the version a champion replaced


def register(run_id: str, model_uri: str, name: str) -> str:
    """Registers a run's checked ONNX model as a new version of `name`, the challenger; returns the version.

    A second call with the same model, as after an answer that got lost, finds the version of the first.
    """
    client = tracking.connect()
    run = client.get_run(run_id)
    tags = {key: run.data.tags[key] for key in ("model", "data", "data_fingerprint", "git_commit")}
    tags |= {"test_accuracy": f"{run.data.metrics['test_accuracy']:.4f}", "model_uri": model_uri}
    known = client.search_model_versions(f"name = '{name}' and tags.model_uri = '{model_uri}'")
    version = known[0] if known else mlflow.register_model(model_uri, name, tags=tags)
    client.set_registered_model_alias(name, CHALLENGER, version.version)
    if words := run.data.tags.get(PRECISIONS):
        client.update_model_version(name, version.version, f"Precisions beside float32:\n\n{words}.")
    log.info("registered %s version %s", name, version.version)
    return str(version.version)


def champion(name: str) -> ModelVersion | None:
    """The version that the alias `champion` names; RegistryError if the registry does not answer."""
    try:
        return tracking.connect().get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code in NOT_THERE:
            return None
        raise named_error(error, f"the champion of {name}") from error


def champion_model(name: str) -> Predictor | None:
    """The champion itself, ready to answer."""
    current = champion(name)
    if current is None:
        return None
    version = str(current.version)
    return Predictor(onnx_file(version_uri(name, version), tracking.state_dir()), version)


def require_same_classes(name: str, classes: list[str]) -> None:
    """Raises UserError where the champion knows other classes: it would be replaced by a model for another task."""
    reigning = champion_model(name)
    if reigning and reigning.classes != classes:
        raise UserError(
            f"the champion of {name}, version {reigning.version}, knows the classes {listed(reigning.classes)}; the "
            f"pictures are of {listed(classes)}.\nreplace_classes=true replaces it; name=ANOTHER (or MODEL_NAME) keeps "
            "both."
        )


def listed(classes: list[str]) -> str:
    return ", ".join(classes[:20]) + (f" and {len(classes) - 20} more" if len(classes) > 20 else "")


def rollback(name: str) -> str:
    """Makes the version that the champion replaced the champion again, and returns it; UserError where none is."""
    current = champion(name)
    if current is None:
        raise UserError(f"{name} has no champion in the registry at {mlflow.get_tracking_uri()}")
    previous = current.tags.get(PREVIOUS)
    if previous is None:
        raise UserError(f"the champion, version {current.version}, is the first: there is none to go back to")
    try:
        tracking.connect().get_model_version(name, previous)  # or MLflow would let the alias name nothing
    except MlflowException as error:
        if error.error_code in NOT_THERE:
            message = (
                f"version {previous} of {name}, which the champion replaced, was deleted: there is none to go back to"
            )
            raise UserError(message) from error
        raise named_error(error, f"version {previous} of {name}") from error
    tracking.connect().set_registered_model_alias(name, CHAMPION, previous)
    log.info("version %s is the champion again, in place of version %s", previous, current.version)
    return previous

"""Our registered model in MLflow's registry: its versions, its champions, and the way back to the one before.

A lock is a function of the registered model's name: while one holds what it returns, nobody else moves the aliases.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from serving.model.errors import UserError
from serving.model.predictor import Predictor
from serving.model.registry import CHALLENGER, CHAMPION, NOT_THERE, file_lock, named_error, onnx_file, version_uri
from training import tracking
from training.release.description import description, listed, with_decision

log = logging.getLogger(__name__)

Lock = Callable[[str], AbstractContextManager[object]]

# Tags of the registered model: the versions that were the champion, and since when and why promotions are held.
CHAMPIONS, HELD = "champions", "promotions_held"
REMEMBERED = 500  # champions, whose numbers fit into a tag
PREVIOUS = "previous_champion"  # 0.1.0's tag of a version: the one that it replaced
DECISION = "decision"  # the tag of a version that says why it is the champion, or is not


def state_lock(name: str) -> AbstractContextManager[object]:
    """The lock among the processes of one state directory."""
    return file_lock(tracking.state_dir(), f"champion of {name}")


def register(run_id: str, model_uri: str, name: str, lock: Lock = state_lock) -> str:
    """Registers a run's checked ONNX model as a new version of `name`, with a description; returns the version.

    A second call with the same model, as after an answer that got lost, finds the version of the first.
    """
    client = tracking.connect()
    run = client.get_run(run_id)
    tags = {key: run.data.tags[key] for key in ("model", "data", "data_fingerprint", "git_commit")}
    tags |= {"test_accuracy": f"{run.data.metrics['test_accuracy']:.4f}", "model_uri": model_uri}
    with lock(name):
        known = client.search_model_versions(f"name = '{name}' and tags.model_uri = '{model_uri}'")
        version = known[0] if known else mlflow.register_model(model_uri, name, tags=tags)
        if not version.description:
            client.update_model_version(name, version.version, description(run, version_uri(name, version.version)))
        _name_challenger(name)
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
    return model(current) if current else None


def model(version: ModelVersion) -> Predictor:
    """A version, ready to answer; ModelError if it does not work."""
    number = str(version.version)
    return Predictor(onnx_file(version_uri(version.name, number), tracking.state_dir()), number)


def versions(name: str) -> set[int]:
    return {int(version.version) for version in tracking.connect().search_model_versions(f"name = '{name}'")}


def require_same_classes(name: str, classes: list[str]) -> None:
    """Raises UserError where the champion knows other classes: it would be replaced by a model for another task."""
    reigning = champion_model(name)
    if reigning and reigning.classes != classes:
        raise UserError(
            f"the champion of {name}, version {reigning.version}, knows the classes {listed(reigning.classes)}; the "
            f"pictures are of {listed(classes)}.\nreplace_classes=true replaces it; name=ANOTHER (or MODEL_NAME) keeps "
            "both."
        )


def champions(name: str) -> list[str]:
    """The versions that were the champion, in their order, as far as they still exist; the last is the present one."""
    there = versions(name)
    return [version for version in history(name) if int(version) in there]


def history(name: str) -> list[str]:
    """The versions that were the champion, also those that are deleted by now."""
    # The alias is what counts: it may have been moved by hand, and was not moved where a program was cut off.
    current = champion(name)
    known = (_tags(name).get(CHAMPIONS) or (current.tags.get(PREVIOUS, "") if current else "")).split()
    if current:
        present = str(current.version)
        known = _up_to(known, present) if present in known else [*known, present]
    return known


def _up_to(history: list[str], version: str) -> list[str]:
    """A history up to the last time that a version was the champion."""
    return history[: len(history) - history[::-1].index(version)]


def crown(name: str, history: Sequence[str]) -> None:
    """Makes the last version of a history the champion; whoever calls it holds the lock."""
    client = tracking.connect()
    client.set_registered_model_tag(name, CHAMPIONS, " ".join(history[-REMEMBERED:]))
    client.set_registered_model_alias(name, CHAMPION, history[-1])
    _name_challenger(name)


def record_decision(name: str, version: str, promoted: bool, reason: str) -> None:
    """Keeps with a version, for programs and for people, why it became the champion, or did not."""
    client = tracking.connect()
    client.set_model_version_tag(name, version, DECISION, reason)
    described = client.get_model_version(name, version).description or ""
    words = f"{'promoted' if promoted else 'not promoted'}: {reason}"
    client.update_model_version(name, version, with_decision(described, words))


def rollback(name: str, hold: bool = False, lock: Lock = state_lock) -> str:
    """Makes the champion before the present one the champion again, and returns it; UserError where none is left.

    With `hold` no version is promoted from then on, until `release`.
    """
    with lock(name):
        current = champion(name)
        if current is None:
            raise UserError(f"{name} has no champion in the registry at {mlflow.get_tracking_uri()}")
        known, earlier = history(name), champions(name)[:-1]
        if not earlier:
            raise UserError(f"the champion, version {current.version}, {_why_none_is_left(known[:-1])}")
        version, today = earlier[-1], datetime.now(UTC).date()
        if hold:
            since = f"since version {current.version} was rolled back on {today}"
            tracking.connect().set_registered_model_tag(name, HELD, since)
        crown(name, _up_to(known[:-1], version))
        reason = current.tags.get(DECISION, "by hand")
        record_decision(name, str(current.version), True, f"{reason}. Rolled back to version {version} on {today}")
    log.info("version %s is the champion again, in place of version %s", version, current.version)
    return version


def _why_none_is_left(deleted: list[str]) -> str:
    if not deleted:
        return "is the first: there is none to go back to"
    return (
        f"is the oldest that is kept: what was the champion before it is deleted ({listed(deleted)})\n"
        "Clean-ups keep five before the present one, unless keep_champions= says otherwise; an alias keeps any version."
    )


def held(name: str) -> str | None:
    """Since when and why promotions are held, where they are."""
    return _tags(name).get(HELD)


def release(name: str, lock: Lock = state_lock) -> str:
    """Lets promotions through again; returns a sentence about it. UserError where there is no such model."""
    with lock(name):
        since = held(name)
        if since is None:
            return f"promotions of {name} were not held"
        tracking.connect().delete_registered_model_tag(name, HELD)
    return f"promotions of {name}, held {since}, are released"


def _name_challenger(name: str) -> None:
    """Lets the alias `challenger` name the newest version that is not the champion."""
    client, current = tracking.connect(), champion(name)
    if others := versions(name) - {int(current.version) if current else 0}:
        client.set_registered_model_alias(name, CHALLENGER, str(max(others)))
    else:
        client.delete_registered_model_alias(name, CHALLENGER)


def _tags(name: str) -> dict[str, str]:
    """Of the registered model; UserError if there is none, RegistryError if the registry does not answer."""
    try:
        return dict(tracking.connect().get_registered_model(name).tags)
    except MlflowException as error:
        raise named_error(error, f"the registered model {name}") from error

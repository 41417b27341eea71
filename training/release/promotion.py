"""Whether a version becomes the champion: a paired test on the same test pictures."""

import logging
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.stats import binomtest

from serving.model.predictor import Predictor
from serving.model.registry import CHAMPION, REGISTERED_MODEL, onnx_file, version_uri
from training import tracking
from training.data.split import load_data
from training.quality.evaluation import predict
from training.release.registry import PREVIOUS, champion

log = logging.getLogger(__name__)

SIGNIFICANCE = 0.05  # how sure a comparison must be before the champion changes


@dataclass(frozen=True)
class Decision:
    """Whether a candidate becomes the champion, and why, in a sentence."""

    promote: bool
    reason: str


def promote_if_better(version: str) -> Decision:
    """Makes a version the champion if it should be, and records the reason with the version either way."""
    current = champion()
    if current and str(current.version) == version:  # a second call, as after an answer that got lost
        return Decision(True, current.tags["decision"])
    reigning = str(current.version) if current else None
    decision = decide(version, reigning)
    client = tracking.connect()
    client.set_model_version_tag(REGISTERED_MODEL, version, "decision", decision.reason)
    if decision.promote:
        if reigning:
            client.set_model_version_tag(REGISTERED_MODEL, version, PREVIOUS, reigning)
        client.set_registered_model_alias(REGISTERED_MODEL, CHAMPION, version)
    verdict = "is the champion" if decision.promote else "is not promoted"
    log.info("version %s %s: %s", version, verdict, decision.reason)
    return decision


def decide(version: str, reigning: str | None) -> Decision:
    """Compares a version with the champion, `reigning`, on the version's own test set."""
    if reigning is None:
        return Decision(True, "there was no champion")
    run_id = str(tracking.connect().get_model_version(REGISTERED_MODEL, version).run_id)
    settings = tracking.run_settings(run_id)
    data = load_data(settings.data, settings.seed)
    predictor = Predictor(onnx_file(version_uri(reigning), tracking.state_dir()))
    if predictor.classes != data.classes:
        return Decision(True, f"the champion, version {reigning}, knows other classes")
    answers = np.load(tracking.artifact(run_id, tracking.SERVED_PROBABILITIES_FILE))
    answers_before = predict(partial(predictor.predict, all_cores=True), data.test, "scoring the champion")
    return better(answers, answers_before, data.test.labels, f"the champion, version {reigning}")


def better(candidate: np.ndarray, reigning: np.ndarray, labels: np.ndarray, name: str) -> Decision:
    """Whether a candidate's answers are better than another model's by more than chance.

    An exact one-sided McNemar test (McNemar 1947) on the pictures that just one of the two gets right. Both have
    probabilities (N, classes) on the same pictures, whose labels are (N,).
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

"""Whether a version becomes the champion: a paired test on the same test pictures."""

import logging
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.stats import binom, binomtest

from serving.model.errors import ModelError
from serving.model.registry import CHAMPION
from training import tracking
from training.data.split import load_data
from training.quality.evaluation import accuracy_interval, predict
from training.release.registry import PREVIOUS, champion, champion_model

log = logging.getLogger(__name__)

SIGNIFICANCE = 0.05  # how sure a comparison must be before the champion changes
TELLING_DIFFERENCE = 0.01  # of accuracy, which a test set should be large enough to tell


@dataclass(frozen=True)
class Decision:
    """Whether a candidate becomes the champion, and why, in a sentence."""

    promote: bool
    reason: str

    @property
    def verdict(self) -> str:
        return "is the champion" if self.promote else "is not promoted"


def promote_if_better(version: str, name: str, replace_classes: bool = False) -> Decision:
    """Makes a version of `name` the champion if it should be, and records the reason with the version either way.

    A champion that knows other classes is replaced only with `replace_classes`.
    """
    current = champion(name)
    if current and str(current.version) == version:  # a second call, as after an answer that got lost
        return Decision(True, current.tags["decision"])
    decision = decide(version, name, replace_classes)
    client = tracking.connect()
    client.set_model_version_tag(name, version, "decision", decision.reason)
    if decision.promote:
        if current:
            client.set_model_version_tag(name, version, PREVIOUS, str(current.version))
        client.set_registered_model_alias(name, CHAMPION, version)
    log.info("version %s %s: %s", version, decision.verdict, decision.reason)
    return decision


def decide(version: str, name: str, replace_classes: bool) -> Decision:
    """Compares a version with the champion on the version's own test set, which each decodes in its own way."""
    try:
        reigning = champion_model(name)
    except ModelError as error:
        return Decision(True, f"the champion does not work: {error}")
    if reigning is None:
        return Decision(True, "there was no champion")
    run_id = str(tracking.connect().get_model_version(name, version).run_id)
    settings = tracking.run_settings(run_id)
    data = load_data(settings.data, settings.seed, reigning.metadata.decoding)
    if reigning.classes != data.classes:
        return Decision(replace_classes, f"the champion, version {reigning.version}, knows other classes")
    answers = np.load(tracking.artifact(run_id, tracking.SERVED_PROBABILITIES_FILE))
    answers_before = predict(partial(reigning.predict, all_cores=True), data.test, "scoring the champion")
    return better(answers, answers_before, data.test.labels, f"the champion, version {reigning.version}")


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
    reason = (
        f"{in_interval(right)} {verdict} the {in_interval(right_before)} of {name} on {len(labels)} test pictures "
        f"(gained {gained}, lost {lost}, p = {p_value:.2g}; needed: p < {SIGNIFICANCE})"
    )
    smallest = smallest_difference(gained + lost, len(labels))
    if not promote and smallest > TELLING_DIFFERENCE:
        reason += f". The test set is too small to tell a difference of less than {smallest:.1%}: add test pictures"
    return Decision(promote, reason)


def in_interval(right: np.ndarray) -> str:
    """A share of pictures with its 95 % interval."""
    low, high = accuracy_interval(int(right.sum()), len(right))
    return f"{right.mean():.2%} [{low:.1%} to {high:.1%}]"


def smallest_difference(differing: int, pictures: int) -> float:
    """The least gain in accuracy that the test calls better, where `differing` pictures are right in just one model."""
    differing = max(differing, 5)  # of fewer not even all would be enough
    gained = int(binom.isf(SIGNIFICANCE, differing, 0.5)) + 1
    return (2 * gained - differing) / pictures

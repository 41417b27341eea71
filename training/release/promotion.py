"""Whether a version becomes the champion: a paired test on the same test pictures."""

import logging
from dataclasses import dataclass
from functools import partial

import numpy as np
from mlflow.entities.model_registry import ModelVersion
from scipy.stats import binom, binomtest

from serving.model.errors import ModelError
from training import tracking
from training.data.split import load_data
from training.quality.evaluation import accuracy_interval, predict
from training.release import registry

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


def promote_if_better(
    version: str, name: str, replace_classes: bool = False, lock: registry.Lock = registry.state_lock
) -> Decision:
    """Makes a version of `name` the champion if it should be, and records the reason with the version either way.

    A champion that knows other classes is replaced only with `replace_classes`, and none while promotions are held.
    """
    while True:
        current = registry.champion(name)
        if current and str(current.version) == version:  # a second call, as after an answer that got lost
            return Decision(True, current.tags.get(registry.DECISION, "by hand"))
        # Comparing takes minutes, which a rollback should not wait for: it is done before the lock is taken, and again
        # if the champion is another one by then.
        decision = decide(version, name, current, replace_classes)
        with lock(name):
            if _number(registry.champion(name)) != _number(current):
                log.info("the champion has changed meanwhile: version %s is compared with the new one", version)
                continue
            if decision.promote and (since := registry.held(name)):
                words = f"{decision.reason}. Promotions are held {since}: python -m flows.release lets them through"
                decision = Decision(False, words)
            registry.record_decision(name, version, decision.promote, decision.reason)
            if decision.promote:
                registry.crown(name, [*registry.history(name), version])
        log.info("version %s %s: %s", version, decision.verdict, decision.reason)
        return decision


def _number(version: ModelVersion | None) -> str:
    return str(version.version) if version else ""


def decide(version: str, name: str, current: ModelVersion | None, replace_classes: bool) -> Decision:
    """Compares a version with the champion on the version's own test set, which each decodes in its own way."""
    if current is None:
        return Decision(True, "there was no champion")
    try:
        reigning = registry.model(current)
    except ModelError as error:
        return Decision(True, f"the champion does not work: {error}")
    run_id = str(tracking.connect().get_model_version(name, version).run_id)
    settings = tracking.run_settings(run_id)
    data = load_data(settings.data, settings.seed, reigning.metadata.decoding)
    if reigning.classes != data.classes:
        return Decision(replace_classes, f"the champion, version {reigning.version}, knows other classes")
    answers = np.load(tracking.artifact(run_id, tracking.SERVED_PROBABILITIES_FILE))
    classify = partial(reigning.predict, all_cores=True)
    answers_before = predict(classify, data.test, "scoring the champion", settings.evaluation_batch_size)
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

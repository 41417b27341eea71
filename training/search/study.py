"""Optuna's record of a search: which settings come next, which trials are not worth going on, what became of each."""

import contextlib
import os
from pathlib import Path
from typing import Any

with contextlib.suppress(ModuleNotFoundError):  # `make scale` installs it: require_optuna
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial, Trial, TrialState

from serving.model.errors import UserError
from training.search.space import Range, Space, choices

AT_RANDOM = 5  # trials before the first that learns from them, and before the first that is pruned
REASON = "reason"  # why a trial failed
STARTS = "starts"  # how often one has begun
MOST_STARTS = 3  # of one that ends its process, as the kernel's want of memory does, before its first epoch is done


def require_optuna() -> None:
    if "optuna" not in globals():
        raise UserError("a search needs Optuna, which is not installed\nmake scale installs it.")


class Study:
    """A search's trials, in a journal that each of them appends to.

    A trial's settings follow from the seed, its number and the trials before it, so a search that was killed goes on as
    one that was not. The journal of a search has one `Study` that asks, and one for each trial that is at work.
    """

    def __init__(self, journal: Path) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        journal.parent.mkdir(parents=True, exist_ok=True)
        self.study = optuna.create_study(
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(journal))),
            study_name="search",
            direction="maximize",
            load_if_exists=True,
            # It compares trials at the same epoch, of however few. Hyperband shares trials and epochs out among
            # brackets, for which fine-tuning has too few of both.
            pruner=optuna.pruners.MedianPruner(n_startup_trials=AT_RANDOM),
        )

    @property
    def trials(self) -> "list[FrozenTrial]":
        return self.study.get_trials(deepcopy=False)

    @property
    def run_id(self) -> str | None:
        """The search's run in MLflow."""
        return self.study.user_attrs.get("run_id")

    @run_id.setter
    def run_id(self, run_id: str) -> None:
        self.study.set_user_attr("run_id", run_id)

    @property
    def begins_with_the_experiment(self) -> bool:
        return bool(self.study.user_attrs["begins_with_the_experiment"])

    def begin(self, first: dict[str, Any], space: Space) -> None:
        """Lets the first trial be of these values, and the rest sampled; a study that has begun goes on as it is."""
        if not self.trials:
            self.study.set_user_attr("begins_with_the_experiment", first.keys() == space.keys())
            self.study.enqueue_trial(first)
        # Nobody is at work yet: who was, is gone.
        self._left_behind = [trial.number for trial in self.trials if trial.state == TrialState.RUNNING]

    def ask(self, space: Space, trials: int, seed: int) -> int | None:
        """The number of the next trial, one that was cut off before all others; None once `trials` have ended."""
        left_behind = self._next_left_behind()
        number = len([trial for trial in self.trials if trial.state != TrialState.WAITING])
        if left_behind is not None:
            number = left_behind
        elif number >= trials:
            return None
        # By the number: a study that goes on would draw again what it has drawn.
        self.study.sampler = optuna.samplers.TPESampler(n_startup_trials=AT_RANDOM, seed=seed + number)
        trial = self.study.ask() if left_behind is None else self._trial(left_behind)
        for key, parameter in space.items():
            if not isinstance(parameter, Range):
                trial.suggest_categorical(key, choices(parameter))
            elif parameter.is_whole:
                trial.suggest_int(key, int(parameter.low), int(parameter.high), log=parameter.log)
            else:
                trial.suggest_float(key, parameter.low, parameter.high, log=parameter.log)
        trial.set_user_attr(STARTS, self.trials[trial.number].user_attrs.get(STARTS, 0) + 1)
        return trial.number

    def _next_left_behind(self) -> int | None:
        while self._left_behind:
            number = self._left_behind.pop(0)
            trial = self.trials[number]
            if trial.user_attrs.get(STARTS, 0) < MOST_STARTS or trial.intermediate_values:
                return number
            self.fail(number, f"its process ended {MOST_STARTS} times before its first epoch was done")
        return None

    def params(self, number: int) -> dict[str, Any]:
        return dict(self.trials[number].params)

    def is_hopeless(self, number: int, epoch: int, accuracy: float) -> bool:
        """Notes a validation accuracy; whether the trial's best is below the median of the others at that epoch."""
        trial = self._trial(number)
        if epoch not in self.trials[number].intermediate_values:  # one is trained again if its checkpoint was not there
            trial.report(accuracy, epoch)
        return trial.should_prune()

    def complete(self, number: int, accuracy: float) -> None:
        self.study.tell(number, accuracy)

    def prune(self, number: int) -> None:
        self.study.tell(number, state=TrialState.PRUNED)

    def is_finished(self, number: int) -> bool:
        return bool(self.trials[number].state.is_finished())

    def fail(self, number: int, reason: str) -> None:
        """Notes why a trial has failed, unless it had ended before."""
        if self.is_finished(number):
            return
        self._trial(number).set_user_attr(REASON, reason)
        self.study.tell(number, state=TrialState.FAIL)

    def _trial(self, number: int) -> "Trial":
        return Trial(self.study, self.trials[number]._trial_id)


def mend(journal: Path) -> None:
    """Takes the last line away where a full disk, or a power failure, left a part of one."""
    if journal.exists() and (content := journal.read_bytes()) and not content.endswith(b"\n"):
        os.truncate(journal, content.rfind(b"\n") + 1)

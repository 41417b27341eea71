"""The model that answers, exchanged for a new version while serving."""

import asyncio
import logging
from collections.abc import Callable
from math import ceil

from serving.model.errors import ModelError, PictureError, RegistryError, without_credentials
from serving.model.predictor import Predictor
from serving.model.store import ModelStore
from serving.online import metrics
from serving.online.errors import Refusal
from serving.settings import Settings

log = logging.getLogger("bentoml.serving")  # BentoML prints what its own loggers say


class Champion:
    """The predictor in use, and the task that follows the registry's alias.

    Args:
        predictor: the first one, where it is loaded already.
        last_answered: a picture that was answered, if any: a new version must have an answer to it as well.
    """

    def __init__(
        self, settings: Settings, predictor: Predictor | None, last_answered: Callable[[], bytes | None]
    ) -> None:
        self._store = ModelStore(settings.model, settings.state_dir, settings.providers, settings.precision)
        self._model = settings.model
        self._poll_seconds = settings.poll_seconds
        self._max_pixels = settings.max_pixels
        self._last_answered = last_answered
        self._predictor: Predictor | None = None
        self._problem: Exception | None = None  # why the last turn brought nothing
        self._broken: str | None = None
        if predictor:
            self._use(predictor)
        self._task = asyncio.create_task(self._follow())

    @property
    def predictor(self) -> Predictor:
        """The current one; Refusal 503 while none is loaded.

        A request that keeps it is answered by it throughout, whatever the registry says meanwhile.
        """
        if self._predictor is None:
            seconds = ceil(self._poll_seconds) if self._problem else 1
            raise Refusal(503, "not_ready", self._why_not(), {"retry-after": str(seconds)})
        return self._predictor

    def _why_not(self) -> str:
        """What is missing, for people; the log has the details, which are not everybody's."""
        match self._problem:
            case None:
                return "The model is being loaded; ask again in a moment."
            case RegistryError():
                return "The registry does not answer, and no copy of a model is kept here. The service asks it again."
            case error if self._store.may_come(error):
                return (
                    f"There is no model at {self._model} yet. Train one, as make demo and the flow retrain do: the "
                    "service takes it by itself."
                )
        return f"{self._model} can't be used; the service's log says why."

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        """Loads the model, then follows the alias; whatever goes wrong is tried again at the next turn."""
        while self._predictor is None or self._store.may_change:
            try:
                new = await asyncio.to_thread(self._newer)
            except Exception as error:  # also a full disk: the service outlives it
                metrics.MODEL_CHANGES.labels("failed").inc()
                if str(error) != str(self._problem):
                    serving = f"version {self._predictor.version} goes on serving" if self._predictor else "not ready"
                    log.warning("%s: %s: %s", serving, type(error).__name__, without_credentials(str(error)))
                self._problem = error
            else:
                if new is not None:
                    self._use(new)
                if self._predictor:
                    self._problem = None
            await asyncio.sleep(self._poll_seconds)

    def _newer(self) -> Predictor | None:
        """The version that the alias names, if it is neither the one in use nor known to be broken."""
        if self._predictor is None and (self._problem is None or not self._store.registered):
            return self._store.load_copy()
        version = self._store.find_version()
        if version in (self._predictor and self._predictor.version, self._broken):
            return None
        try:
            return self._store.load_version(version, self._answers_too)
        except ModelError:
            self._broken = version
            raise

    def _answers_too(self, predictor: Predictor) -> None:
        """Raises ModelError where a picture that was answered is too much for a new version."""
        if content := self._last_answered():
            (answer,) = predictor.classify([content], self._max_pixels, all_cores=False, large=True)
            if isinstance(answer, MemoryError):  # which is not the version's fault
                raise answer
            if isinstance(answer, Exception) and not isinstance(answer, PictureError):
                raise ModelError(
                    f"version {predictor.version} has no answer to a picture that was answered ({answer!r:.200})"
                ) from answer

    def _use(self, predictor: Predictor) -> None:
        metrics.MODEL.clear()
        said = predictor.metadata
        metrics.MODEL.labels(said.model_name, predictor.version, said.mlflow_run_id, predictor.precision).set(1)
        metrics.MODEL_LACKS.set(len(predictor.lacks))
        metrics.MODEL_CHANGES.labels("taken").inc()
        self._predictor = predictor
        log.info("version %s answers from now on, in %s", predictor.version, predictor.precision)

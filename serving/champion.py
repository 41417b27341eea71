"""The model that answers: fetched from the registry, kept on disk, and exchanged for a new version while serving."""

import asyncio
import logging
import tempfile
from pathlib import Path

from serving import metrics, registry
from serving.errors import ModelError, Refusal, RegistryError
from serving.predictor import Predictor
from serving.settings import Settings

log = logging.getLogger("bentoml.serving")  # BentoML prints what its own loggers say


def fetch(settings: Settings) -> Predictor:
    """Loads what SERVING_MODEL names: from the registry, or, while that is down or its version is no good, as kept.

    Raises:
        ModelError: there is no such model, or it does not work, and none was kept.
        RegistryError: the registry does not answer, and no version was kept.
    """
    if not settings.model.startswith("models:/"):
        return _load_file(settings)
    try:
        return _fetch_version(settings, registry.find_version(settings.model, settings.state_dir))
    except (RegistryError, BrokenVersion) as error:
        kept = _kept_file(settings)
        if kept is None:
            raise
        log.warning("%s; serving version %s, kept in %s", error, kept.stem, kept.parent)
        return Predictor(kept, kept.stem, settings.providers)


class BrokenVersion(ModelError):
    """A version that the registry has and that does not answer as one of our models does."""


class Champion:
    """The predictor in use, and the task that follows the registry's alias."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._predictor: Predictor | None = None
        self._broken: str | None = None
        self._task = asyncio.create_task(self._follow())

    @property
    def predictor(self) -> Predictor:
        """The current one: a request that keeps it is answered by it throughout, whatever the registry says meanwhile.

        Raises:
            Refusal: 503, none is loaded yet.
        """
        if self._predictor is None:
            raise Refusal(503, "not_ready", "The model is being loaded; ask again in a moment.", {"retry-after": "1"})
        return self._predictor

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        """Loads the model, then follows the alias; whatever goes wrong is tried again at the next turn."""
        last_problem = None
        while True:
            problem, new = None, None
            try:
                new = await asyncio.to_thread(self._newer)
            except Exception as error:  # also a full disk: the service outlives it
                problem = f"{type(error).__name__}: {error}"
                metrics.MODEL_CHANGES.labels("failed").inc()
            if problem and problem != last_problem:
                serving = f"version {self._predictor.version} goes on serving" if self._predictor else "not ready"
                log.warning("%s: %s", serving, problem)
            last_problem = problem
            if new is not None:
                self._use(new)
            if self._predictor and "@" not in self._settings.model:  # a file or a version stays what it is
                return
            await asyncio.sleep(self._settings.poll_seconds)

    def _newer(self) -> Predictor | None:
        """The version that the alias names, where that is another than the one in use and not known to be broken."""
        if self._predictor is None:
            return _load_kept(self._settings)
        version = registry.find_version(self._settings.model, self._settings.state_dir)
        if version in (self._predictor.version, self._broken):
            return None
        try:
            return _fetch_version(self._settings, version)
        except BrokenVersion:
            self._broken = version
            raise

    def _use(self, predictor: Predictor) -> None:
        metrics.MODEL.clear()
        metrics.MODEL.labels(predictor.name, predictor.version, predictor.run_id).set(1)
        metrics.MODEL_CHANGES.labels("taken").inc()
        self._predictor = predictor
        log.info("version %s answers from now on", predictor.version)


def _load_kept(settings: Settings) -> Predictor:
    """What `fetch` has loaded before this process began, without asking the registry again."""
    kept = _kept_file(settings) if settings.model.startswith("models:/") else None
    return Predictor(kept, kept.stem, settings.providers) if kept else fetch(settings)


def _load_file(settings: Settings) -> Predictor:
    if not Path(settings.model).is_file():
        raise ModelError(f"SERVING_MODEL={settings.model}: no such file; give an ONNX file or models:/NAME@ALIAS")
    return Predictor(Path(settings.model), "file", settings.providers)


def _fetch_version(settings: Settings, version: str) -> Predictor:
    """Downloads and loads a version; keeps its file in place of the last one once it has shown that it answers."""
    directory = _kept_directory(settings)
    directory.mkdir(parents=True, exist_ok=True)
    kept = directory / f"{version}.onnx"
    with tempfile.TemporaryDirectory(dir=directory) as partial:
        file = registry.download(settings.model, version, settings.state_dir, Path(partial))
        try:
            predictor = Predictor(file, version, settings.providers)
        except ModelError as error:
            raise BrokenVersion(f"version {version} of {settings.model} does not work: {error}") from error
        file.replace(kept)
    for other in directory.glob("*.onnx"):
        if other != kept:
            other.unlink(missing_ok=True)
    return predictor


def _kept_directory(settings: Settings) -> Path:
    return settings.state_dir / "serving" / settings.model.removeprefix("models:/")


def _kept_file(settings: Settings) -> Path | None:
    """The version that was last fetched for this SERVING_MODEL, as VERSION.onnx."""
    return max(_kept_directory(settings).glob("*.onnx"), key=lambda path: path.stat().st_mtime, default=None)

"""A model by its name: from the registry, with its last good version kept on disk."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from serving.model import registry
from serving.model.errors import ModelError, RegistryError, UserError
from serving.model.predictor import Predictor

log = logging.getLogger(__name__)


class ModelStore:
    """What `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or the path of an ONNX file names.

    The last good copy of every name is kept under serving/ in `state_dir`.
    """

    def __init__(self, model: str, state_dir: Path, providers: Sequence[str]) -> None:
        registry.use_short_timeouts()
        self._model = model
        self._state_dir = state_dir
        self._providers = providers
        self._directory = state_dir / "serving" / model.removeprefix(registry.SCHEME)
        self._registered = model.startswith(registry.SCHEME)
        # An alias may name another version tomorrow; a file or a version stays what it is.
        self.may_change = self._registered and "@" in model

    def load(self) -> Predictor:
        """Loads the version that the name stands for.

        If the registry is unreachable or the version fails its self-test, falls back on the last good copy on disk;
        raises UserError or RegistryError if there is none.
        """
        if not self._registered:
            return Predictor(registry.onnx_file(self._model, self._state_dir), providers=self._providers)
        try:
            version = self.find_version()
        except ModelError:  # the registry says that there is none: a copy would hide it
            raise
        except (UserError, RegistryError) as error:
            return self._load_copy_instead(error)
        try:
            return self.load_version(version)
        except (ModelError, RegistryError) as error:
            return self._load_copy_instead(error)

    def load_copy(self) -> Predictor:
        """Loads the last good copy on disk without asking the registry; as `load` where there is none."""
        copy = self._copy()
        return Predictor(copy, copy.stem, self._providers) if copy else self.load()

    def find_version(self) -> str:
        """The version that the name stands for now; raises as `registry.find_version` does."""
        return registry.find_version(self._model, self._state_dir)

    def load_version(self, version: str) -> Predictor:
        """Fetches and loads a version; once it has passed its self-test, its file takes the last copy's place.

        Raises ModelError where it does not work, RegistryError where it can't be fetched.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        copy = self._directory / f"{version}.onnx"
        with tempfile.TemporaryDirectory(dir=self._directory) as partial:
            file = registry.download(self._model, version, self._state_dir, Path(partial))
            try:
                predictor = Predictor(file, version, self._providers)
            except ModelError as error:
                raise ModelError(f"version {version} of {self._model} does not work: {error}") from error
            file.replace(copy)
        for other in self._directory.glob("*.onnx"):
            if other != copy:
                other.unlink(missing_ok=True)
        return predictor

    def _load_copy_instead(self, error: Exception) -> Predictor:
        if not (copy := self._copy()):
            raise error
        log.warning("%s; using version %s, kept in %s", error, copy.stem, copy.parent)
        return Predictor(copy, copy.stem, self._providers)

    def _copy(self) -> Path | None:
        """VERSION.onnx, the last one that was fetched."""
        copies = self._directory.glob("*.onnx") if self._registered else []
        return max(copies, key=lambda path: path.stat().st_mtime, default=None)

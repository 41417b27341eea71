"""A model by its name: from the registry, with its last good version kept on disk."""

import errno
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

from serving.model import registry
from serving.model.errors import ModelError, NoRegistry, NotAllowed, RegistryError, UserError, causes
from serving.model.pictures.memory import give_freed_memory_back
from serving.model.precision import Choice
from serving.model.predictor import Predictor

log = logging.getLogger(__name__)

# Makes a folder to download to; None: MLflow's choice.
Place = Callable[[], AbstractContextManager[str | None]]
Check = Callable[[Predictor], None]


class ModelStore:
    """What `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or the path of an ONNX file names.

    The last good copy of every name is kept under serving/ in `state_dir`.
    """

    def __init__(self, model: str, state_dir: Path, providers: Sequence[str], precision: Choice = "fp32") -> None:
        registry.use_short_timeouts()
        self._model = model
        self._state_dir = state_dir
        self._providers = providers
        self._precision = precision
        give_freed_memory_back()  # before there is a model, whose loading frees much
        self._directory = state_dir / "serving" / model.removeprefix(registry.SCHEME)
        self.registered = model.startswith(registry.SCHEME)
        # An alias may name another version tomorrow; a file or a version stays what it is.
        self.may_change = self.registered and "@" in model

    def may_come(self, error: Exception) -> bool:
        """Whether `load`, which has failed, may succeed later with the same settings.

        So it is while the registry does not answer, and while it has no version of that alias that works.
        """
        if isinstance(error, RegistryError | NoRegistry):
            return True
        return self.may_change and isinstance(error, ModelError) and not isinstance(error, NotAllowed)

    def load(self, check: Check = lambda predictor: None) -> Predictor:
        """Loads the version that the name stands for; `check` sees it while its files are there.

        If the registry is unreachable or the version fails its self-test, falls back on the last good copy on disk;
        raises UserError or RegistryError if there is none.
        """
        if not self.registered:
            predictor = self._predictor(registry.onnx_file(self._model, self._state_dir), "file")
            check(predictor)
            return predictor
        try:
            version = self.find_version()
        except ModelError:  # the registry says that there is none: a copy would hide it
            raise
        except (UserError, RegistryError) as error:
            return self._load_copy_instead(error, check)
        try:
            return self.load_version(version, check)
        except (ModelError, RegistryError) as error:
            return self._load_copy_instead(error, check, version)

    def load_copy(self) -> Predictor:
        """Loads the last good copy on disk without asking the registry; as `load` where there is none."""
        if copy := self._copy():
            try:
                return self._predictor(copy, copy.stem)
            except ModelError as error:
                log.warning("%s; it is fetched again", error)
        return self.load()

    def find_version(self) -> str:
        """The version that the name stands for now; raises as `registry.find_version` does."""
        return registry.find_version(self._model, self._state_dir)

    def load_version(self, version: str, check: Check = lambda predictor: None) -> Predictor:
        """Loads a version that is kept on disk, or fetches it.

        Once it has passed its self-test, and `check`, which raises ModelError, its file takes the last copy's place.
        Where nothing can be written it is loaded and not kept.

        Raises ModelError where it does not work, RegistryError where it can't be fetched.
        """
        if kept := self._kept(version):
            check(kept)
            return kept
        # The last one copies nothing where the registry's files are on this disk.
        places: list[Place] = [self._folder_beside_copies, tempfile.TemporaryDirectory, partial(nullcontext, None)]
        while True:
            try:
                return self._fetched(version, check, places.pop(0))
            except (OSError, RegistryError) as error:
                if not places or not _says_that_it_can_not_write(error):
                    raise
                log.warning("version %s of %s can't be kept: %s", version, self._model, error)

    def _kept(self, version: str) -> Predictor | None:
        """What is kept of a version, where it is whole, and of this registry: another one counts from 1 as well."""
        copy = self._directory / f"{version}.onnx"
        if not copy.is_file():
            return None
        try:
            predictor = self._predictor(copy, version)
        except NotAllowed:
            raise
        except ModelError as error:
            log.warning("%s; it is fetched again", error)
            return None
        try:
            run = registry.run_of(self._model, version, self._state_dir)
        except RegistryError as error:  # which has just told the version: what is kept answers, as when it is down
            log.warning("%s; using version %s, kept in %s", error, version, copy.parent)
            return predictor
        return predictor if predictor.metadata.mlflow_run_id == run else None

    def _folder_beside_copies(self) -> AbstractContextManager[str]:
        self._directory.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=self._directory)

    def _fetched(self, version: str, check: Check, place: Place) -> Predictor:
        """Downloads a version to a folder, and keeps it if that is beside the copies."""
        with place() as folder:
            file = registry.download(self._model, version, self._state_dir, Path(folder) if folder else None)
            predictor = self._checked(file, version, check)
            if folder and Path(folder).parent == self._directory:
                self._keep(file, version)
        return predictor

    def _keep(self, file: Path, version: str) -> None:
        """Puts a version's files in the place of what was kept: model-int8.onnx as VERSION-int8.onnx, float32 last."""
        before = set(self._directory.glob("*.onnx"))
        for each in (*file.parent.glob(f"{file.stem}-*.onnx"), file):
            with open(each, "rb") as written:
                os.fsync(written.fileno())  # a power cut must not leave an empty copy
            kept = self._directory / each.name.replace(file.stem, version, 1)
            each.replace(kept)
            before.discard(kept)
        for other in before:
            other.unlink(missing_ok=True)

    def _checked(self, file: Path, version: str, check: Check) -> Predictor:
        try:
            predictor = self._predictor(file, version)
            check(predictor)
        except ModelError as error:
            raise ModelError(f"version {version} of {self._model} does not work: {error}") from error
        return predictor

    def _load_copy_instead(self, error: Exception, check: Check, version: str = "") -> Predictor:
        """Loads what is kept, where that is not the version that has failed."""
        if not (copy := self._copy()) or copy.stem == version:
            raise error
        log.warning("%s; using version %s, kept in %s", error, copy.stem, copy.parent)
        predictor = self._predictor(copy, copy.stem)
        check(predictor)
        return predictor

    def _predictor(self, file: Path, version: str) -> Predictor:
        return Predictor(file, version, self._providers, self._precision)

    def _copy(self) -> Path | None:
        """VERSION.onnx, the last one that was fetched."""
        found = self._directory.glob("*.onnx") if self.registered else []
        copies = [path for path in found if path.stem.isdecimal()]  # without those of other precisions
        return max(copies, key=lambda path: path.stat().st_mtime, default=None)


def _says_that_it_can_not_write(error: BaseException) -> bool:
    """Whether the kernel's words are in an error, or in one that it comes from: MLflow tells them as text."""
    words = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)]
    return any(text in str(each) for each in causes(error) for text in words)

"""MLflow's registry: its address, our names in it, which version a name stands for, and that version's file.

python -m serving.model.registry copy=bento.onnx model=models:/NAME@ALIAS, /VERSION or a path: copies its ONNX files.
"""

import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from serving.model.contract import MODEL_FILE
from serving.model.errors import (
    ModelError,
    NoRegistry,
    RegistryError,
    UserError,
    exit_in_words,
    first_line,
    without_credentials,
)

DEFAULT_NAME = "image-classifier"
CHAMPION, CHALLENGER = "champion", "challenger"
SCHEME = "models:/"

# MLflow's error codes for what is not there; the second is returned for an alias that does not exist.
NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def registered_name(name: str = "") -> str:
    """The registered model that everything follows: the one that is given, or MODEL_NAME, or the default.

    Raises UserError if MLflow would not accept it.
    """
    name = name or os.environ.get("MODEL_NAME") or DEFAULT_NAME
    if set(name) & set("/:@'\"\n"):
        raise UserError(f"MODEL_NAME={name}: the name of a registered model can't have / : @ or quotes in it")
    return name


def champion_uri(name: str = "") -> str:
    return f"{SCHEME}{registered_name(name)}@{CHAMPION}"


def tracking_uri(state_dir: Path) -> str:
    """MLFLOW_TRACKING_URI, or the SQLite file in the state directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(state_dir / 'mlflow.db').resolve()}"


def sqlite_file(uri: str) -> Path | None:
    """The database file behind a tracking URI, where it is one."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def artifact_location(uri: str, state_dir: Path) -> str | None:
    """Where the artifacts go of what a database tracks: beside its file, or into the state directory.

    None for an MLflow server, which knows that itself.
    """
    from mlflow.store.db.db_types import DATABASE_ENGINES

    if uri.partition(":")[0].partition("+")[0] not in DATABASE_ENGINES:
        return None
    file = sqlite_file(uri)
    return ((file.parent if file else state_dir) / "mlartifacts").resolve().as_uri()


def file_lock(directory: Path, name: str, timeout: float = -1) -> FileLock:
    """A lock on `name` among all processes that share a state directory; waits `timeout` seconds, below 0 for ever."""
    path = directory / "locks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, timeout=timeout)


def connect(uri: str) -> Any:
    """Points MLflow at a registry; returns the package, whose import takes seconds."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a log would have a line for every step
    # It would print the address that programs ask; people may open another one: MLFLOW_PAGE.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow

    mlflow.set_tracking_uri(uri := _without_user(uri))
    try:
        if file := sqlite_file(uri):
            _make_whole(file)
        mlflow.MlflowClient()
    except mlflow.tracking.registry.UnsupportedModelRegistryStoreURIException as error:
        message = (
            f"MLFLOW_TRACKING_URI={uri} is no address of MLflow's; give https://HOST, sqlite:///FILE or postgresql://"
        )
        raise UserError(message) from error
    except Exception as error:
        raise named_error(error, "what MLflow keeps") from error
    return mlflow


def _without_user(uri: str) -> str:
    """A server's address without user and password, which MLflow gets in the variables that it has for them.

    It shows addresses in what it prints, raises and keeps.
    """
    parts = urlsplit(uri)
    if "@" in uri and parts.username is None and not parts.scheme.startswith(("sqlite", "file")):
        raise UserError(
            "MLFLOW_TRACKING_URI has an @ that does not end a user and a password\n"
            "In a password / is written as %2F, ? as %3F and # as %23, and in a path @ as %40."
        )
    if not parts.scheme.startswith("http") or parts.username is None:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return without_credentials(uri)


@cache
def _make_whole(file: Path) -> None:
    """Creates MLflow's database, or brings it to this MLflow's tables, in one process at a time.

    MLflow itself takes no lock for that, and a second process in it leaves a database that is broken for good. A new
    one takes its place when it is whole: a process that is killed meanwhile leaves none. Of an older one a copy stays.
    """
    if _is_whole(file):
        return
    with file_lock(file.parent, file.name):
        if not file.exists():
            new = file.with_name(f"{file.name}.new")
            new.unlink(missing_ok=True)
            _make_tables(new)
            new.replace(file)
        elif not _is_whole(file):
            _migrate(file)
            _make_tables(file)


def _is_whole(file: Path) -> bool:
    from mlflow.store.db import utils

    if not file.exists():
        return False
    with _engine(file) as engine:
        latest = utils._get_latest_schema_revision()
        return bool(utils._all_tables_exist(engine)) and utils._get_schema_version(engine) == latest


def _migrate(file: Path) -> None:
    """Brings what an older MLflow has made to this one's tables, after a copy of it: FILE.REVISION."""
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils

    with _engine(file) as engine:
        if not (revision := utils._get_schema_version(engine)):
            return  # there are no tables
        ScriptDirectory.from_config(utils._get_alembic_config("")).get_revision(revision)  # or a newer MLflow's
        with closing(sqlite3.connect(file)) as old, closing(sqlite3.connect(f"{file}.{revision}")) as copy:
            old.backup(copy)
        utils._upgrade_db(engine)


@contextmanager
def _engine(file: Path) -> Iterator[Any]:
    from mlflow.store.db import utils

    engine = utils.create_sqlalchemy_engine(f"sqlite:///{file}")
    try:
        yield engine
    finally:
        engine.dispose()


def _make_tables(file: Path) -> None:
    """What MLflow does when it opens a database, which adds its first experiment as well."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    uri = f"sqlite:///{file}"
    SqlAlchemyStore(uri, artifact_location(uri, file.parent))._dispose_engine()


def use_short_timeouts() -> None:
    """Lets MLflow give up within seconds instead of minutes, for those who have a copy of the model on disk."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


def find_version(model: str, state_dir: Path) -> str:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` stands for now.

    Raises NoRegistry if there is none, ModelError if it has no such version, RegistryError if it does not answer, and
    UserError for a name of another form.
    """
    known = re.fullmatch(r"([^@/]+)(@(?=.)|/(?=\d+$))(.+)", model.removeprefix(SCHEME))
    if not known:
        raise UserError(f"{model} names no version; give {SCHEME}NAME@ALIAS or {SCHEME}NAME/VERSION")
    name, separator, which = known.groups()
    client = _connect_to_existing(state_dir).MlflowClient
    try:
        if separator == "@":
            return str(client().get_model_version_by_alias(name, which).version)
        return str(client().get_model_version(name, which).version)
    except Exception as error:
        raise named_error(error, model) from error


def run_of(model: str, version: str, state_dir: Path) -> str:
    """The id of the run that made a version of a registered model; raises as `find_version` does."""
    name = _name(model)
    try:
        return str(_connect_to_existing(state_dir).MlflowClient().get_model_version(name, version).run_id)
    except Exception as error:
        raise named_error(error, version_uri(name, version)) from error


def download(model: str, version: str, state_dir: Path, directory: Path | None = None) -> Path:
    """Fetches what belongs to a version of a registered model; returns its ONNX file. Raises as `find_version` does.

    Without a `directory` to write it to MLflow chooses one, and copies nothing that is on this disk.
    """
    mlflow = _connect_to_existing(state_dir)
    uri = version_uri(_name(model), version)
    try:
        return Path(mlflow.artifacts.download_artifacts(uri, dst_path=directory and str(directory))) / MODEL_FILE
    except Exception as error:
        raise named_error(error, uri) from error


def onnx_file(model: str, state_dir: Path) -> Path:
    """A local copy of the ONNX file at `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or a path; raises as the above."""
    if model.startswith(SCHEME):
        return download(model, find_version(model, state_dir), state_dir)
    return existing_file(model)


def existing_file(model: str) -> Path:
    if not Path(model).is_file():
        raise ModelError(f"{model}: no such file; give an ONNX file, models:/NAME@ALIAS or models:/NAME/VERSION")
    return Path(model)


def version_uri(name: str, version: str) -> str:
    return f"{SCHEME}{name}/{version}"


def named_error(error: Exception, what: str) -> ModelError | RegistryError:
    """What an error of MLflow, its database, its storage or the network between means to people."""
    import mlflow

    reason, uri = first_line(error), mlflow.get_tracking_uri()
    if getattr(error, "error_code", None) in NOT_THERE:
        return ModelError(f"{what} is not in the registry at {uri} ({reason}); make demo trains and registers a model")
    return RegistryError(f"{what} can't be fetched: the registry at {uri} or its storage does not answer ({reason})")


def _name(model: str) -> str:
    """Of the registered model, in `models:/NAME@ALIAS` or `models:/NAME/VERSION`."""
    return model.removeprefix(SCHEME).partition("@")[0].partition("/")[0]


def _connect_to_existing(state_dir: Path) -> Any:
    uri = tracking_uri(state_dir)
    if (file := sqlite_file(uri)) and not file.exists():
        raise NoRegistry(f"there is no registry at {uri}; train a model first (make demo), or set MLFLOW_TRACKING_URI")
    return connect(uri)


if __name__ == "__main__":
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    with exit_in_words():
        file = onnx_file(words["model"] or champion_uri(), Path(os.environ.get("STATE_DIR", "state")))
        copy = Path(words["copy"])
        shutil.copyfile(file, copy)
        for other in file.parent.glob(f"{file.stem}-*{file.suffix}"):  # in other precisions
            shutil.copyfile(other, copy.with_name(other.name.replace(file.stem, copy.stem, 1)))

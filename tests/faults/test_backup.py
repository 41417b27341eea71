"""Everything is lost and restored: from the state directory, and from the containers' databases and bucket."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import sqlalchemy
from mlflow import MlflowClient

from serving.model.registry import CHAMPION, DEFAULT_NAME
from tests.helpers.pictures import png
from tests.helpers.servers import Postgres
from tests.helpers.service import served
from tests.helpers.state import ROOT, state_in, train_champion
from training import tracking
from training.release import registry

pytestmark = pytest.mark.slow


def make(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def assert_done(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 0, result.stdout + result.stderr


def assert_refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """With two lines, after which make says which recipe it was."""
    assert result.returncode == 2
    lines = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 2, result.stderr
    for word in words:
        assert word in result.stderr


def answer(directory: Path) -> dict[str, object]:
    """The champion's, from a process that knows nothing of what was there before."""
    with served(directory / "service.log") as service:
        found = httpx.post(f"{service.url}/classify", files={"image": png()}).raise_for_status().json()
    return {key: value for key, value in found.items() if key != "request_id"}


def test_a_lost_state_directory_is_restored_with_its_champions(tmp_path: Path) -> None:
    backup = f"BACKUP={tmp_path / 'backups' / 'monday'}"
    with state_in(tmp_path / "state") as state:
        assert_refused(make("backup", backup), "nothing to back up", str(state / "mlflow.db"), "STATE_DIR")
        first = train_champion(state)
        client = tracking.connect()
        source = client.get_model_version(DEFAULT_NAME, first.version).source
        second = str(client.create_model_version(DEFAULT_NAME, source, first.run_id).version)
        registry.crown(DEFAULT_NAME, [first.version, second])
        before = answer(tmp_path)

        prefect = state / "prefect" / "prefect.db"
        prefect.parent.mkdir()
        with closing(sqlite3.connect(prefect)) as written, closing(sqlite3.connect(state / "mlflow.db")) as writing:
            # As Prefect's server has it: the row is in the log beside the file and not yet in the file.
            written.executescript("PRAGMA journal_mode=WAL; CREATE TABLE runs (id); INSERT INTO runs VALUES (1);")
            writing.execute("INSERT INTO registered_models (name) VALUES ('by halves')")
            assert_done(make("backup", backup))
        assert_refused(make("backup", backup), "is there already", "BACKUP=")
        assert_refused(make("restore", backup), f"{state / 'mlflow.db'} is there already")
        shutil.rmtree(state)

        assert_refused(make("restore", backup, f"STATE_DIR={tmp_path / 'other'}"), f"STATE_DIR={state}")
        log = prefect.with_name("prefect.db-wal")
        log.parent.mkdir(parents=True)
        log.write_bytes(b"of the database that was lost")
        assert_refused(make("restore", backup), f"{log} is there already")
        log.unlink()
        assert_done(make("restore", backup))
        with closing(sqlite3.connect(prefect)) as restored:
            assert restored.execute("SELECT id FROM runs").fetchall() == [(1,)]
        assert answer(tmp_path) == before
        program = f"from training.release import registry; print(registry.rollback({DEFAULT_NAME!r}))"
        rolled_back = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
        assert rolled_back.stdout.split() == [first.version], rolled_back.stderr


# What the script asks of compose, by the programs of these tests' own Postgres and a folder for the bucket.
COMPOSE = """#!/bin/bash
[[ $3 == exec ]] || exit 0
shift 5
exec "${@/\\/data\\/mlflow/$BUCKET}"
"""


def test_a_lost_stack_is_restored_from_dumps_and_the_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = tmp_path / "bucket"
    (bucket / "1").mkdir(parents=True)
    (bucket / "1" / "model.onnx").write_bytes(b"onnx")
    compose = tmp_path / "compose"
    compose.write_text(COMPOSE)
    compose.chmod(0o755)
    words = ("OF=stack", f"COMPOSE={compose}", "ENGINE=true", f"BACKUP={tmp_path / 'backup'}")
    monkeypatch.setenv("BUCKET", str(bucket))

    def point_at(postgres: Postgres) -> None:
        monkeypatch.setenv("PATH", f"{postgres.programs}:{os.environ['PATH']}")
        monkeypatch.setenv("PGHOST", "127.0.0.1")
        monkeypatch.setenv("PGPORT", str(postgres.port))

    with Postgres() as postgres:
        point_at(postgres)
        client = MlflowClient(postgres.url("psycopg2", "mlflow"))
        client.create_registered_model(DEFAULT_NAME, {registry.CHAMPIONS: "1 2"})
        versions = [client.create_model_version(DEFAULT_NAME, f"mlflow-artifacts:/{number}") for number in (1, 2)]
        client.set_registered_model_alias(DEFAULT_NAME, CHAMPION, versions[1].version)
        with sqlalchemy.create_engine(postgres.url("psycopg2", "prefect")).begin() as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE deployment AS SELECT 'weekly' AS name"))
        assert_done(make("backup", *words))
        assert_refused(make("restore", *words), "not empty", "removing the volumes")
    shutil.rmtree(bucket)
    bucket.mkdir()

    with Postgres() as postgres:
        point_at(postgres)
        assert_done(make("restore", *words))
        model = MlflowClient(postgres.url("psycopg2", "mlflow")).get_registered_model(DEFAULT_NAME)
        assert model.aliases == {CHAMPION: versions[1].version}
        assert model.tags == {registry.CHAMPIONS: "1 2"}
        with sqlalchemy.create_engine(postgres.url("psycopg2", "prefect")).connect() as connection:
            assert connection.execute(sqlalchemy.text("SELECT name FROM deployment")).scalar_one() == "weekly"
    assert (bucket / "1" / "model.onnx").read_bytes() == b"onnx"

"""Several commands at once in a state directory that nobody has used before."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from mlflow.store.db import utils
from mlflow.store.tracking.dbmodels.initial_models import Base as FirstTables

from tests.helpers.state import ROOT, TINY

pytestmark = pytest.mark.slow

TRAIN = ["training.train", *TINY, "trainer.epochs=1"]
EDA = ["training.eda", "data=digits", "data.train_limit=320", "data.test_limit=200"]


def test_five_commands_at_once_share_a_new_state_directory(tmp_path: Path) -> None:
    state = tmp_path / "state"
    environment = {**os.environ, "STATE_DIR": str(state), "MLFLOW_TRACKING_URI": ""}
    commands = [*([*TRAIN, f"seed={seed}"] for seed in range(3)), *([*EDA, f"seed={seed}"] for seed in range(2))]
    started = []
    for number, words in enumerate(commands):
        with open(tmp_path / f"{number}.log", "wb") as log:
            command = [sys.executable, "-m", *words]
            started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
    for number, process in enumerate(started):
        assert process.wait() == 0, (tmp_path / f"{number}.log").read_text()[-3000:]

    file = state / "mlflow.db"
    client = mlflow.MlflowClient(f"sqlite:///{file}")
    experiments = {experiment.name: experiment.experiment_id for experiment in client.search_experiments()}
    runs = {name: [run.info.status for run in client.search_runs([id])] for name, id in experiments.items()}
    assert runs == {"Default": [], "cifar10": ["FINISHED"] * 3, "eda": ["FINISHED"] * 2}
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert not database.execute("SELECT name FROM sqlite_master WHERE name LIKE '_alembic_tmp%'").fetchall()


def test_commands_at_once_bring_the_database_of_an_older_mlflow_to_this_one_s_tables(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    engine = utils.create_sqlalchemy_engine(f"sqlite:///{file}")
    FirstTables.metadata.create_all(engine)
    config = utils._get_alembic_config(f"sqlite:///{file}")
    latest = utils._get_latest_schema_revision()
    older = ScriptDirectory.from_config(config).get_revision(latest).down_revision
    command.upgrade(config, older)
    engine.dispose()

    program = f"from serving.model.registry import connect; print(connect('sqlite:///{file}').search_runs())"
    started = [
        subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(4)
    ]
    for process in started:
        said, _ = process.communicate()
        assert process.returncode == 0, said.decode()[-3000:]

    def revision(path: str) -> str:
        with closing(sqlite3.connect(path)) as database:
            (found,) = database.execute("SELECT version_num FROM alembic_version").fetchall()
        return str(found[0])

    assert revision(str(file)) == latest
    assert revision(f"{file}.{older}") == older, "a copy stays"

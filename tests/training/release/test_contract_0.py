"""A champion that an earlier release exported is compared with, and gone back to."""

from pathlib import Path

import mlflow
import onnx
import pytest

from serving.model.registry import CHAMPION, DEFAULT_NAME, champion_uri
from serving.model.store import ModelStore
from tests.helpers.state import CONTRACT_0, TINY, state_in
from training import tracking
from training.config import compose
from training.release import registry
from training.release.candidate import export_run
from training.release.promotion import promote_if_better
from training.train import train


@pytest.mark.slow
def test_a_new_version_is_compared_with_it_and_rollback_goes_back_to_it(tmp_path: Path) -> None:
    with state_in(tmp_path):
        client = tracking.connect()
        with mlflow.start_run(experiment_id=tracking.experiment_id("earlier release")) as run:
            logged = mlflow.onnx.log_model(onnx.load(CONTRACT_0), name="onnx", save_as_external_data=False)
        client.create_registered_model(DEFAULT_NAME)
        version = client.create_model_version(DEFAULT_NAME, logged.model_uri, run.info.run_id)
        earlier = str(version.version)
        client.set_registered_model_alias(DEFAULT_NAME, CHAMPION, earlier)

        run_id = train(compose([*TINY, "trainer.epochs=1", "model.weights=none"]))
        new = registry.register(run_id, export_run(run_id), DEFAULT_NAME)
        decision = promote_if_better(new, DEFAULT_NAME)
        assert not decision.promote
        assert "does not beat the 9" in decision.reason
        assert f"the champion, version {earlier}" in decision.reason

        client.set_model_version_tag(DEFAULT_NAME, new, registry.PREVIOUS, earlier)
        client.set_registered_model_alias(DEFAULT_NAME, CHAMPION, new)
        store = ModelStore(champion_uri(), tmp_path, ("CPUExecutionProvider",))
        assert store.load().metadata.contract == 1
        assert registry.rollback(DEFAULT_NAME) == earlier
        champion = store.load()
        assert (champion.version, champion.metadata.contract) == (earlier, 0)

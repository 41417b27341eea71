"""The flow: a registered model's answers in a file, and their summary on the flow run's page."""

import json
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from pyarrow import parquet

from flows.batch_predict import batch_predict
from serving.model.errors import UserError
from serving.model.predictor import Predictor
from tests.helpers.commands import assert_user_error, run_module
from tests.helpers.state import Trained
from tests.helpers.waiting import wait_until


@pytest.mark.slow
def test_it_scores_with_the_champion_and_the_service_s_settings(
    prefect_api: None,
    trained: Trained,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (image_folder / "broken.png").write_bytes(b"no picture")
    target = tmp_path / "out.parquet"
    monkeypatch.setenv("SERVING_MAX_BATCH", "3")
    monkeypatch.setenv("SERVING_PROVIDERS", "CUDAExecutionProvider,CPUExecutionProvider")
    runs: list[int] = []
    classify = Predictor.classify
    monkeypatch.setattr(
        Predictor,
        "classify",
        lambda self, contents, *words, **more: runs.append(len(contents)) or classify(self, contents, *words, **more),
    )
    summary = batch_predict(str(image_folder), str(target))
    assert max(runs) == 3
    assert "CUDAExecutionProvider: the installed ONNX Runtime lacks it" in caplog.text
    rows = parquet.read_table(target).to_pylist()
    assert len(rows) == 25
    assert {row["model_version"] for row in rows} == {trained.version}
    assert {row["class"]: row["pictures"] for row in summary}["(no answer)"] == 1
    with get_client(sync_client=True) as api:
        (artifact,) = (artifact for artifact in api.read_artifacts() if artifact.key == "predictions")
    assert json.loads(str(artifact.data)) == summary

    content = target.read_bytes()
    with pytest.raises(UserError, match="is the source"):
        batch_predict(str(target), str(target))
    assert target.read_bytes() == content


@pytest.mark.slow
def test_a_source_without_pictures_is_a_mistake_unless_it_may_be_empty(prefect_api: None, tmp_path: Path) -> None:
    """As `nightly` asks for it, until somebody has put pictures there; no model is needed for that."""
    empty, target = tmp_path / "empty", tmp_path / "out.parquet"
    (empty / "folder").mkdir(parents=True)
    (empty / ".DS_Store").touch()
    for source in (empty, tmp_path / "missing"):
        state = batch_predict(str(source), str(target), may_be_empty=True, return_state=True)
        assert state.is_completed()
        assert not target.exists()
        with get_client(sync_client=True) as api:
            said = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[state.state_details.flow_run_id]))
            wait_until(lambda said=said: any("no pictures in" in log.message for log in api.read_logs(said)))
    result = run_module("flows.batch_predict", f"source={empty}", f"target={target}")
    assert_user_error(result, f"source={empty}", "no file")


@pytest.mark.slow
def test_a_wrong_setting_of_the_environment_ends_the_command_with_code_2(image_folder: Path, tmp_path: Path) -> None:
    words = f"source={image_folder}", f"target={tmp_path / 'out.parquet'}"
    result = run_module("flows.batch_predict", *words, SERVING_MAX_PIXELS="none")
    assert_user_error(result, "SERVING_MAX_PIXELS=none")

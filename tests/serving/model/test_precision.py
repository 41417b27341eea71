"""A model in another precision: the same answers online, offline and in evaluation, and only where it is allowed."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from pyarrow import parquet

from serving.batch.prediction import BatchPrediction
from serving.batch.sources import open_pictures
from serving.model.contract import Measured, Metadata
from serving.model.errors import ModelError, PictureError, UserError
from serving.model.precision import chosen
from serving.model.predictor import Predictor, file_for
from serving.model.runtime import CPU, open_file, runtimes
from tests.helpers.commands import assert_raises_in_words, assert_user_error, run_module
from tests.helpers.damage import damaged, whole_files
from tests.helpers.pictures import png
from tests.helpers.service import InProcess, edit_onnx, metric
from tests.helpers.state import ROOT, TINY, Trained
from tests.helpers.waiting import free_port
from training import tracking
from training.config import compose
from training.release.candidate import export_run
from training.release.registry import register
from training.train import train

NAME = "precise"
QUICK = [
    pytest.param(name, marks=pytest.mark.skipif(not runtimes(name), reason=f"this CPU has no {name}"))
    for name in ("bf16", "int8")
]


@pytest.fixture(scope="module")
def version(trained: Trained) -> Path:
    """The file of float32 of a version that allows every precision."""
    from serving.model.registry import onnx_file, version_uri

    losses = ["export.half_loss=1", "export.int8_loss=1"]
    run_id = train(compose([*TINY, "trainer.epochs=1", "export.quantize=int8", *losses]))
    version = register(run_id, export_run(run_id), NAME)
    return onnx_file(version_uri(NAME, version), tracking.state_dir())


def edited(version: Path, folder: Path, edit: Callable[[Metadata], Metadata]) -> Path:
    """The version, with other metadata in its file of float32, and the others beside it."""

    def change(model: onnx.ModelProto) -> None:
        about = Metadata.from_properties({each.key: each.value for each in model.metadata_props})
        onnx.helper.set_model_props(model, edit(about).properties())

    for other in version.parent.glob("model-*.onnx"):
        (folder / other.name).write_bytes(other.read_bytes())
    return edit_onnx(version, folder / version.name, change)


def test_the_report_of_a_run_says_what_they_cost(version: Path) -> None:
    about = Predictor(version).metadata
    report = tracking.artifact(about.mlflow_run_id, "report.html").read_text()
    assert about.measured
    for said in about.measured:
        assert f"<td>{said.precision}</td><td>{said.runtime}</td>" in report
        assert f"{100 * said.changed:.2f} %" in report


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", *QUICK, "auto"])
def test_the_same_answers_online_offline_and_in_evaluation(
    in_process: InProcess, version: Path, image_folder: Path, tmp_path: Path, precision: str
) -> None:
    predictor = Predictor(version, precision=precision)  # type: ignore[arg-type]
    assert precision in ("auto", predictor.precision)
    with BatchPrediction(open_pictures(image_folder, "source"), predictor, tmp_path / "out.parquet", 10_000) as offline:
        for _ in offline.run():
            pass
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.schema.metadata[b"answered_in"].decode() == f"{predictor.precision} in {predictor.runtime}"
    exact = Predictor(version)
    changed = 0.0
    with in_process(model=str(version), precision=precision) as client:
        about = client.get("/model").json()
        assert (about["precision"], about["runtime"]) == (predictor.precision, predictor.runtime)
        accuracies = {(said["precision"], said["runtime"]): said["accuracy"] for said in about["measured"]}
        if predictor.precision != "fp32":
            assert about["metrics"] == {"test_accuracy": accuracies[predictor.precision, predictor.runtime]}
        assert metric(client, "classifier_model_info", precision=predictor.precision) == 1
        for row in table.to_pylist():
            content = (image_folder / row["name"]).read_bytes()
            answer = client.post("/classify", files={"image": content}).raise_for_status().json()
            assert answer["model"]["precision"] == predictor.precision
            (evaluated,) = predictor.classify([content], 10_000, all_cores=True)
            (expected,) = exact.classify([content], 10_000, all_cores=True)
            for index, label in enumerate(predictor.classes):
                assert answer["probabilities"][label] == pytest.approx(row[f"probability_{label}"], abs=1e-4)
                assert answer["probabilities"][label] == pytest.approx(evaluated[index], abs=1e-4)
            changed = max(changed, float(np.abs(evaluated - expected).max()))
    assert (changed > 1e-4) is (predictor.precision != "fp32"), "another precision answers otherwise"


@pytest.mark.parametrize("precision", QUICK)
def test_evaluation_follows_the_setting(
    version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setenv("SERVING_PRECISION", precision)
    report = tmp_path / "report.html"
    data = ["data=digits", "data.train_limit=320", "data.test_limit=200"]
    words = [f"model_uri={version}", f"report={report}", *data]
    assert run_module("training.evaluate", *words).returncode == 0
    assert f"in {precision}, trained on digits" in report.read_text()


@pytest.mark.parametrize("precision", QUICK)
def test_what_was_not_measured_or_loses_too_much_is_refused(version: Path, tmp_path: Path, precision: str) -> None:
    """In words with an explicit setting; auto takes the next best."""

    def refused(about: Metadata) -> Metadata:
        return about.model_copy(
            update={"measured": [said.model_copy(update={"allowed": False}) for said in about.measured]}
        )

    (tmp_path / "unmeasured").mkdir()
    for file, words in (
        (edited(version, tmp_path, refused), "its accuracy is"),
        (
            edited(version, tmp_path / "unmeasured", lambda about: about.model_copy(update={"measured": []})),
            "was not measured",
        ),
    ):

        def load(file: Path = file) -> Predictor:
            return Predictor(file, precision=precision)  # type: ignore[arg-type]

        assert_raises_in_words(ModelError, load, f"SERVING_PRECISION={precision}", words)
        assert Predictor(file, precision="auto").precision == "fp32"


def preferring(precision: str) -> Callable[[Metadata], Metadata]:
    """Speeds as they would be, whatever else this machine did when they were measured."""

    def edit(about: Metadata) -> Metadata:
        measured = [
            said.model_copy(update={"speed": 3.0 if said.precision == precision else 2.0}) for said in about.measured
        ]
        return about.model_copy(update={"measured": measured})

    return edit


def test_auto_takes_the_quickest_that_is_here(version: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for precision in ("int8", "bf16"):
        if runtimes(precision):  # type: ignore[arg-type]
            (tmp_path / precision).mkdir()
            file = edited(version, tmp_path / precision, preferring(precision))
            assert Predictor(file, precision="auto").precision == precision
    file_for(tmp_path / "int8" / version.name, "int8").unlink()
    assert Predictor(tmp_path / "int8" / version.name, precision="auto").precision != "int8"


def test_an_int8_file_alone_runs_as_what_it_is(in_process: InProcess, version: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(file_for(version, "int8").read_bytes())
    assert Predictor(alone).precision == Predictor(alone, precision="auto").precision == "int8"
    with in_process(model=str(alone)) as client:
        answer = client.post("/classify", files={"image": png()}).raise_for_status().json()
        assert answer["model"]["precision"] == "int8"
    assert_raises_in_words(
        ModelError, lambda: Predictor(alone, precision="bf16"), "int8 itself", "SERVING_PRECISION=bf16"
    )


def test_int8_runs_where_openvino_is_not(version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.model.runtime.has_openvino", lambda: False)
    assert Predictor(version, precision="int8").runtime == "onnxruntime"
    assert_raises_in_words(UserError, lambda: Predictor(version, precision="bf16"), "openvino", "not installed")
    assert Predictor(version, precision="auto").precision in ("fp32", "int8")


@pytest.mark.skipif(not runtimes("bf16"), reason="this CPU has no bf16")
def test_what_auto_can_not_have_is_said(
    in_process: InProcess,
    version: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = str(edited(version, tmp_path, preferring("bf16")))
    with in_process(model=model, precision="auto") as client:
        assert client.get("/model").json()["lacks"] == []
        assert metric(client, "classifier_model_lacks") == 0
    monkeypatch.setattr("serving.model.runtime.has_openvino", lambda: False)
    with in_process(model=model, precision="auto") as client:
        lacks = client.get("/model").json()["lacks"]
        assert "bf16 in openvino: the package openvino is not installed" in lacks
        assert lacks[0] in caplog.text
        assert metric(client, "classifier_model_lacks") == len(lacks)


def test_a_provider_that_was_asked_for_and_can_not_be_had_is_said(
    in_process: InProcess, version: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A build for CPUs is not asked for CUDA by itself; tests/containers asks one for GPUs."""
    with in_process(model=str(version)) as client:
        assert client.get("/model").json()["lacks"] == []
    monkeypatch.setenv("SERVING_PROVIDERS", f"CUDAExecutionProvider,{CPU}")
    with in_process(model=str(version)) as client:
        model = client.get("/model").json()
        assert model["lacks"] == ["CUDAExecutionProvider: the installed ONNX Runtime lacks it"]
        assert model["providers"] == [CPU]
        assert model["lacks"][0] in caplog.text
        assert metric(client, "classifier_model_lacks") == 1


@pytest.mark.slow
@pytest.mark.parametrize("precision", QUICK)
def test_damaged_files_are_answered_or_have_a_reason(version: Path, precision: str) -> None:
    """A twentieth of the ten thousand that float32 gets; a whole picture beside each is answered as ever."""
    predictor = Predictor(version, precision=precision)  # type: ignore[arg-type]
    (expected,) = predictor.classify([png()], 1_000_000, all_cores=True)

    @settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(damaged(whole_files()))
    def check(content: bytes) -> None:
        answer, whole = predictor.classify([content, png()], 1_000_000, all_cores=True)
        assert isinstance(answer, PictureError) or float(np.sum(answer)) == pytest.approx(1, abs=1e-3)
        np.testing.assert_allclose(whole, expected, atol=1e-2)

    check()


@pytest.mark.skipif(not runtimes("bf16"), reason="this CPU has no bf16")
def test_the_memory_of_a_large_picture_comes_back(version: Path) -> None:
    """One that is not decoded to a fraction of its size."""
    runtime = open_file(version, "bf16", "openvino")
    memory = psutil.Process().memory_info
    for all_cores in (False, True):
        runtime.run(np.zeros((1, 40, 40, 3), np.uint8), all_cores=all_cores)
    large = np.zeros((1, 5000, 5000, 3), np.uint8)
    before = memory().rss
    for all_cores in (False, True):
        runtime.run(large, all_cores=all_cores)
    assert memory().rss < before + 100e6


@pytest.mark.skipif(not runtimes("bf16"), reason="this CPU has no bf16")
def test_many_pictures_at_once_are_no_large_picture(version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of ordinary photos runs in parts, in what was compiled at the start."""
    runtime = open_file(version, "bf16", "openvino")
    pictures = np.random.default_rng(0).integers(0, 256, (9, 375, 500, 3), np.uint8)
    alone = [runtime.run(picture[None], all_cores=True)[0] for picture in pictures]
    compiled = []
    monkeypatch.setattr(runtime, "_compiled", lambda streams: compiled.append(streams))
    np.testing.assert_allclose(runtime.run(pictures, all_cores=True), alone, atol=1e-3)
    assert not compiled


def test_a_file_that_is_broken_is_the_versions_fault(version: Path, tmp_path: Path) -> None:
    """So a running service keeps the old one, and a copy that was kept is fetched again."""
    file = edited(version, tmp_path, preferring("int8"))
    file_for(file, "int8").write_bytes(file_for(version, "int8").read_bytes()[:1000])
    assert_raises_in_words(ModelError, lambda: Predictor(file, precision="int8"), "SERVING_PRECISION=int8")


def test_int8_is_for_cpus_that_add_its_products_exactly(version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.model.runtime._adds_8_bit_products_exactly", lambda: False)
    assert runtimes("int8") == []
    assert_raises_in_words(UserError, lambda: Predictor(version, precision="int8"), "VNNI")
    assert_raises_in_words(UserError, lambda: Predictor(file_for(version, "int8")), "VNNI")


def test_files_of_two_versions_are_not_mixed(version: Path, tmp_path: Path) -> None:
    file = edited(version, tmp_path, lambda about: about.model_copy(update={"mlflow_run_id": "another"}))
    assert_raises_in_words(UserError, lambda: Predictor(file, precision="int8"), "not of the same run")


def test_providers_that_contradict_the_precision_are_named(version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["AzureExecutionProvider", CPU])
    providers = ("AzureExecutionProvider", CPU)
    words = "SERVING_PRECISION=int8", "SERVING_PROVIDERS begins with AzureExecutionProvider", CPU
    assert_raises_in_words(UserError, lambda: Predictor(version, "1", providers, "int8"), *words)


def test_no_runtime_tells_anybody_that_it_is_used(version: Path, tmp_path: Path) -> None:
    """Both would report their import, and keep an id in the home directory."""
    for program in (
        f"from pathlib import Path; from serving.model.predictor import Predictor as P; P(Path({str(version)!r}), "
        "precision='int8')",
        "import training.release.candidate",
    ):
        environment = {**os.environ, "HOME": str(tmp_path)}
        del environment["ORT_DISABLE_TELEMETRY"]  # which the tests' own process has by now
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True)
        assert not [path for path in tmp_path.rglob("*") if path.name in ("deviceid", "onnxruntime.db")]
        assert not list(tmp_path.rglob("*ga_cid*"))


@pytest.mark.parametrize(("precision", "words"), [("fp8", "bf16"), ("fp16", "was not measured")])
def test_a_service_does_not_start_with_what_is_not_known(version: Path, precision: str, words: str) -> None:
    settings = {"SERVING_MODEL": str(version), "SERVING_PORT": str(free_port()), "SERVING_PRECISION": precision}
    assert_user_error(run_module("serving", **settings), f"SERVING_PRECISION={precision}", words)


def test_fp16_is_for_gpus(version: Path, tmp_path: Path) -> None:
    """A CPU refuses it, and `auto` does not miss it there."""
    said = Measured(
        **{"precision": "fp16", "runtime": "onnxruntime", "accuracy": 0.5, "changed": 0, "largest_change": 0},
        **{"speed": 9, "allowed": True},
    )
    file = edited(version, tmp_path, lambda about: about.model_copy(update={"measured": [said]}))
    words = "SERVING_PRECISION=fp16", "for GPUs", "begins with CPUExecutionProvider", "CUDAExecutionProvider"
    assert_raises_in_words(UserError, lambda: Predictor(file, precision="fp16"), *words)
    assert Predictor(file, precision="auto").lacks == []


def test_a_wrong_precision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_PRECISION", "fp8")
    assert_raises_in_words(UserError, chosen, "SERVING_PRECISION=fp8", "bf16")


@pytest.mark.parametrize("precision", QUICK)
def test_threads_have_answers_of_their_own(version: Path, precision: str) -> None:
    """Concurrent runs share nothing that the next one overwrites."""
    runtime = open_file(file_for(version, precision), precision, runtimes(precision)[0])  # type: ignore[arg-type]
    pictures = [np.random.default_rng(seed).integers(0, 256, (2, 40, 40, 3), np.uint8) for seed in range(20)]
    pictures.append(np.random.default_rng(20).integers(0, 256, (1, 1200, 1200, 3), np.uint8))
    alone = [runtime.run(each, all_cores=False) for each in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda each: runtime.run(each, all_cores=False), pictures * 5))
    for one, other in zip(alone * 5, together, strict=True):
        np.testing.assert_array_equal(one, other)

"""python -m serving: why it can't start."""

import subprocess
from collections.abc import Callable

import pytest

from serving.model.errors import UserError
from serving.model.store import ModelStore
from serving.settings import load_settings
from tests.helpers.commands import assert_raises_in_words, assert_user_error, run_module
from tests.helpers.state import Trained
from tests.helpers.waiting import free_port


def test_a_port_in_use_ends_with_code_2(service: str) -> None:
    port = service.rpartition(":")[2]
    assert_user_error(run_module("serving", SERVING_PORT=port), f"127.0.0.1:{port}", "PORT=")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"SERVING_THREADS": "many"}, ["SERVING_THREADS=many", "1 or more"]),
        ({"SERVING_HOST": "no.such.name.invalid"}, ["no.such.name.invalid", "can't be listened on"]),
        ({"SERVING_HOST": "a..b"}, ["a..b", "can't be listened on"]),
        (
            {"SERVING_PROVIDERS": "CUDAExecutionProvider"},
            ["SERVING_PROVIDERS=CUDAExecutionProvider", "has only", "Add CPUExecutionProvider"],
        ),
    ],
)
def test_what_can_not_be_started_with_is_named(trained: Trained, settings: dict[str, str], words: list[str]) -> None:
    result = run_module("serving", SERVING_PORT=str(free_port()), SERVING_MODEL=str(trained.onnx), **settings)
    assert_user_error(result, *words)


def test_a_model_that_is_not_there_ends_with_code_2(trained: Trained) -> None:
    result = run_module("serving", SERVING_PORT=str(free_port()), SERVING_MODEL="models:/nobody/1")
    assert_user_error(result, "models:/nobody/1", "not in the registry")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("models:/image-classifier/99", ["models:/image-classifier/99", "not in the registry"]),
        ("models:/image-classifier", ["models:/image-classifier names no version", "models:/NAME/VERSION"]),
        ("models:/m-0123abcd", ["models:/m-0123abcd names no version"]),
        ("no/such.onnx", ["no/such.onnx", "no such file"]),
        (__file__, [__file__, "not one of our ONNX models"]),
    ],
)
def test_a_model_that_can_not_be_had_is_named(trained: Trained, model: str, words: list[str]) -> None:
    settings = load_settings(model=model)
    store = ModelStore(settings.model, settings.state_dir, settings.providers, settings.precision)
    assert_raises_in_words(UserError, store.load, *words)


def test_a_registry_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////no/such/mlflow.db")
    settings = load_settings()
    store = ModelStore(settings.model, settings.state_dir / "elsewhere", settings.providers)
    assert_raises_in_words(UserError, store.load, "/no/such/mlflow.db", "make demo")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SERVING_MAX_PIXELS", "many", ["SERVING_MAX_PIXELS=many", "integer"]),
        ("SERVING_POLL_SECONDS", "0", ["SERVING_POLL_SECONDS=0", "greater than 0"]),
        ("SERVING_PORT", "http", ["SERVING_PORT=http", "integer"]),
        ("SERVING_MAX_PICTURES", "200", ["SERVING_MAX_PICTURES=200", "SERVING_MAX_QUEUE=128"]),
        ("SERVING_MAX_HELD_BYTES", "1000", ["SERVING_MAX_HELD_BYTES=1000", "SERVING_MAX_BODY_BYTES=32000000"]),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert_raises_in_words(UserError, load_settings, *words)


def test_make_checks_a_port_before_it_starts_a_server(service: str) -> None:
    port = service.rpartition(":")[2]
    check: Callable[..., subprocess.CompletedProcess[str]] = run_module
    result = check("serving.port", "host=127.0.0.1", f"port={port}", "setting=MLFLOW_PORT")
    assert_user_error(result, f"127.0.0.1:{port}", "MLFLOW_PORT=")

"""What a flow's command makes of key=value."""

import sys
from typing import Any

import pytest

from flows.arguments import arguments, run_command
from flows.batch_predict import batch_predict
from flows.failures import in_words_of_the_flow
from flows.retrain import retrain
from flows.rollback import rollback
from flows.search import search
from infra.demo import demo
from serving.model.errors import UserError
from tests.helpers.commands import assert_raises_in_words, assert_user_error, run_module

ODD = ["x(1).zip", "a,b.zip", "a=b", "Ann's pictures, all", "[{#&!;", "Müll", "${HOME}", "12", "[a]"]


@pytest.mark.parametrize("text", ODD)
def test_a_path_or_a_text_is_taken_as_it_stands(text: str) -> None:
    given = arguments(batch_predict, [f"source={text}", f"target={text}.parquet", f"model={text}"])
    assert given == {"source": text, "target": f"{text}.parquet", "model": text}
    assert arguments(retrain, [f"data={text}"]) == {"data": text}
    assert arguments(demo, [f"data={text}"]) == {"data": text}


def test_a_list_is_parsed() -> None:
    given = arguments(retrain, ["models=[resnet18,densenet121]", "overrides=['trainer.epochs=2',\"data.root='a b'\"]"])
    assert given == {"models": ["resnet18", "densenet121"], "overrides": ["trainer.epochs=2", "data.root='a b'"]}


@pytest.mark.parametrize(
    ("flow", "words", "expected"),
    [
        (retrain, ["modles=[resnet18]"], ["modles=[resnet18]", "models, experiment, data, overrides"]),
        (retrain, ["resnet18"], ["resnet18: give KEY=VALUE"]),
        (retrain, ["data=https://ann:pw@host/x.zip"], ["data=https://host/x.zip", "password"]),
        (retrain, ["models=resnet18"], ["models=resnet18", "list"]),
        (retrain, ["models=[]"], ["models=[]", "at least 1"]),
        (retrain, ["models=[resnet18"], ["models=[resnet18"]),
        (retrain, ["models=a,b"], ["models=a,b"]),
        (batch_predict, [], ["source, target", "source=VALUE"]),
        (batch_predict, ["source=a"], ["target=VALUE"]),
        (batch_predict, ["source=a", "target=b", "modell=c"], ["modell=c", "source, target, model"]),
        (rollback, ["held=true"], ["held=true", "KEY is one of name, hold"]),
        (batch_predict, ["source=", "target=b"], ["source=", "no value"]),
    ],
)
def test_a_mistake_is_named(flow: Any, words: list[str], expected: list[str]) -> None:
    assert_raises_in_words(UserError, lambda: arguments(flow, words), *expected)


@pytest.mark.parametrize(
    ("function", "example"),
    [(batch_predict, "python -m flows.batch_predict source=a"), (rollback, "python -m flows.rollback"), (demo, "x")],
)
def test_help_shows_the_keys_and_an_example(
    function: Any, example: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["command", "--help"])
    with pytest.raises(SystemExit) as stop:
        run_command(function, example)
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert f"\n  {example}\n" in shown
    names = getattr(function, "fn", function).__annotations__.keys() - {"return"}
    assert all(f"\n  {name}=" in shown for name in names)


@pytest.mark.slow
def test_help_of_the_command() -> None:
    result = run_module("flows.retrain", "--help")
    assert result.returncode == 0, result.stderr
    assert "python -m flows.retrain models=[" in result.stdout
    assert "data=cifar10" in result.stdout


def test_a_mistake_ends_the_command_with_code_2() -> None:
    assert_user_error(run_module("flows.batch_predict"), "source=VALUE")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("data.root=/a b: no pictures", "data=/a b: no pictures"),
        ("Give data=folder data.root=PATH or data=digits.", "Give data=PATH or data=digits."),
        ("model=resnet19: there is none", 'models=["resnet19"]: there is none'),
        ("trainer.epochs=0: should be more", 'overrides=["trainer.epochs=0"]: should be more'),
        ("leave them out with data.broken=skip.", 'leave them out with overrides=["data.broken=skip"].'),
        ("/model=3/trainer.lr=1 is no file", "/model=3/trainer.lr=1 is no file"),
        ("space=x: trainer.lr: trainer.lr=0.0: should be", "space=x: trainer.lr: trainer.lr=0.0: should be"),
    ],
)
def test_a_mistake_is_told_in_words_of_the_flow(message: str, expected: str) -> None:
    @in_words_of_the_flow()
    @in_words_of_the_flow()
    def fails() -> None:
        raise UserError(message)

    with pytest.raises(UserError) as failure:
        fails()
    assert str(failure.value) == expected


def test_a_search_has_one_model() -> None:
    pytest.importorskip("optuna", reason="make scale")
    with pytest.raises(UserError, match="model=resnet19: there is no such model"):
        search.fn(model="resnet19", data="digits")

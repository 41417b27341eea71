"""A search's space is checked before any work, a trial that falls behind is pruned, and what it draws is drawn once."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from serving.model.errors import UserError
from tests.helpers.commands import assert_raises_in_words
from tests.helpers.state import ROOT, TINY
from training import tracking
from training.config import CONFIG_DIR, compose
from training.search.outcome import experiment_yaml
from training.search.space import Range, Space, check_space, own_values, read_space, try_space, words

SPACE: Space = {"trainer.lr": Range(low=1e-4, high=1e-2, log=True), "trainer.frozen_stages": [0, 2, 3]}


def written(directory: Path, text: str) -> str:
    path = directory / "space.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", [path.stem for path in Path(CONFIG_DIR, "search").glob("*.yaml")])
def test_every_space_is_around_the_quick_experiment(name: str) -> None:
    space, quick = read_space(name), ["experiment=quick"]
    check_space(name, space, quick)
    assert own_values(space, compose(quick)).keys() == space.keys()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trainer.learning_rate: [0.1]", ["trainer.learning_rate"]),
        ("trainer.processes: [1, 2]", ["trainer.processes=2", "one process"]),
        ("trainer.lr: {low: 0.0, high: 0.1}", ["trainer.lr=0.0", "greater than 0"]),
        ("trainer.optimizer: [adamw, adamm]", ["trainer.optimizer=adamm", "timm's optimizers"]),
        ("trainer.lr: {low: 0.1, high: 0.01}", ["trainer.lr", "low=0.1 should be less than high=0.01"]),
        ("trainer.lr: {low: 0.1, hihg: 1}", ["trainer.lr"]),
        ("trainer.lr: 0.1", ["trainer.lr", "a list of values, or a range"]),
        ("seed: [1, 2, 3]", ["seed is not searched", "trainer"]),
        ("data.validation_fraction: [0.1, 0.2]", ["data.validation_fraction is not searched"]),
        ("trainer.lr: [", ["can't be read"]),
        ("", ["has no parameters"]),
    ],
)
def test_a_space_that_is_none_is_refused_in_words(text: str, said: list[str], tmp_path: Path) -> None:
    name = written(tmp_path, text)

    def read() -> None:
        check_space(name, read_space(name), ["experiment=quick"])

    assert_raises_in_words(UserError, read, f"space={name}", *said)


def test_a_space_that_is_not_there_is_told_with_those_that_are() -> None:
    assert_raises_in_words(UserError, lambda: read_space("defautl"), "space=defautl", "default")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has fp16")
def test_a_value_that_no_number_of_pictures_allows_is_refused_where_they_change_the_experiment(tmp_path: Path) -> None:
    name = written(tmp_path, "trainer.precision: [bf16, fp16]")
    refused = [f"space={name}", "trainer.precision=fp16 needs a GPU"]
    assert_raises_in_words(UserError, lambda: check_space(name, read_space(name), ["experiment=quick"]), *refused)


def test_a_value_that_so_many_pictures_do_not_allow_is_refused_once_they_are_counted(tmp_path: Path) -> None:
    """Of few, `quick` trains the head alone, in which is no batch norm."""
    name = written(tmp_path, "trainer.batch_size: [32, 1]")
    space, quick = read_space(name), ["experiment=quick"]
    check_space(name, space, quick)
    try_space(name, space, quick, pictures=1999)
    refused = [f"space={name}", "trainer.batch_size=1", "batch norm"]
    assert_raises_in_words(UserError, lambda: try_space(name, space, quick, pictures=2000), *refused)


def test_the_weights_of_every_choice_are_fetched_before_the_first_trial(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"none")
    name = written(tmp_path, f"model.weights: [package, {file}]")
    space = read_space(name)
    check_space(name, space, TINY)
    refused = [f"space={name}: model.weights: ", f"{file} is not a checkpoint"]
    assert_raises_in_words(UserError, lambda: try_space(name, space, TINY, pictures=320), *refused)


def test_a_list_and_a_model_are_choices_too(tmp_path: Path) -> None:
    name = written(tmp_path, "model.head.hidden_sizes: [[], [64, 32]]\nmodel: [efficientnet_lite0, resnet18]")
    space = read_space(name)
    check_space(name, space, ["experiment=quick"])
    model = compose(words({"model": "resnet18", "model.head.hidden_sizes": "[64, 32]"})).model
    assert (model.name, model.head.hidden_sizes) == ("resnet18", [64, 32])
    assert own_values({"model": ["resnet18", "vgg11"]}, compose(["model=vgg11"])) == {"model": "vgg11"}
    epochs: Space = {"trainer.warmup_epochs": Range(low=0, high=1)}
    assert own_values(epochs, compose(["trainer.warmup_epochs=0.1"])) == {}, "whole numbers are tried alone"
    chosen = compose(["model=vgg11", *words({"model": "resnet18"})]).model
    assert (chosen.name, chosen.backbone) == ("resnet18", "resnet18"), "of the model that was asked for nothing is left"


@pytest.mark.parametrize(
    ("overrides", "values"),
    [
        pytest.param([], {"trainer.lr": 0.003, "trainer.batch_size": 32}, id="what few pictures would change"),
        pytest.param(["trainer.epochs=3", "model.image_size=64"], {"trainer.lr": 0.003}, id="the command line's"),
        pytest.param(["small_data=[]"], {"model.head.hidden_sizes": "[64, 32]"}, id="a list"),
        pytest.param([], {"model": "resnet18", "transforms": "no_coarse_dropout"}, id="groups"),
        pytest.param([], {"model": "vgg11", "trainer.lr": 0.003}, id="a timm model by its name"),
        pytest.param(["model=resnet18"], {"trainer.lr": 0.003}, id="another model"),
        pytest.param(["+model.backbone_options.drop_rate=0.1"], {"trainer.lr": 0.003}, id="what was not there"),
    ],
)
def test_its_experiment_is_the_trial(
    overrides: list[str], values: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIR", str(tmp_path / "it's here"))
    file = tmp_path / "it's here" / "experiment" / "searched.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(experiment_yaml("quick", [*overrides, "data.train_limit=100"], values, "A sentence"))
    trial, searched = compose(["experiment=quick", *overrides, *words(values)]), compose(["experiment=searched"])
    for group in ("model", "transforms", "trainer", "small_data"):
        assert getattr(searched, group) == getattr(trial, group)
    assert searched.data.train_limit == compose(["experiment=quick"]).data.train_limit
    assert compose(["experiment=searched", "trainer.lr=0.1"]).trainer.lr == 0.1
    with pytest.raises(UserError, match="searched"):
        compose(["experiment=serched"])


@pytest.mark.slow
def test_without_optuna_it_is_said_how_to_get_it() -> None:
    program = "import sys; sys.modules['optuna'] = None; from flows.search import search; search.fn(data='digits')"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert "UserError: a search needs Optuna, which is not installed\nmake scale installs it." in result.stderr


def asked(journal: Path, seed: int = 1) -> tuple[int | None, dict[str, object]]:
    """The next trial of a search that has just been started, or started again."""
    from training.search.study import Study

    study = Study(journal)
    study.begin({}, SPACE)
    number = study.ask(SPACE, trials=20, seed=seed)
    return number, {} if number is None else study.params(number)


def test_a_trial_that_has_ended_is_neither_trained_again_nor_failed(tmp_path: Path) -> None:
    """Its task was tried again after it had told the journal, as where checkpoints could not be removed."""
    pytest.importorskip("optuna", reason="make scale")
    from training.search.study import Study
    from training.search.trial import train_trial

    journal = tmp_path / "ended.journal"
    number, _ = asked(journal)
    assert number == 0
    Study(journal).complete(0, 0.5)
    train_trial(compose([*TINY]), journal, 0, "no run")
    Study(journal).fail(0, "a reason")
    assert Study(journal).trials[0].value == 0.5


def test_a_search_that_is_started_again_draws_nothing_twice(tmp_path: Path) -> None:
    """Each trial by a start of its own, every other one killed at work, beside one start for all."""
    pytest.importorskip("optuna", reason="make scale")
    from training.search.study import Study, mend

    whole = Study(tmp_path / "whole.journal")
    whole.begin({}, SPACE)
    expected = []
    for number in range(8):
        assert whole.ask(SPACE, 20, seed=1) == number
        expected.append(whole.params(number))
        whole.complete(number, number / 10)
    assert len({each["trainer.lr"] for each in expected}) == 8

    journal = tmp_path / "killed.journal"
    for number in range(8):
        found = asked(journal)
        assert found == (number, expected[number])
        if number % 2:
            assert asked(journal) == found, "who was at work is asked again, by its number"
            with open(journal, "a") as file:  # which a full disk cut off
                file.write('{"op_code":6,"wor')
            mend(journal)
        Study(journal).complete(number, number / 10)


def test_a_trial_that_ends_its_process_does_not_stop_the_search(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="make scale")
    from training.search.study import REASON, Study

    journal = tmp_path / "deadly.journal"
    assert [asked(journal)[0] for _ in range(4)] == [0, 0, 0, 1]
    assert "3 times" in Study(journal).trials[0].user_attrs[REASON]
    Study(journal).is_hopeless(1, epoch=1, accuracy=0.5)
    assert [asked(journal)[0] for _ in range(4)] == [1, 1, 1, 1], "one that gets on is not given up"


@pytest.mark.slow
def test_a_trial_that_falls_behind_is_pruned_and_says_so(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="make scale")
    from training.search.study import AT_RANDOM, Study
    from training.search.trial import train_trial

    journal = tmp_path / "pruning.journal"
    study = Study(journal)
    study.begin({}, SPACE)
    for number in range(AT_RANDOM):
        study.ask(SPACE, 20, seed=1)
        for epoch in (1, 2):
            assert not study.is_hopeless(number, epoch, 1.0)
        study.complete(number, 1.0)
    number = study.ask(SPACE, 20, seed=1)
    assert number == AT_RANDOM

    settings = compose([*TINY, f"mlflow_experiment={tmp_path.name}"])
    client, experiment = tracking.connect(), tracking.experiment_id(tmp_path.name)
    parent = client.create_run(experiment).info.run_id
    train_trial(settings, journal, number, parent)

    assert study.trials[number].state.name == "PRUNED"
    (run,) = client.search_runs([experiment], "tags.pruned = 'true'")
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.info.status == "KILLED"
    assert "after epoch 1 of 2" in run.data.tags[tracking.DESCRIPTION]
    assert tracking.history(run.info.run_id, "validation_accuracy").keys() == {1}
    assert not list(settings.state_dir.glob("runs/pruning-*"))

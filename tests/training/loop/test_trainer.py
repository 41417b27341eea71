"""A run that is killed goes on, and ends where one that was not killed ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from serving.model.cpus import _left as given
from serving.model.errors import UserError
from serving.model.pictures.decoding import AS_SHOWN
from tests.helpers.state import ROOT, TINY
from tests.helpers.waiting import wait_until
from training import tracking
from training.config import compose
from training.data.augmentation import AlbumentationsDataset, build_transform
from training.data.pictures import Pictures
from training.data.split import load_data
from training.loop.checkpoint import Checkpoints
from training.loop.features import Features
from training.loop.optimization import class_weights, train_mode
from training.loop.trainer import Trainer
from training.model.classifier import ImageClassifier, build_model
from training.quality.evaluation import predict, torch_logits


def trainer(*overrides: str, checkpoints: Checkpoints | None = None) -> tuple[Trainer, ImageClassifier]:
    settings = compose([*TINY, "trainer.precision=no", *overrides])
    data = load_data(settings.data, settings.seed, settings.model.decoding)
    torch.manual_seed(settings.seed)
    model = build_model(settings.model, len(data.classes))
    transform = build_transform(settings.transforms, data.train.common_size(), settings.model.image_size)
    dataset = AlbumentationsDataset(data.train, transform)
    return Trainer(settings.trainer, model, dataset, data.validation, settings.seed, checkpoints), model


def test_the_loss_falls_and_the_same_seed_gives_the_same_weights() -> None:
    (first, model), (second, model_again) = trainer(), trainer()
    epochs = list(first.fit())
    assert epochs[-1].metrics["train_loss"] < 0.95 * epochs[0].metrics["train_loss"]
    assert len(epochs[0].losses) == 5, "one loss for each of 320 / 64 steps"
    list(second.fit())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, model_again.state_dict()[name]), name


def test_a_frozen_backbone_stays_as_it_was_and_costs_one_pass() -> None:
    training, model = trainer("trainer.freeze_backbone=true")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    passes: list[int] = []
    model.backbone.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    assert not passes, "building does no work"
    epochs = list(training.fit())
    assert sum(passes) == 320 + 100, "every training and validation picture passes once, whatever the epochs"
    assert len(epochs) == 2
    assert all(epoch.metrics["feature_seconds"] > 0 for epoch in epochs)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.0.weight", "head.0.bias"}


@pytest.mark.parametrize("freeze", [False, True])
def test_what_answers_by_mirror_images_is_trained_without_and_validated_with_them(freeze: bool) -> None:
    flips = ["model.flip_average=true", "data.horizontal_flip=0.5", "trainer.epochs=1"]
    training, model = trainer(*flips, f"trainer.freeze_backbone={freeze}")
    passes: list[int] = []
    model.backbone.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    (epoch,) = training.fit()
    assert sum(passes) == 320 + 2 * 100
    assert isinstance(training.validation_set, Features if freeze else Pictures)
    data = load_data(compose(TINY).data, training.seed, AS_SHOWN)
    answers = predict(torch_logits(model), data.validation, "as it is served", 32)
    right = (answers.argmax(1) == data.validation.labels).mean()
    assert epoch.metrics["validation_accuracy"] == pytest.approx(right)


@pytest.mark.parametrize("freeze", [False, True])
def test_every_epoch_trains_in_the_same_precision(freeze: bool, tmp_path: Path) -> None:
    """Also after a checkpoint."""
    training, model = trainer("trainer.precision=bf16", f"trainer.freeze_backbone={freeze}")
    training.checkpoints = Checkpoints(tmp_path)
    inner = []
    model.head[0].register_forward_hook(lambda module, inputs, output: inner.append(output.dtype))
    list(training.fit())
    assert set(inner) == {torch.bfloat16}
    model.eval()
    model(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))
    assert inner[-1] == torch.float32, "what is evaluated and exported answers in float32"


def test_training_on_features_is_training_with_every_stage_frozen() -> None:
    """Without augmentation the two see the same, so they must end with the same head."""
    steps = [f"transforms.steps.{name}.p=0" for name in ("horizontal_flip", "rotate", "coarse_dropout")]
    plain = [*steps, "~transforms.steps.pad"]
    on_features, model = trainer(*plain, "trainer.freeze_backbone=true")
    list(on_features.fit())
    step_by_step, slow_model = trainer(*plain, "trainer.frozen_stages=99")
    epochs = list(step_by_step.fit())
    torch.testing.assert_close(model.head.state_dict(), slow_model.head.state_dict(), atol=1e-4, rtol=1e-3)
    assert len(epochs) == 2


def test_frozen_stages_stay_as_they_were_and_the_rest_learns() -> None:
    training, model = trainer("trainer.frozen_stages=2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    list(training.fit())
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not any(name.startswith(("backbone.conv_stem", "backbone.bn1", "backbone.blocks.0.")) for name in changed)
    assert any(name.startswith("backbone.blocks.1.") for name in changed)
    train_mode(model)
    assert not model.backbone.blocks[0].training
    assert model.backbone.blocks[1].training


def test_accumulated_batches_make_the_step_of_a_large_one() -> None:
    """With the backbone frozen, so that no batch statistics depend on the batch."""
    head = ["trainer.freeze_backbone=true", "trainer.scheduler=constant", "trainer.warmup_epochs=0"]
    large, model = trainer(*head, "trainer.batch_size=64")
    list(large.fit())
    small, model_accumulated = trainer(*head, "trainer.batch_size=32", "trainer.accumulate_batches=2")
    list(small.fit())
    torch.testing.assert_close(model_accumulated.head.state_dict(), model.head.state_dict())


def test_a_run_that_shall_not_resume_starts_over_what_another_has_left(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    cut_off, _ = trainer("trainer.resume=never", checkpoints=checkpoints)
    epochs = cut_off.fit()
    next(epochs), next(epochs)
    assert checkpoints.last_epoch() == 1
    again, _ = trainer("trainer.resume=never", checkpoints=checkpoints)
    assert [epoch.number for epoch in again.fit()] == [1, 2]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one CPU here")
def test_a_resumed_run_computes_in_the_threads_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And so ends with the same weights, though it is given other CPUs meanwhile; it says where it can't."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    all_cpus, threads = os.sched_getaffinity(0), torch.get_num_threads()
    count = len(all_cpus)
    one = {min(all_cpus)}
    small = ["model=timm", "model.backbone=test_resnet", "model.weights=none", "data.train_limit=128"]

    def fitted(cpus: set[int], epochs: int, name: str) -> ImageClassifier:
        os.sched_setaffinity(0, cpus)
        given.cache_clear()
        training, model = trainer(*small, checkpoints=Checkpoints(tmp_path / name))
        epoch = training.fit()
        for _ in range(epochs):
            next(epoch, None)
        return model

    try:
        whole = fitted(one, 3, "whole")
        assert torch.get_num_threads() == 1
        fitted(one, 2, "broken")
        resumed = fitted(all_cpus, 3, "broken")
        assert torch.get_num_threads() == 1
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, resumed.state_dict()[name]), name

        fitted(all_cpus, 2, "fewer")
        assert torch.get_num_threads() == count
        assert "goes on with" not in caplog.text
        fitted(one, 1, "fewer")
        assert torch.get_num_threads() == 1
        assert f"began with {count} and goes on with 1" in caplog.text
        # A user's own word counts more than either.
        monkeypatch.setenv("OMP_NUM_THREADS", str(count))
        torch.set_num_threads(count)
        fitted(one, 1, "broken")
        assert torch.get_num_threads() == count
    finally:
        os.sched_setaffinity(0, all_cpus)
        given.cache_clear()
        torch.set_num_threads(threads)


def test_a_rare_class_counts_as_much_as_a_frequent_one() -> None:
    """Of 30 pictures of one class and 10 of another, each of the latter counts three times as much; 1 on average."""
    assert class_weights(np.repeat([0, 2], [30, 10]), 4).tolist() == pytest.approx([2 / 3, 0, 2, 0]), (
        "some may be absent"
    )
    weights = class_weights(np.repeat([0, 1], [30, 10]), 2)
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 2.0]))
    images, labels = torch.zeros(40, 2), torch.as_tensor(np.repeat([0, 1], [30, 10]))
    images[:, 0] = 5  # the frequent class for every picture
    assert torch.nn.functional.cross_entropy(images, labels, weights) > 1.9 * torch.nn.functional.cross_entropy(
        images, labels
    )
    balanced, _ = trainer("trainer.class_balance=loss")
    assert balanced.loss.weights is not None
    assert next(balanced.fit()).losses != next(trainer()[0].fit()).losses, "the weights reach the loss"
    assert trainer()[0].loss.weights is None


def test_the_last_window_of_an_epoch_counts_in_full_though_it_lacks_batches() -> None:
    """An epoch has five batches: with eight to a step it makes the step that five to a step make."""
    weights = []
    for together in (5, 8):
        training, model = trainer(f"trainer.accumulate_batches={together}", "trainer.optimizer=sgd")
        next(training.fit())
        weights.append(model.head[0].weight.detach().clone())
    torch.testing.assert_close(*weights)


def test_clipped_gradients_take_smaller_steps() -> None:
    def moved(*overrides: str) -> float:
        training, model = trainer(
            "trainer.optimizer=sgd", "trainer.weight_decay=0", "trainer.freeze_backbone=true", *overrides
        )
        before = model.head[0].weight.clone()
        list(training.fit())
        return float((model.head[0].weight - before).norm())

    assert moved("trainer.clip_grad_norm=1e-4") < 0.1 * moved()


@pytest.mark.slow
def test_a_compiled_model_learns_the_same() -> None:
    model = ["model=timm", "model.backbone=test_resnet", "model.weights=none", "trainer.epochs=1"]
    plain, expected = trainer(*model)
    compiled, actual = trainer(*model, "trainer.compile=true")
    (epoch,), (epoch_compiled,) = list(plain.fit()), list(compiled.fit())
    np.testing.assert_allclose(epoch_compiled.metrics["train_loss"], epoch.metrics["train_loss"], rtol=1e-3)
    assert actual.state_dict().keys() == expected.state_dict().keys(), "what is kept is the model, not its compilation"


def test_a_loss_that_explodes_is_explained() -> None:
    training, _ = trainer("trainer.optimizer=sgd", "trainer.lr=1e30", "trainer.warmup_epochs=0")
    with pytest.raises(UserError, match=r"smaller trainer\.lr"):
        list(training.fit())


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    arguments = [*TINY, "trainer.precision=no", "trainer.epochs=4", f"mlflow_experiment={tmp_path.name}"]

    def start(state: Path) -> subprocess.Popen[str]:
        environment = {**os.environ, "STATE_DIR": str(state), "MLFLOW_TRACKING_URI": f"sqlite:///{state}/mlflow.db"}
        command = [sys.executable, "-m", "training.train", *arguments]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)

    def weights(state: Path) -> tuple[dict[str, torch.Tensor], set[int]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{state}/mlflow.db")
            client = tracking.connect()
            runs = client.search_runs([tracking.experiment_id(tmp_path.name)])
            assert [run.info.status for run in runs] == ["FINISHED"], "the killed run was gone on with"
            history = client.get_metric_history(runs[0].info.run_id, "validation_accuracy")
            return load_file(tracking.artifact(runs[0].info.run_id, tracking.WEIGHTS_FILE)), {
                metric.step for metric in history
            }

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(killed)
    wait_until(lambda: bool(list(killed.glob("runs/*/epoch-0002"))) or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    _, output = process.communicate()
    assert process.returncode == -signal.SIGKILL, output

    resumed = start(killed)
    _, output = resumed.communicate()
    assert resumed.returncode == 0, output
    assert start(whole).wait() == 0
    (expected, epochs), (actual, epochs_resumed) = weights(whole), weights(killed)
    assert epochs == epochs_resumed == {1, 2, 3, 4}
    for name, tensor in expected.items():
        assert torch.equal(tensor, actual[name]), name
    assert not list(killed.glob("runs/*")), "checkpoints go when the run is finished"


def test_a_run_ends_with_the_weights_of_its_best_epoch_and_reads_no_more_of_it(tmp_path: Path) -> None:
    run, model = trainer("trainer.epochs=2", checkpoints=Checkpoints(tmp_path))
    epochs = run.fit()
    next(epochs)
    best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run.best_accuracy = 2.0  # no later one is better
    next(epochs)
    (tmp_path / "epoch-0001" / "optimizer.safetensors").unlink()
    assert not list(epochs)
    assert all(torch.equal(tensor, best[name]) for name, tensor in model.state_dict().items())

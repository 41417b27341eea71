"""What makes training better or shorter does what it says, and a run that is cut off ends as one that is not."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from serving.model.cpus import cpus
from serving.model.errors import UserError
from tests.helpers.commands import assert_raises_in_words
from tests.helpers.state import TINY
from training.config import compose
from training.loop.checkpoint import Checkpoints
from training.loop.optimization import Loss
from training.loop.trainable import check_trainable
from training.loop.trainer import Trainer, steps_within
from training.machine.devices import precision, workers
from training.model.classifier import ImageClassifier, build_model
from training.train import build_trainer, read

SMALL = [
    *TINY,
    "trainer.precision=no",
    "model=timm",
    "model.backbone=test_resnet",
    "model.weights=none",
    "model.image_size=32",
    "data.train_limit=160",
    "trainer.batch_size=32",
]
MIX = ["trainer.mixup=0.4", "trainer.cutmix=1.0"]


def trainer(*overrides: str, checkpoints: Checkpoints | None = None) -> Trainer:
    settings, data = read(compose([*SMALL, *overrides]))
    return build_trainer(settings, data, data.train, data.validation, checkpoints)


def assert_equal_weights(first: nn.Module, second: nn.Module) -> None:
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


@pytest.mark.parametrize(
    "overrides",
    [
        MIX,
        ["trainer.ema=0.9"],
        ["trainer.ema=0.9", "trainer.freeze_backbone=true"],
        ["trainer.early_stopping=1", "trainer.lr=0.1"],
        ["trainer.layer_decay=0.7", "trainer.drop_path=0.2", "trainer.image_size=24"],
        ["trainer.num_workers=1", "trainer.drop_path=0.2"],
        ["trainer.minutes=0.1", "trainer.ema=0.9", *MIX],
    ],
    ids=lambda overrides: " ".join(word.removeprefix("trainer.") for word in overrides),
)
def test_a_run_that_is_cut_off_ends_with_the_same_weights(overrides: list[str], tmp_path: Path) -> None:
    overrides = ["trainer.epochs=4", *overrides]
    cut_off = trainer(*overrides, checkpoints=Checkpoints(tmp_path / "one"))
    epochs = cut_off.fit()
    next(epochs), next(epochs, None)
    resumed = trainer(*overrides, checkpoints=Checkpoints(tmp_path / "one"))
    numbers = [epoch.number for epoch in resumed.fit()]
    assert numbers[:1] == [2]
    # A time budget has become a number of steps, which gives the same wherever it is given.
    assert resumed.total_steps == cut_off.total_steps
    same = [word for word in overrides if "minutes" not in word] + [f"trainer.steps={cut_off.total_steps}"]
    whole = trainer(*same, checkpoints=Checkpoints(tmp_path / "other"))
    assert [epoch.number for epoch in whole.fit()][1:] == numbers
    assert_equal_weights(whole.classifier, resumed.classifier)


def test_steps_end_within_an_epoch_and_the_learning_rate_with_them() -> None:
    training = trainer("trainer.steps=12", "trainer.accumulate_batches=2")
    epochs = list(training.fit())
    assert [list(epoch.losses) for epoch in epochs] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    assert epochs[-1].metrics["lr"] < 0.1 * epochs[0].metrics["lr"]
    assert 0 <= epochs[-1].metrics["input_share"] <= 1


def test_a_time_budget_is_kept_though_validation_takes_its_part() -> None:
    for seconds in (1.0, 60.0, 61.0, 600.0, 3601.0):
        steps = steps_within(seconds, step=0.5, after_epoch=7.0, steps_of_epoch=100)
        assert not steps or 0.5 * steps + 7 * math.ceil(steps / 100) <= seconds
        assert 0.5 * (steps + 1) + 7 * math.ceil((steps + 1) / 100) > seconds


def test_the_average_is_what_is_validated_and_kept() -> None:
    """It is computed again here, from the weights after each step of a training without it."""
    plain = trainer("trainer.epochs=2")
    parameters = dict(plain.classifier.named_parameters())
    average = {name: tensor.detach().clone() for name, tensor in parameters.items()}
    steps = 0

    def follow(*_: object) -> None:
        nonlocal steps
        decay = min(0.8, 1 - (1 + steps) ** (-2 / 3)) if steps else 0.0
        steps += 1
        for name, tensor in parameters.items():
            average[name].lerp_(tensor.detach(), 1 - decay)

    plain.optimizer.optimizer.register_step_post_hook(follow)
    list(plain.fit())
    averaged = trainer("trainer.epochs=2", "trainer.ema=0.8")
    head = averaged.classifier.head[0]
    validated: list[Tensor] = []
    head.register_forward_hook(lambda module, *_: None if module.training else validated.append(module.weight.clone()))
    list(averaged.fit())
    for name, tensor in averaged.classifier.named_parameters():
        torch.testing.assert_close(tensor.detach(), average[name])
    assert torch.equal(validated[-1], head.weight)
    assert not torch.allclose(head.weight, plain.classifier.head[0].weight)


def test_pictures_and_labels_are_mixed_alike() -> None:
    settings = compose([*SMALL, "trainer.mixup=1.0", "trainer.label_smoothing=0"]).trainer
    loss = Loss(settings, np.arange(2), 2, torch.device("cpu"))
    seen: list[Tensor] = []

    class Brightness(nn.Module):
        """Its logits say how much of a picture is white, of 255."""

        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            white = images.mean((1, 2, 3)) / 255
            return torch.stack([1 - white, white], 1).log()

    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 8, 6, 3)
    np.random.seed(0)
    for _ in range(5):
        value = float(loss(Brightness(), images, torch.arange(2)))
        white = seen[-1].mean((1, 2, 3)) / 255
        torch.testing.assert_close(white.sum(), torch.ones(()))
        entropy = -(white * white.log() + (1 - white) * (1 - white).log()).mean()
        torch.testing.assert_close(torch.tensor(value), entropy)
    assert len({float(each.mean((1, 2, 3))[0]) for each in seen}) == 5, "each batch by another share"


def test_only_training_mixes_and_sees_the_other_size() -> None:
    training = trainer(*MIX, "trainer.image_size=24", "trainer.epochs=1")
    sizes: dict[bool, set[int]] = {True: set(), False: set()}
    whole: dict[bool, bool] = {}

    def look(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        sizes[module.training].add(output.shape[-1])
        whole[module.training] = bool((inputs[0] == inputs[0].round()).all())

    training.classifier.preprocessing.register_forward_hook(look)
    list(training.fit())
    assert sizes == {True: {24}, False: {32}}
    assert whole == {True: False, False: True}


def test_it_stops_where_nothing_has_got_better_for_so_many_epochs() -> None:
    """Equally good is not better: with a learning rate of next to nothing all epochs are equally good."""
    training = trainer("trainer.early_stopping=2", "trainer.lr=1e-12", "trainer.epochs=9")
    assert [epoch.number for epoch in training.fit()] == [1, 2, 3]


def test_the_deepest_block_is_left_out_with_the_probability_that_is_asked_for() -> None:
    dropped = [m.drop_prob for m in trainer("trainer.drop_path=0.2").classifier.modules() if isinstance(m, DropPath)]
    assert max(dropped) == pytest.approx(0.2)
    assert not any(isinstance(module, DropPath) for module in trainer().classifier.modules())


@pytest.mark.parametrize(("asked", "expected"), [(None, 0.1), (0.0, 0.0), (0.3, 0.3)])
def test_a_model_leaves_blocks_out_by_itself_unless_another_probability_is_asked_for(
    asked: float | None, expected: float
) -> None:
    settings = compose([*SMALL, "model.backbone=swin_tiny_patch4_window7_224", "model.image_size=224"]).model
    with torch.device("meta"):
        model = build_model(settings, 2, asked)
    dropped = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    assert max(dropped, default=0.0) == pytest.approx(expected)
    assert build_model(compose(SMALL).model, 2, 0.0), "of a model without such blocks none is left out"


def test_a_warm_up_begins_below_a_small_learning_rate() -> None:
    training = trainer("trainer.lr=3e-6", "trainer.warmup_epochs=1", "trainer.epochs=1", "trainer.scheduler=constant")
    rates: list[float] = []
    training.optimizer.optimizer.register_step_post_hook(lambda it, *_: rates.append(it.param_groups[0]["lr"]))
    list(training.fit())
    assert rates == sorted(rates)
    assert rates[0] < 0.2 * rates[-1] < 3e-6


def test_a_patch_counts_by_its_share_of_the_picture() -> None:
    settings = compose([*SMALL, "trainer.cutmix=1.0", "trainer.label_smoothing=0"]).trainer
    loss = Loss(settings, np.arange(2), 2, torch.device("cpu"))
    seen: list[Tensor] = []

    def answer(images: Tensor) -> Tensor:
        seen.append(images)
        return torch.tensor([[0.0, -1.0], [0.0, -1.0]])

    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 16, 16, 3)
    value = float(loss(answer, images, torch.arange(2)))  # type: ignore[arg-type]
    assert set(seen[0].unique().tolist()) == {0, 255}
    # Of two pictures of one class each, what one gives away the other gets: the loss does not depend on the share.
    assert value == pytest.approx((0.313262 + 1.313262) / 2, abs=1e-5)
    white = seen[0].mean((1, 2, 3)) / 255
    assert white.sum() == pytest.approx(1.0)


def test_an_odd_number_of_pictures_is_mixed_as_well() -> None:
    assert len(next(trainer(*MIX, "data.train_limit=33", "trainer.batch_size=64").fit()).losses) == 1


def test_a_time_budget_is_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five steps an epoch of 0.5 s each, and a validation that takes next to nothing: a minute is 119 or 120 steps."""
    training = trainer("trainer.minutes=1")
    monkeypatch.setattr(training, "_rehearse", lambda *_: 0.5)
    monkeypatch.setattr(training, "_validate", lambda: 0.0)
    training.fit()
    assert 100 < training.total_steps <= 120


def test_a_time_budget_counts_the_checkpoints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An epoch's of 2.5 s takes 2.5 s more to write here: of a minute half is left for steps."""
    training = trainer("trainer.minutes=1", checkpoints=Checkpoints(tmp_path))
    monkeypatch.setattr(training, "_rehearse", lambda *_: 0.5)
    monkeypatch.setattr(training, "_validate", lambda: 0.0)
    save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda *arguments: (time.sleep(2.5), save(*arguments)))
    training.fit()
    assert 45 < training.total_steps <= 60
    assert not any(tmp_path.iterdir())


def test_a_time_budget_that_ends_before_the_first_step_is_refused() -> None:
    training = trainer("trainer.minutes=0.0001")
    assert_raises_in_words(UserError, training.fit, "trainer.minutes=0.0001", "before the first step")


def test_old_gpus_train_in_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """There bf16 is emulated. What CUDA says is set here, as there is none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for emulated, expected in ((True, "fp16"), (False, "bf16")):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True, e=emulated: including_emulation or not e
        )
        assert precision("auto") == expected
    assert workers("auto") == cpus() - 1


def test_layers_learn_the_slower_the_further_they_are_from_the_head() -> None:
    training = trainer("trainer.layer_decay=0.5", "trainer.scheduler=constant", "trainer.warmup_epochs=0")
    list(training.fit())
    rates = {parameter: group["lr"] for group in training.optimizer.param_groups for parameter in group["params"]}
    model: ImageClassifier = training.classifier
    stem, last = next(model.backbone.parameters()), [*model.backbone.parameters()][-1]
    assert rates[model.head[0].weight] == training.settings.lr
    assert rates[stem] < rates[last] < rates[model.head[0].weight]


class NoReading(TorchDispatchMode):
    """Fails where a number is taken off a tensor, for which the loop would have to wait for a GPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert function is not torch.ops.aten._local_scalar_dense.default, "a number was read from a tensor"
        return function(*args, **(kwargs or {}))


def test_no_step_waits_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam keeps its own count of steps on the host, and reads that there: SGD has none."""
    training = trainer(*MIX, "trainer.ema=0.9", "trainer.clip_grad_norm=1.0", "trainer.optimizer=sgd")
    sampler, loader = training._loader()
    steps = 0

    class Watched:
        """The loader, with a watch on what is done with each batch until the next is asked for."""

        def __len__(self) -> int:
            return len(loader)

        def __iter__(self) -> Iterator[Any]:
            nonlocal steps
            for batch in loader:
                steps += 1
                with monkeypatch.context() as patch, NoReading():
                    for name in ("cpu", "numpy", "tolist"):
                        patch.setattr(Tensor, name, lambda *_, name=name: pytest.fail(f"Tensor.{name}() in the loop"))
                    yield batch

    monkeypatch.setattr(training, "_loader", lambda: (sampler, Watched()))
    assert len(list(training.fit())) == 2
    assert steps == 10


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.mixup=0.2", "trainer.batch_size=33"], ["trainer.batch_size=33", "even"]),
        (["trainer.drop_path=0.1", "model=vgg11"], ["trainer.drop_path=0.1", "vgg11", "give 0"]),
        (["trainer.cutmix=1.0", "model.crop_share=0.9"], ["trainer.cutmix=1.0", "model.crop_share=0.9", "=1"]),
        (["trainer.image_size=8", "model.backbone=test_vit"], ["trainer.image_size=8", "test_vit", "160"]),
    ],
)
def test_what_the_model_does_not_have_is_refused(overrides: list[str], words: list[str]) -> None:
    assert_raises_in_words(UserError, lambda: check_trainable(compose([*SMALL, *overrides])), *words)


def test_one_length_is_enough() -> None:
    words = ["trainer.minutes=2", "trainer.steps=5", "give one"]
    assert_raises_in_words(UserError, lambda: compose([*SMALL, *words[:2]]), *words)

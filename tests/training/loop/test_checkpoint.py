"""Whatever an optimizer keeps survives a checkpoint."""

from pathlib import Path

import pytest
import torch
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn
from torch.nn import functional as F

from serving.model.errors import RegistryError, UserError
from tests.helpers.commands import assert_raises_in_words
from tests.helpers.servers import Storage, shell_environment
from training.config import compose
from training.loop.checkpoint import Checkpoints, checkpoints_dir, flatten_optimizer, unflatten_optimizer
from training.loop.trainable import check_trainable

# What needs a GPU, or second derivatives, is refused instead.
REFUSED = [name for name in list_optimizers() if name.startswith(("bnb", "fused")) or name == "adahessian"]


def start(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(3))
    model(torch.zeros(2, 3, 8, 8))
    return model, create_optimizer_v2(model, name, lr=1e-3, weight_decay=0.01)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        F.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.randint(0, 3, (4,))).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", [name for name in list_optimizers() if name not in REFUSED])
def test_a_resumed_optimizer_goes_on_as_one_that_was_not_cut_off(name: str, tmp_path: Path) -> None:
    model, optimizer = start(name)
    train(model, optimizer, range(3))
    tensors, rest = flatten_optimizer(optimizer.state_dict())
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, 1, {"optimizer": tensors, "model": model.state_dict()}, {"optimizer": rest})

    resumed, optimizer_again = start(name)
    loaded, state = checkpoints.load(1)
    resumed.load_state_dict(loaded["model"])
    optimizer_again.load_state_dict(unflatten_optimizer(loaded["optimizer"], state["optimizer"]))
    for network, steps in ((model, optimizer), (resumed, optimizer_again)):
        train(network, steps, range(3, 6))
    for name, tensor in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


@pytest.mark.skipif(torch.cuda.is_available(), reason="these work on a GPU")
@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_used_here_is_refused_before_any_work(name: str) -> None:
    settings = compose([f"trainer.optimizer={name}"])
    assert_raises_in_words(UserError, lambda: check_trainable(settings), f"trainer.optimizer={name} can't be used here")


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(1, 1, {"model": {"weight": torch.ones(3)}}, {})
    (file,) = tmp_path.glob("run/*/model.safetensors")
    file.write_bytes(file.read_bytes()[:20])
    assert_raises_in_words(
        UserError, lambda: checkpoints.load(1), str(file.parent), "is damaged", f"Remove {tmp_path}/run"
    )


def test_checkpoints_lie_where_all_machines_find_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkpoints_dir(tmp_path) == tmp_path / "runs"
    monkeypatch.setenv("CHECKPOINTS", str(tmp_path / "shared"))
    assert checkpoints_dir(tmp_path) == tmp_path / "shared"
    monkeypatch.setenv("CHECKPOINTS", "s3://bucket/checkpoints")
    assert checkpoints_dir(tmp_path) == tmp_path / "runs"


@pytest.mark.slow
def test_at_an_address_another_machine_goes_on_from_whole_checkpoints_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on(machine: str) -> Checkpoints:
        checkpoints = Checkpoints(tmp_path / machine / "runs" / "key", "s3://mlflow/checkpoints")
        checkpoints.fetch()
        return checkpoints

    def there() -> set[str]:
        found = storage.client().list_objects_v2(Bucket="mlflow", Prefix="checkpoints/").get("Contents", [])
        return {each["Key"].removeprefix("checkpoints/") for each in found}

    with Storage(tmp_path, shell_environment(tmp_path)) as storage:
        for name, value in storage.environment.items():
            monkeypatch.setenv(name, value)
        storage.client().put_object(Bucket="mlflow", Key="checkpoints/keyboards.txt")  # of somebody else
        first = on("a")
        assert first.last_epoch() is None
        first.run_id = "some-run"
        for epoch in (1, 2, 3):
            first.save(epoch, 1, {"model": {"weight": torch.full((3,), epoch)}}, {"epoch": epoch})
        assert {key.split("/")[1] for key in there() if "epoch" in key} == {"epoch-0001", "epoch-0003"}

        second = on("b")
        assert (second.run_id, second.last_epoch()) == ("some-run", 3)
        tensors, rest = second.load(3)
        assert (tensors["model"]["weight"].tolist(), rest) == ([3, 3, 3], {"epoch": 3})
        storage.client().delete_object(Bucket="mlflow", Key="checkpoints/key/epoch-0003/state.json")  # as if cut off
        assert on("a").last_epoch() == 1
        storage.refuse(True)
        words = "s3://mlflow/checkpoints/key", "can't be reached"
        assert_raises_in_words(RegistryError, lambda: second.save(4, 1, {}, {}), *words)
        storage.refuse(False)
        second.remove()
        assert there() == {"keyboards.txt"}
        assert on("a").last_epoch() is None

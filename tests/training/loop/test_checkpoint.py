"""Whatever an optimizer keeps survives a checkpoint."""

from pathlib import Path

import pytest
import torch
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn
from torch.nn import functional as F

from serving.model.errors import UserError
from tests.helpers.commands import assert_raises_in_words
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
    assert_raises_in_words(
        UserError, lambda: checkpoints_dir(tmp_path), "CHECKPOINTS=s3://bucket/checkpoints", "a path"
    )

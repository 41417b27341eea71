"""Several candidates: what one that fails leaves to the others."""

import weakref
from functools import partial

import pytest
import torch

from serving.model.errors import UserError
from training.loop.candidates import none_left, train_each


def test_a_candidate_that_fails_holds_no_memory_while_the_next_is_trained() -> None:
    tensors: list[weakref.ref[torch.Tensor]] = []

    def train(name: str) -> str:
        if name == "first":
            weights = torch.zeros(1)
            tensors.append(weakref.ref(weights))
            raise MemoryError("can't allocate memory")
        assert tensors[0]() is None
        return "run"

    runs, failures = train_each(["first", "second"], lambda name: None, lambda name: partial(train, name))
    assert runs == {"second": "run"}
    assert "can't allocate memory" in str(failures["first"])


def test_a_wrong_setting_is_raised_before_any_training() -> None:
    trained: list[str] = []

    def try_out(name: str) -> None:
        if name == "second":
            raise UserError("trainer.lr=x")

    with pytest.raises(UserError, match=r"trainer\.lr"):
        train_each(["first", "second"], try_out, lambda name: trained.append(name) or (lambda: name))
    assert not trained


def test_the_only_one_s_failure_is_its_own_error_and_that_of_several_names_each() -> None:
    broken = RuntimeError("broken")
    assert none_left({"first": broken}) is broken
    words = str(none_left({"first": broken, "second": UserError("too small\nadd some")}))
    assert words == "no candidate is left: first: RuntimeError: broken; second: too small add some"

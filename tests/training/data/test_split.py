"""The split and the choice of pictures."""

import numpy as np
import pytest

from serving.model.pictures.decoding import AS_SHOWN
from training.config import compose
from training.data.split import load_data, stratified_sample


def test_the_split_is_stratified_seeded_and_apart() -> None:
    settings = compose(["data=digits"])
    data, again, other = (load_data(settings.data, seed, AS_SHOWN) for seed in (1, 1, 2))
    names = [set(data.train.names), set(data.validation.names), set(data.test.names)]
    assert sum(map(len, names)) == len(set.union(*names)) == 1797
    share = np.bincount(data.validation.labels) / np.bincount(data.train.labels)
    np.testing.assert_allclose(share, 1 / 9, atol=0.01)
    np.testing.assert_array_equal(data.train.names, again.train.names)
    assert set(other.train.names) != names[0]
    assert set(other.test.names) == names[2], "the test set does not depend on a seed"


def test_a_sample_keeps_the_proportions() -> None:
    settings = compose(["data=digits"])
    sample = stratified_sample(load_data(settings.data, 1, AS_SHOWN).train, 100, 1)
    assert set(np.bincount(sample.labels)) <= {9, 10, 11}


@pytest.mark.parametrize("leave_out", [1, 5, 700])
def test_a_sample_has_the_size_that_was_asked_for(leave_out: int) -> None:
    pictures = load_data(compose(["data=digits"]).data, 1, AS_SHOWN).train
    sample = stratified_sample(pictures, len(pictures) - leave_out, 1)
    assert len(sample) == len(set(sample.names)) == len(pictures) - leave_out


def test_what_a_limit_leaves_out_is_told() -> None:
    settings = compose(["data=digits", "data.train_limit=100", "data.test_limit=100000"])
    data = load_data(settings.data, settings.seed, settings.model.decoding)
    assert data.origins["train"].startswith("100 of 1,")
    assert "data.train_limit" in data.table()
    assert "data.test_limit" not in data.table()

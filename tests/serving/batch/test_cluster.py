"""Batches on a real Ray cluster of two nodes: the file that one process writes, also where a node is lost."""

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from serving.batch import prediction as batch
from serving.batch.cluster import Cluster
from serving.batch.prediction import BatchPrediction
from serving.batch.sources import open_pictures
from serving.model.errors import UserError
from serving.model.predictor import Predictor
from tests.helpers.commands import assert_raises_in_words
from tests.helpers.nodes import Nodes, two_nodes
from tests.helpers.pictures import png
from tests.helpers.state import CONTRACT_0
from tests.helpers.waiting import free_port

PART_ROWS = 64
ROWS = 16 * PART_ROWS - 5


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "PART_ROWS", PART_ROWS)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with two_nodes() as nodes:
        yield nodes


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(ROWS):
        (folder / f"{index:05d}.png").write_bytes(png(8 + index % 2, 8, seed=index))
    (folder / "00007.png").write_bytes(b"no picture")
    return folder


@pytest.mark.slow
def test_a_lost_node_costs_no_row_and_parts_that_are_there_are_not_done_again(
    nodes: Nodes, pictures: Path, tmp_path: Path
) -> None:
    predictor = Predictor(CONTRACT_0)

    def prediction(target: str, cluster: Cluster | None = None) -> BatchPrediction:
        source = open_pictures(pictures, "source")
        return BatchPrediction(source, predictor, tmp_path / target, 10_000, max_batch=7, cluster=cluster)

    with prediction("here.parquet") as here:
        assert sum(1 for _ in here.run()) == ROWS
    expected = (tmp_path / "here.parquet").read_bytes()

    with prediction("out.parquet") as begun:  # leaves two parts
        assert sum(1 for _ in islice(begun.run(), 2 * PART_ROWS + 10)) == 2 * PART_ROWS + 10
    with Cluster() as cluster, prediction("out.parquet", cluster) as rest:
        assert rest.rows_left == ROWS - 2 * PART_ROWS
        rows = 0
        for _ in rest.run():
            rows += 1
            if rows == 3 * PART_ROWS:
                nodes.lose_one()
        assert rows == ROWS - 2 * PART_ROWS
    assert (tmp_path / "out.parquet").read_bytes() == expected


def test_an_address_that_no_cluster_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="no Ray: make scale")
    for address in (f"127.0.0.1:{free_port()}", "nowhere"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert_raises_in_words(UserError, Cluster, f"RAY_ADDRESS={address}", "unset it")


def test_without_ray_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert_raises_in_words(UserError, Cluster, "engine=ray", "make scale")

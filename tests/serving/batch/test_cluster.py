"""Batches on a real Ray cluster of two nodes: the file that one process writes, also where a node is lost."""

import json
import os
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from flows.batch_predict import Engine, predict
from serving.batch import node
from serving.batch import prediction as batch
from serving.batch.cluster import Cluster
from serving.batch.prediction import BatchPrediction
from serving.batch.sources import Source, open_pictures
from serving.model.contract import Measured
from serving.model.errors import UserError
from serving.model.pictures.listing import Entry, Folder
from serving.model.predictor import Predictor
from serving.model.runtime import runtimes
from tests.helpers.commands import assert_raises_in_words
from tests.helpers.nodes import Nodes, two_nodes
from tests.helpers.pictures import png
from tests.helpers.state import CONTRACT_0, Trained, promote, with_metadata
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


def prediction(source: Source, target: Path, cluster: Cluster | None = None) -> BatchPrediction:
    return BatchPrediction(source, Predictor(CONTRACT_0), target, 10_000, max_batch=7, cluster=cluster)


def write_all(source: Path, target: Path, cluster: Cluster | None = None) -> bytes:
    with prediction(open_pictures(source, "source"), target, cluster) as whole:
        for _ in whole.run():
            pass
    return target.read_bytes()


def files_of(folder: Path, read: Callable[[str], bytes]) -> Source:
    """The files of a folder, read in a way of the test's."""
    return Source(str(folder), Folder([Entry(path.name, str(path), "") for path in sorted(folder.iterdir())], read))


@pytest.mark.slow
def test_a_champion_of_the_registry_answers_in_the_precision_that_was_asked_for(
    nodes: Nodes, trained: Trained, own_registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bf16 := bool(runtimes("bf16")):
        monkeypatch.setenv("SERVING_PRECISION", "bf16")
    measured = Measured(
        precision="bf16", runtime="openvino", accuracy=1, changed=0, largest_change=0, speed=2, allowed=True
    )
    promote(trained, with_metadata(trained, measured=json.dumps([measured.model_dump()])))
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for index in range(2 * PART_ROWS + 3):
            archive.writestr(f"{index}.png", png(seed=index))

    def written_by(engine: Engine) -> bytes:
        target = tmp_path / f"{engine}.parquet"
        assert predict.fn(str(tmp_path / "pictures.zip"), str(target), "", False, engine)
        return target.read_bytes()

    by_ray = written_by("ray")  # at first, while nothing of the model is kept on the disk
    assert by_ray == written_by("local")
    answered_in = parquet.read_schema(tmp_path / "ray.parquet").metadata[b"answered_in"]
    assert answered_in == (b"bf16 in openvino" if bf16 else b"fp32 in onnxruntime")


@pytest.mark.slow
def test_what_one_engine_has_begun_the_other_ends_unless_the_source_has_changed(
    nodes: Nodes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, rows = tmp_path / "pictures.parquet", 4 * PART_ROWS + 3

    def write(first: int) -> None:
        images = [png(seed=seed) for seed in range(first, first + rows)]
        parquet.write_table(pa.table({"image": images}), source, row_group_size=50)

    def begin(cluster: Cluster | None) -> None:
        with prediction(open_pictures(source, "source"), target, cluster) as begun:
            assert sum(1 for _ in islice(begun.run(), PART_ROWS + 1)) == PART_ROWS + 1

    write(0)
    target = tmp_path / "out.parquet"
    expected = write_all(source, tmp_path / "expected.parquet")
    with Cluster() as cluster:
        begin(cluster)
    with prediction(open_pictures(source, "source"), target) as rest:
        assert rest.rows_left < rows
        for _ in rest.run():
            pass
    assert target.read_bytes() == expected

    begin(None)
    write(1)
    with Cluster() as cluster:
        with prediction(open_pictures(source, "source"), target, cluster) as rest:
            assert rest.rows_left == rows
        assert "belongs to other pictures" in caplog.text
        assert write_all(source, target, cluster) == write_all(source, tmp_path / "expected.parquet") != expected


@pytest.mark.slow
def test_a_part_that_kills_each_process_is_named_and_the_others_are_done(
    nodes: Nodes, pictures: Path, tmp_path: Path
) -> None:
    killing = PART_ROWS + 1
    with (
        Cluster() as cluster,
        prediction(
            files_of(pictures, partial(killed, f"{killing:05d}.png")), tmp_path / "out.parquet", cluster
        ) as work,
    ):
        assert_raises_in_words(UserError, lambda: list(work.run()), "part 000001", "3 times", "memory")
        assert work.rows_left == PART_ROWS
    with prediction(files_of(pictures, partial(killed, "")), tmp_path / "out.parquet") as rest:
        assert rest.rows_left == work.rows_left


def killed(name: str, place: str) -> bytes:
    """Reads a file; of this name it is the end of the process."""
    if os.path.basename(place) == name:
        os.kill(os.getpid(), signal.SIGKILL)
    return Path(place).read_bytes()


@pytest.mark.slow
def test_nodes_that_do_not_see_the_source_or_have_another_program_are_named_before_any_work(
    nodes: Nodes, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.parquet"
    of_this_process = os.open(pictures, os.O_RDONLY)
    with Cluster() as cluster:

        def refused(source: Source, *words: str) -> None:
            assert_raises_in_words(UserError, prediction(source, target, cluster).__enter__, *words)
            assert not list(tmp_path.glob("out*"))

        place = f"/proc/self/fd/{of_this_process}"
        refused(open_pictures(place, "source"), f"source={place}", "every node sees")
        # Where a share is not mounted there is a folder, and nothing in it.
        refused(files_of(pictures, partial(read_here, os.getpid())), f"source={pictures}", "every node sees")
        monkeypatch.setattr(node, "program", lambda: {"serving/ of hash": "0"})
        refused(open_pictures(pictures, "source"), "serving/ of hash", "this machine 0", "the same checkout")
    os.close(of_this_process)


def read_here(pid: int, place: str) -> bytes:
    if os.getpid() != pid:
        raise FileNotFoundError(place)
    return Path(place).read_bytes()


@pytest.mark.slow
def test_a_node_without_the_packages_is_named_before_any_work(nodes: Nodes, pictures: Path, tmp_path: Path) -> None:
    lacking = tmp_path / "packages"
    lacking.mkdir()
    (lacking / "onnxruntime.py").write_text("raise ModuleNotFoundError(\"No module named 'onnxruntime'\")")
    with nodes.one_more(PYTHONPATH=str(lacking)), Cluster() as cluster:
        work = prediction(open_pictures(pictures, "source"), tmp_path / "out.parquet", cluster)
        assert_raises_in_words(UserError, work.__enter__, "node", "No module named 'onnxruntime'", "make scale")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.slow
def test_a_lost_node_costs_no_row_and_parts_that_are_there_are_not_done_again(
    nodes: Nodes, pictures: Path, tmp_path: Path
) -> None:
    expected = write_all(pictures, tmp_path / "here.parquet")
    target = tmp_path / "out.parquet"
    with prediction(open_pictures(pictures, "source"), target) as begun:  # leaves two parts
        assert sum(1 for _ in islice(begun.run(), 2 * PART_ROWS + 10)) == 2 * PART_ROWS + 10
    with Cluster() as cluster, prediction(open_pictures(pictures, "source"), target, cluster) as rest:
        assert rest.rows_left == ROWS - 2 * PART_ROWS
        rows = 0
        for _ in rest.run():
            rows += 1
            if rows == 3 * PART_ROWS:
                nodes.lose_one()
        assert rows == ROWS - 2 * PART_ROWS
    assert target.read_bytes() == expected


def test_an_address_that_no_cluster_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="no Ray: make scale")
    for address in (f"127.0.0.1:{free_port()}", "nowhere"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert_raises_in_words(UserError, Cluster, f"RAY_ADDRESS={address}", "unset it")


def test_without_ray_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert_raises_in_words(UserError, Cluster, "engine=ray", "make scale")

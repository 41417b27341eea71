"""What a node of a cluster does: it gets a model and the place of a source, and scores portions of that."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pi_heif
import PIL
import pyarrow as pa

import serving
from serving.batch.scoring import Limits, Scorer
from serving.batch.sources import Portion, Source
from serving.model.errors import PictureError, UserError
from serving.model.pictures.memory import give_freed_memory_back
from serving.model.pictures.storage import not_seen
from serving.model.precision import Precision
from serving.model.predictor import Predictor, file_for
from serving.model.runtime import CPU

NODE = os.uname().nodename
PICTURES_TO_TRY = 20


class Job(NamedTuple):
    """All that a node has to know: it needs no registry, and all nodes answer with the same version."""

    files: Any  # the reference to `files_of`
    hashes: dict[str, str]  # of the files, by name, the one to open first
    version: str
    providers: Sequence[str]
    precision: Precision
    answered_in: str
    limits: Limits
    cpus: int
    place: str
    first: Portion  # the first picture of the source
    first_hash: str


def files_of(predictor: Predictor) -> dict[str, bytes]:
    """A predictor's files by name, the one to open first."""
    path, other = predictor.path, file_for(predictor.path, predictor.precision)
    paths = [path, other] if other.exists() else [path]  # one that is INT8 itself has no other
    return {path.name: path.read_bytes() for path in paths}


def job_of(
    source: Source, predictor: Predictor, limits: Limits, files: Any, hashes: dict[str, str], cpus: int, gpus: int
) -> Job:
    answered_in = f"{predictor.precision} in {predictor.runtime}"
    providers = predictor.providers if gpus else (CPU,)  # OpenVINO's units are none of ONNX Runtime's
    first, first_hash = first_readable(source)
    model = files, hashes, predictor.version, providers, predictor.precision, answered_in
    return Job(*model, limits, cpus, source.place, first, first_hash)


def first_readable(source: Source) -> tuple[Portion, str]:
    """A picture of the source, and the hash of its bytes: the first of some that can be read."""
    hashes = (hash_of(file.read) for file in islice(source.read_from(0), PICTURES_TO_TRY))
    index, found = next(((index, found) for index, found in enumerate(hashes) if found), (0, ""))
    return source.portion(index, 1), found


def hash_of(read: Callable[[], bytes]) -> str:
    """Of a picture's bytes; empty where it can't be read."""
    try:
        return hashlib.sha256(read()).hexdigest()
    except PictureError:
        return ""


def hashes_of(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


@cache
def program() -> dict[str, str]:
    """What answers depend on beside the model: this program's text, and what decodes and computes."""
    root, text = Path(serving.__path__[0]), hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        text.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    packages: tuple[Any, ...] = np, onnxruntime, PIL, pi_heif, pa
    versions = {package.__name__: str(package.__version__) for package in packages}
    openvino = [each.version for each in metadata.distributions(name="openvino")]
    return {"serving/ of hash": text.hexdigest()[:12], **versions, "openvino": "".join(openvino) or "none"}


def ready(job: list[Any], expected: dict[str, str]) -> None:
    """Loads the predictor, and reads the first picture.

    Raises UserError where this node can't, or would answer otherwise: its program is not the expected one.
    """
    _scorer(job[0], expected)


def scored(job: list[Any], expected: dict[str, str], portion: Portion) -> pa.Table:
    """The rows of a portion. The process keeps the predictor for those that follow."""
    scorer = _scorer(job[0], expected)
    return scorer.table([*scorer.rows([portion()])])


def _scorer(reference: Any, expected: dict[str, str]) -> Scorer:
    import ray

    if reference not in _scorers:
        _scorers.clear()
        _require_same_program(expected)  # another one might not even understand the job
        job = ray.get(reference)
        _scorers[reference] = _opened(job, ray.get(job.files))
    return _scorers[reference]


_scorers: dict[Any, Scorer] = {}


def _opened(job: Job, files: Mapping[str, bytes]) -> Scorer:
    if hashes_of(files) != job.hashes:
        raise UserError(f"the model has arrived damaged on the node {NODE}\nStart the command again, without it.")
    _require_source(job)
    os.environ["SERVING_THREADS"] = str(job.cpus)  # what it is given
    give_freed_memory_back()
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        path = Path(folder, next(iter(job.hashes)))
        try:
            predictor = Predictor(path, job.version, job.providers, job.precision)
        except UserError as error:
            raise UserError(f"the node {NODE} can't open the model: {str(error).replace(folder, '')}") from error
    scorer = Scorer(predictor, job.limits)
    if scorer.answered_in != job.answered_in:
        raise UserError(
            f"the node {NODE} answers in {scorer.answered_in}, and this machine in {job.answered_in}\n"
            "Set SERVING_PRECISION to one that all have, such as fp32."
        )
    return scorer


def _require_same_program(expected: dict[str, str]) -> None:
    for name, version in program().items():
        if version != expected[name]:
            raise UserError(
                f"the node {NODE} has {name} {version}, and this machine {expected[name]}\n"
                "Give every node the same checkout, and run make scale there."
            )


def _require_source(job: Job) -> None:
    """Else each row would say that its file is missing."""
    (file,) = job.first()
    if job.first_hash and hash_of(file.read) != job.first_hash:
        raise not_seen(f"source={job.place}")

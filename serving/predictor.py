"""An ONNX Runtime session and what its file says of itself."""

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnxruntime

from serving import metrics
from serving.errors import ModelError
from serving.images import decode

# What every answer says of the model.
REQUIRED = ("model_name", "mlflow_run_id", "data_name")

CORES = len(os.sched_getaffinity(0))
# Of `classify` at a time: one more than there are cores, which work for the others while one ends.
RUNS = CORES + 1


class Predictor:
    """A model that has shown that it answers.

    Attributes:
        classes: in the order of the probabilities.
        metadata: all that the file says of itself.
        version, name, run_id, data: of the model, the run that trained it, and the pictures it was trained on.

    Args:
        path: an ONNX file with our metadata.
        version: the registry's, or `file`.
        providers: of ONNX Runtime, in order of preference; those that its installed build lacks are left out.

    Raises:
        ModelError: it can't be loaded, or fails its self-test.
    """

    def __init__(self, path: Path, version: str, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        try:
            available = [name for name in providers if name in onnxruntime.get_available_providers()]
            self._session = _session(path, available)
            # A core for each batch: threads that share the work on one picture wait for one another.
            one_core = available[0] == "CPUExecutionProvider" and CORES > 1
            self._on_one_core = _session(path, available, threads=1) if one_core else self._session
            self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
            self.classes: list[str] = json.loads(self.metadata["classes"])
            self.name, self.run_id, self.data = (self.metadata[key] for key in REQUIRED)
            self._self_test()
        except Exception as error:  # ONNX Runtime raises a kind of its own for every way a file can be wrong
            raise ModelError(f"{path} is not one of our ONNX models ({type(error).__name__}: {error})") from error
        self.providers: list[str] = self._session.get_providers()
        self.version = version
        self.loaded_at = datetime.now(UTC)

    def predict(self, images: np.ndarray, alone: bool = True) -> np.ndarray:
        """uint8 (N, H, W, 3), RGB -> probabilities float32 (N, classes).

        Args:
            alone: nothing else runs meanwhile, so that a CPU's cores share the work.
        """
        return _run(self._session if alone else self._on_one_core, images)

    def classify(self, contents: Sequence[bytes], max_pixels: int, alone: bool = False) -> list[np.ndarray | Exception]:
        """Decodes image files and runs the model once for all pictures of one size.

        While it does so RUNS times at once, fewer than (RUNS + 1) * `max_pixels` pixels are held.

        Args:
            max_pixels: of a picture.
            alone: as for `predict`.

        Returns:
            For each in order float32 (classes,), or why it has no answer: a Refusal (400 not a picture or broken, 413
            too large), or what the model has failed with.
        """
        answers: dict[int, np.ndarray | Exception] = {}
        groups: dict[tuple[int, ...], dict[int, np.ndarray]] = defaultdict(dict)
        held = 0

        def run() -> None:
            for group in groups.values():
                metrics.BATCH_SIZE.observe(len(group))
                try:
                    answers.update(zip(group, self.predict(np.stack(list(group.values())), alone), strict=True))
                except Exception as error:  # out of memory, say: these have no answer, others may have one
                    answers.update(dict.fromkeys(group, error))
            groups.clear()

        for index, content in enumerate(contents):
            try:
                picture = decode(content, max_pixels)
            except Exception as error:
                answers[index] = error
                continue
            groups[picture.shape][index] = picture
            held += picture.shape[0] * picture.shape[1]
            if held > max_pixels // RUNS:
                run()
                held = 0
        run()
        return [answers[index] for index in range(len(contents))]

    def _self_test(self) -> None:
        """Classifies generated pictures, which also warms the sessions up."""
        pictures = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), np.uint8)
        for session in {self._session, self._on_one_core}:
            probabilities = _run(session, pictures)
            if probabilities.shape != (2, len(self.classes)):
                raise ValueError(f"probabilities of shape {probabilities.shape} for {len(self.classes)} classes")
            # What is not finite does not add up to 1 either.
            if probabilities.min() < 0 or not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
                raise ValueError("the probabilities of a generated picture do not add up to 1")


def _session(path: Path, providers: Sequence[str], threads: int = 0) -> onnxruntime.InferenceSession:
    """A session with so many threads; 0: one for each core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Between runs, threads that spin while they wait take the cores that decode pictures and answer requests.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(path, options, providers=providers)


def _run(session: onnxruntime.InferenceSession, images: np.ndarray) -> np.ndarray:
    (probabilities,) = session.run(["probabilities"], {"images": images})
    return probabilities

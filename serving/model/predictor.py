"""An ONNX Runtime session, and what its file says of itself."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnxruntime

from serving.model.contract import INPUT, OUTPUT, Metadata
from serving.model.cpus import cpus
from serving.model.errors import ModelError, UserError, is_out_of_memory
from serving.model.pictures.decoding import opened, pixels_of
from serving.model.pictures.memory import LARGE, LargePicture

CPU = ("CPUExecutionProvider",)
Answer = np.ndarray | Exception


class Predictor:
    """A model that has passed its self-test.

    Args:
        path: an ONNX file with our metadata.
        version: the registry's.
        providers: of ONNX Runtime, in order of preference; those that its installed build lacks are left out.

    Raises:
        UserError: ONNX Runtime has none of the providers.
        ModelError: it can't be loaded, or fails its self-test.
    """

    def __init__(self, path: Path, version: str = "file", providers: Sequence[str] = CPU) -> None:
        available = [name for name in providers if name in onnxruntime.get_available_providers()]
        if not available:
            known = ", ".join(onnxruntime.get_available_providers())
            raise UserError(f"SERVING_PROVIDERS={','.join(providers)}: the installed ONNX Runtime has only {known}")
        threads = cpus()
        try:
            self._on_all_cores = open_session(path, available, threads)
            # A core for each batch: threads that share the work on one picture wait for one another.
            one_core = available[0] == CPU[0] and threads > 1
            self._on_one_core = open_session(path, available, threads=1) if one_core else self._on_all_cores
            self.metadata = Metadata.from_properties(self._on_all_cores.get_modelmeta().custom_metadata_map)
            self._self_test()
        except Exception as error:  # ONNX Runtime raises a kind of its own for every way a file can be wrong
            reason = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
            raise ModelError(f"{path} is not one of our ONNX models ({reason})") from error
        self.providers: list[str] = self._on_all_cores.get_providers()
        self.version = version
        self.loaded_at = datetime.now(UTC)

    @property
    def classes(self) -> list[str]:
        """In the order of the probabilities."""
        return self.metadata.classes

    def predict(self, images: np.ndarray, *, all_cores: bool) -> np.ndarray:
        """uint8 (N, H, W, 3), RGB -> probabilities float32 (N, classes).

        With `all_cores` a CPU's cores share the work, which is right where nothing else runs meanwhile.
        """
        return run_session(self._on_all_cores if all_cores else self._on_one_core, images)

    def classify(
        self,
        contents: Iterable[bytes],
        max_pixels: int,
        *,
        all_cores: bool,
        large: bool = False,
        on_decode: Callable[[float], None] = lambda seconds: None,
        on_run: Callable[[int, float], None] = lambda pictures, seconds: None,
    ) -> list[Answer]:
        """Decodes image files and runs the model once for all pictures of one size.

        Args:
            large: whether pictures of more than LARGE pixels are decoded. Otherwise their answer is a LargePicture, and
                the caller asks for them one by one, each within `PixelMemory.room`.
            on_decode: called with the seconds that each picture took.
            on_run: called with the number of pictures in each run of the model, and its seconds.

        Returns:
            For each in order float32 (classes,), or why there is no answer: a PictureError, a LargePicture, a
            MemoryError, or what the model has failed with.
        """
        answers: dict[int, Answer] = {}
        groups: dict[tuple[int, ...], dict[int, np.ndarray]] = defaultdict(dict)
        held = 0

        def run() -> None:
            for group in groups.values():
                start = time.perf_counter()
                try:
                    images = np.stack(list(group.values()))
                    answers.update(zip(group, self.predict(images, all_cores=all_cores), strict=True))
                except Exception as error:  # these have no answer, others may have one
                    failure = MemoryError(str(error)) if is_out_of_memory(error) else error
                    answers.update(dict.fromkeys(group, failure))
                on_run(len(group), time.perf_counter() - start)
            groups.clear()

        for index, content in enumerate(contents):
            start = time.perf_counter()
            try:
                with opened(content, max_pixels) as image:
                    pixels = image.width * image.height
                    if pixels > LARGE and not large:
                        answers[index] = LargePicture(pixels)
                        continue
                    picture = pixels_of(image, self.metadata.decoding)
            except Exception as error:
                answers[index] = error
                continue
            on_decode(time.perf_counter() - start)
            groups[picture.shape][index] = picture
            held += picture.shape[0] * picture.shape[1]
            if held > LARGE:
                run()
                held = 0
        run()
        return [answers[index] for index in range(len(answers))]

    def _self_test(self) -> None:
        """Classifies generated pictures, which also warms the sessions up."""
        pictures = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), np.uint8)
        for session in {self._on_all_cores, self._on_one_core}:
            probabilities = run_session(session, pictures)
            if probabilities.shape != (2, len(self.classes)):
                raise ValueError(f"probabilities of shape {probabilities.shape} for {len(self.classes)} classes")
            # What is not finite does not add up to 1 either.
            if probabilities.min() < 0 or not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
                raise ValueError("the probabilities of a generated picture do not add up to 1")


def open_session(
    path: Path, providers: Sequence[str] = CPU, threads: int | None = None
) -> onnxruntime.InferenceSession:
    """A session with so many threads; None: one for each CPU that is given."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or cpus()
    # Between runs, threads that spin while they wait take the cores that decode pictures and answer requests.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(path, options, providers=providers)


def run_session(session: onnxruntime.InferenceSession, images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 3), RGB -> probabilities float32 (N, classes)."""
    options = None
    if images[..., 0].size > LARGE and session.get_providers() == [*CPU]:
        # The arena would keep for good what a model that is fed at full size needs for it.
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    (probabilities,) = session.run([OUTPUT], {INPUT: images}, options)
    return probabilities

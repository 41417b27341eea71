"""A model that answers: a file, what it says of itself, and the precision that it runs in."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from serving.model.contract import Metadata
from serving.model.cpus import cpus
from serving.model.errors import ModelError, NotAllowed, UserError, is_out_of_memory
from serving.model.pictures.decoding import opened, pixels_of
from serving.model.pictures.memory import LARGE, LargePicture
from serving.model.precision import Choice, Precision
from serving.model.runtime import CPU, Runtime, is_for, missing, obstacle, open_file, providers_for

log = logging.getLogger(__name__)

Answer = np.ndarray | Exception


class Predictor:
    """A model that has passed its self-test.

    Args:
        path: an ONNX file with our metadata. Beside it may lie what else its version has, such as NAME-int8.onnx.
        version: the registry's.
        providers: of ONNX Runtime, in order of preference; it goes on without those that it can't have.
        precision: one that the version allows, or `auto`: the quickest of those that are to be had here. A file that is
            INT8 itself runs as such.

    Attributes:
        path, version: as given.
        lacks: what is chosen, but not to be had here, each with its reason: providers, and quicker precisions.

    Raises:
        UserError: nothing here has the precision, or ONNX Runtime gets none of the providers.
        ModelError: it can't be loaded, does not allow the precision, or fails its self-test.
    """

    def __init__(
        self, path: Path, version: str = "file", providers: Sequence[str] = (CPU,), precision: Choice = "fp32"
    ) -> None:
        cpus()  # a wrong setting is not the file's fault
        self.version = version
        self.path = path
        self.lacks: list[str] = []
        try:
            # ONNX Runtime opens every file, whatever its precision: this is how it says what it is.
            opened = open_file(path, providers=providers)
            about, units = Metadata.from_properties(opened.properties), opened.units
            lacks = missing(providers, units)
            if precision == about.own_precision == "fp32":
                self._use(opened, "fp32")
            else:
                del opened  # another one takes its memory
                self._use_best(about, precision, providers, units)
        except UserError:
            raise
        except Exception as error:  # a runtime raises a kind of its own for every way a file can be wrong
            reason = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
            raise ModelError(f"{path} is not one of our ONNX models ({reason})") from error
        self.lacks += lacks
        self.runtime = self._runtime.name
        self.providers = self._runtime.units
        self.loaded_at = datetime.now(UTC)
        for lack in self.lacks:
            log.warning("%s answers in %s: %s", path, self.precision, lack)

    def _use(self, runtime: Runtime, precision: Precision) -> None:
        """Takes a runtime whose answers to the self-test are right."""
        self._runtime, self.precision = runtime, precision
        self.metadata = Metadata.from_properties(runtime.properties)
        self._self_test()

    def _use_best(self, about: Metadata, choice: Choice, providers: Sequence[str], units: Sequence[str]) -> None:
        """Takes the quickest runtime and precision that are chosen, allowed and here: `units` are what computes."""
        own = about.own_precision
        if own != "fp32":
            if choice not in ("fp32", "auto", own):
                raise ModelError(f"{self.path} is {own} itself and can't run in SERVING_PRECISION={choice}; unset it")
            choice = own
        broken = False
        for said in sorted(about.measured, key=lambda said: -said.speed):
            pays = said.speed > 1 and is_for(said.precision, units)
            if not said.allowed or not (said.precision == choice or (choice == "auto" and pays)):
                continue
            if not (reason := obstacle(said.precision, said.runtime, units)):
                file = self.path if own == said.precision else file_for(self.path, said.precision)
                try:
                    runtime = open_file(file, said.precision, said.runtime, providers)
                    if Metadata.from_properties(runtime.properties).mlflow_run_id != about.mlflow_run_id:
                        raise ModelError(f"{file} is not of the same run as {self.path}")
                    return self._use(runtime, said.precision)
                except Exception as error:
                    broken = broken or type(error) is not UserError
                    reason = " ".join(str(error).split())[-200:]  # OpenVINO says where it happened, then what
            self.lacks.append(f"{said.precision} in {said.runtime}: {reason}")
        refused = [said for said in about.measured if said.precision == choice and not said.allowed]
        if choice in ("auto", own) and "onnxruntime" not in [said.runtime for said in refused]:
            if own != "fp32" and (reason := obstacle(own, "onnxruntime", providers_for(own))):
                raise UserError(f"{self.path} can't be served here: {reason}")
            return self._use(open_file(self.path, own, providers=providers), own)
        if self.lacks:
            kind = ModelError if broken else UserError
            raise kind(f"SERVING_PRECISION={choice} is not to be had here: {self.lacks[0]}\nChoose another, or auto.")
        reason = "it was not measured when it was exported"
        if refused:
            found = " and ".join(f"{said.accuracy:.2%} in {said.runtime}" for said in refused)
            exact = f", in fp32 {about.test['accuracy']:.2%}" if own == "fp32" and "accuracy" in about.test else ""
            reason = f"its accuracy is {found}{exact}, which is less than export.int8_loss or export.half_loss allows"
        raise NotAllowed(f"{self.path} does not allow SERVING_PRECISION={choice}: {reason}; choose another, or auto")

    @property
    def classes(self) -> list[str]:
        """In the order of the probabilities."""
        return self.metadata.classes

    @property
    def test(self) -> dict[str, float]:
        """What was measured on the test set in this precision and runtime: shares such as accuracy."""
        for said in self.metadata.measured:
            if (said.precision, said.runtime) == (self.precision, self.runtime):
                return {"accuracy": said.accuracy}
        return self.metadata.test

    def predict(self, images: np.ndarray, *, all_cores: bool) -> np.ndarray:
        """uint8 (N, H, W, 3), RGB -> probabilities float32 (N, classes).

        With `all_cores` a CPU's cores share the work, which is right where nothing else runs meanwhile.
        """
        return self._runtime.run(images, all_cores=all_cores)

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
        """Classifies generated pictures, which also warms the runtime up."""
        pictures = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), np.uint8)
        for all_cores in (True, False):
            probabilities = self.predict(pictures, all_cores=all_cores)
            if probabilities.shape != (2, len(self.classes)):
                raise ValueError(f"probabilities of shape {probabilities.shape} for {len(self.classes)} classes")
            # What is not finite does not add up to 1 either.
            if probabilities.min() < 0 or not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
                raise ValueError("the probabilities of a generated picture do not add up to 1")


def file_for(path: Path, precision: Precision) -> Path:
    """A version's file for a precision: that of float32 for bf16 as well, the others beside it."""
    return path if precision in ("fp32", "bf16") else path.with_name(f"{path.stem}-{precision}{path.suffix}")

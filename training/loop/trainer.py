"""Trainer: the loop, validation, checkpoints, resume."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from serving.model.cpus import cpus
from serving.model.errors import UserError
from training.data.augmentation import AlbumentationsDataset, epoch_seed
from training.data.pictures import Pictures
from training.loop import cpu
from training.loop.checkpoint import Checkpoints, State, Tensors, flatten_optimizer, unflatten_optimizer
from training.loop.features import Features, augmented_features, plain_features
from training.loop.processes import copy_buffers_from_first, join
from training.model.classifier import ImageClassifier
from training.progress import progress
from training.settings import TrainerSettings

log = logging.getLogger(__name__)

# What a checkpoint holds of the trainer itself.
PROGRESS = ("epoch", "best_epoch", "best_accuracy")


@dataclass
class Epoch:
    """What one epoch came to: metrics by name, and the loss of every step of it by the step's number."""

    number: int
    metrics: dict[str, float]
    losses: dict[int, float] = field(default_factory=dict)


class Trainer:
    """Fine-tunes a classifier.

    It ends with the weights of the epoch with the best validation accuracy where there are checkpoints, else with those
    of the last. An epoch's batches, augmentation and dropout follow from the seed and its number alone, so training
    that was killed and resumed ends with the weights of training that was not.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        model: ImageClassifier,
        train: AlbumentationsDataset,
        validation: Pictures,
        seed: int,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.settings = settings
        self.classifier = model
        self.train_set = train
        self.validation_set: Pictures | Features = validation
        self.seed = seed
        self.checkpoints = checkpoints
        processes = join().num_processes
        if settings.batch_size % processes:
            raise UserError(f"trainer.batch_size={settings.batch_size} can't be shared evenly by {processes} processes")
        self.batch_size = min(settings.batch_size, len(train) // processes * processes)
        if not self.batch_size:
            raise UserError(f"{len(train)} training pictures are too few for {processes} processes")
        self.steps = len(train) // self.batch_size  # of an epoch
        self.generator = torch.Generator()
        self.num_workers = min(settings.num_workers, cpus())
        classes = int(model.head[-1].out_features)  # type: ignore[arg-type]
        balanced = settings.class_balance == "loss"
        self.class_weights = class_weights(train.pictures.labels, classes) if balanced else None

        cpu.keep_freed_memory()
        AcceleratorState._reset_state()  # the candidates of one process may differ in precision
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision=_precision(settings.precision),
            gradient_accumulation_steps=settings.accumulate_batches,
            # The processes share the batches out among them, so their number does not change what is learnt.
            dataloader_config=DataLoaderConfiguration(split_batches=True),
        )
        if self.accelerator.device.type == "cpu" and self.accelerator.mixed_precision == "bf16":
            cpu.depthwise_in_float32(model)
        network: nn.Module = model.head if settings.freeze_backbone else model
        if not settings.freeze_backbone:
            freeze(model, settings.frozen_stages)
        optimizer = create_optimizer_v2(network, settings.optimizer, lr=settings.lr, weight_decay=settings.weight_decay)
        if self.accelerator.num_processes > 1 and self.accelerator.device.type == "cuda":
            network = convert_sync_batchnorm(network)  # PyTorch's own would drop the activations in timm's layers
        self.model, self.optimizer = self.accelerator.prepare(network, optimizer)
        if settings.compile:
            self.model.compile()
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer,
            settings.scheduler,
            num_epochs=settings.epochs,
            warmup_epochs=settings.warmup_epochs,  # type: ignore[arg-type]  # timm takes fractions as well
            step_on_epochs=False,
            updates_per_epoch=self.steps,
        )

        self.epoch = 0
        self.best_epoch = 0
        self.best_accuracy = -1.0

    def fit(self) -> Iterator[Epoch]:
        """Trains the epochs that are left, yielding what each came to; ends with the best epoch's weights.

        It has resumed when it returns, and `torch.get_num_threads()` are the run's.
        """
        self._resume()
        return self._epochs()

    def _epochs(self) -> Iterator[Epoch]:
        start = time.perf_counter()
        loader = self._loader()
        feature_seconds = time.perf_counter() - start
        while self.epoch < self.settings.epochs:
            self.epoch += 1
            epoch = self._train_epoch(loader)
            epoch.metrics["validation_accuracy"] = accuracy = self._validate()
            if self.settings.freeze_backbone:
                epoch.metrics["feature_seconds"] = feature_seconds  # once for all epochs
            if accuracy >= self.best_accuracy:  # of equal ones the later, which has learnt more
                self.best_epoch, self.best_accuracy = self.epoch, accuracy
            # The caller has recorded the epoch before its checkpoint says that it is done.
            yield epoch
            if self.checkpoints and self.accelerator.is_main_process:
                self.checkpoints.save(self.epoch, self.best_epoch, *self.state_dict())
            self.accelerator.wait_for_everyone()
        if self.checkpoints and self.best_epoch != self.epoch:
            self.classifier.load_state_dict(self.checkpoints.load(self.best_epoch)[0]["model"])
        self.accelerator.wait_for_everyone()
        # After the last epoch the classifier answers in float32; unwrapping it before would end mixed precision.
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    def _loader(self) -> DataLoader:
        """Batches of augmented pictures, or of what a frozen backbone makes of them."""
        train_set: AlbumentationsDataset | Features = self.train_set
        if self.settings.freeze_backbone:
            self.train_set.set_seed(epoch_seed(self.seed, 0))
            self.classifier.to(self.accelerator.device)
            with self.accelerator.autocast():
                train_set = augmented_features(self.classifier, self.train_set, self.batch_size, self.num_workers)
                if isinstance(self.validation_set, Pictures):
                    self.validation_set = plain_features(self.classifier, self.validation_set, self.batch_size)
        loader = DataLoader(
            train_set,
            self.batch_size,
            shuffle=True,
            generator=self.generator,
            num_workers=self.num_workers,
            drop_last=True,  # batch norm can't learn from a last batch of one
        )
        prepared: DataLoader = self.accelerator.prepare(loader)
        return prepared

    def _train_epoch(self, loader: DataLoader) -> Epoch:
        seed = epoch_seed(self.seed, self.epoch)
        self.generator.manual_seed(seed)
        torch.manual_seed(epoch_seed(seed, self.accelerator.process_index))  # of dropout
        self.train_set.set_seed(seed)
        train_mode(self.model)

        weights = None if self.class_weights is None else self.class_weights.to(self.accelerator.device)
        first_step = (self.epoch - 1) * self.steps
        losses: list[Tensor] = []
        start = time.perf_counter()
        for step, (images, labels) in enumerate(progress(loader, f"epoch {self.epoch}"), first_step):
            self.scheduler.step_update(step)
            with self.accelerator.accumulate(self.model):
                loss = F.cross_entropy(
                    self.model(images), labels, weights, label_smoothing=self.settings.label_smoothing
                )
                self.accelerator.backward(loss * self._share(step - first_step))
                if self.settings.clip_grad_norm and self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss.detach())
        seconds = time.perf_counter() - start

        copy_buffers_from_first(self.model)
        values = self.accelerator.reduce(torch.stack(losses), "mean").tolist()
        if not all(value == value for value in values):
            raise UserError(
                f"the loss is not a number in epoch {self.epoch}; try a smaller trainer.lr, or trainer.precision=no"
            )
        metrics = {
            "train_loss": sum(values) / len(values),
            "train_seconds": seconds,
            "images_per_second": len(values) * self.batch_size / seconds,
            "lr": self.optimizer.param_groups[-1]["lr"],
        }
        return Epoch(self.epoch, metrics, dict(enumerate(values, first_step)))

    def _share(self, batch: int) -> float:
        """What a batch's loss counts more in an epoch's last step, for which too few batches may be left."""
        together = self.settings.accumulate_batches
        first = batch // together * together
        return together / min(together, self.steps - first)

    @torch.inference_mode()
    def _validate(self) -> float:
        model = self.accelerator.unwrap_model(self.model)  # for what is wrapped around it counts on equal shares
        model.eval()
        correct = torch.zeros((), dtype=torch.int64, device=self.accelerator.device)
        batches = self.validation_set.batches(self.batch_size)
        for indices, inputs in islice(batches, self.accelerator.process_index, None, self.accelerator.num_processes):
            logits = model(torch.as_tensor(inputs, device=self.accelerator.device))
            labels = torch.as_tensor(self.validation_set.labels[indices], device=self.accelerator.device)
            correct += (logits.argmax(1) == labels).sum()
        return int(self.accelerator.reduce(correct)) / len(self.validation_set)

    def _resume(self) -> None:
        if not self.checkpoints:
            return
        if self.settings.resume == "never":
            if self.accelerator.is_main_process:
                self.checkpoints.forget_epochs()
            self.accelerator.wait_for_everyone()
            return
        if (last := self.checkpoints.last_epoch()) is not None:
            self.load_state_dict(*self.checkpoints.load(last))
            log.info("resuming from the checkpoint of epoch %d", last)

    def state_dict(self) -> tuple[Tensors, State]:
        """All that the next epoch depends on."""
        tensors, optimizer = flatten_optimizer(self.optimizer.state_dict())
        rest = {name: getattr(self, name) for name in PROGRESS} | {"threads": torch.get_num_threads()}
        return {"model": self.classifier.state_dict(), "optimizer": tensors}, {**rest, "optimizer": optimizer}

    def load_state_dict(self, tensors: Tensors, rest: State) -> None:
        """The inverse of `state_dict`; the threads are taken where so many CPUs are given."""
        cpu.take_threads(rest.get("threads"))
        self.classifier.load_state_dict(tensors["model"])
        self.optimizer.load_state_dict(unflatten_optimizer(tensors["optimizer"], rest["optimizer"]))
        for name in PROGRESS:
            setattr(self, name, rest[name])


def _precision(name: str) -> str:
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if cpu.has_bf16() else "no"


def class_weights(labels: np.ndarray, classes: int) -> Tensor:
    """What a picture of each class counts, float32 (classes,): inversely to how many there are, 1 on average."""
    counts = torch.as_tensor(np.bincount(labels, minlength=classes))
    weights = len(labels) / ((counts > 0).sum() * counts)
    return weights.masked_fill(counts == 0, 0)


def freeze(model: ImageClassifier, stages: int) -> None:
    """Takes the parameters of the backbone's first stages out of training."""
    for names in model.stages()[:stages]:
        for name in names:
            model.backbone.get_parameter(name).requires_grad_(False)


def train_mode(model: nn.Module) -> None:
    """`model.train()`, but for frozen layers, whose batch statistics and dropout stay as they are."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()

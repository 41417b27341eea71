"""Trainer: the loop, validation, checkpoints, resume."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from training.checkpoint import Checkpoints, State, flatten_optimizer, unflatten_optimizer
from training.data import AlbumentationsDataset, Pictures, epoch_seed
from training.errors import UserError
from training.features import Features, features_of
from training.memory import keep_freed_memory
from training.models import CIFARClassifier
from training.progress import progress
from training.settings import TrainerSettings

log = logging.getLogger(__name__)


@dataclass
class Epoch:
    """What one epoch came to: metrics by name, and the loss of every step of it by the step's number."""

    number: int
    metrics: dict[str, float]
    losses: dict[int, float] = field(default_factory=dict)


class Trainer:
    """Fine-tunes a classifier, keeping the weights of the epoch with the best validation accuracy
    where there are checkpoints, else those of the last.

    An epoch's batches, augmentation and dropout follow from the seed and its number alone, so training that was
    killed and resumed ends with the weights of training that was not.

    Args:
        config: the `trainer` group.
        checkpoints: where to write them, and to go on from; None: nowhere.
    """

    def __init__(
        self,
        config: TrainerSettings,
        model: CIFARClassifier,
        train: AlbumentationsDataset,
        validation: Pictures,
        seed: int,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.config = config
        self.seed = seed
        self.checkpoints = checkpoints
        if config.optimizer not in list_optimizers():
            raise UserError(f"trainer.optimizer={config.optimizer}: choose one of timm's, such as adam, adamw or sgd")
        keep_freed_memory()
        AcceleratorState._reset_state()  # the candidates of one process may differ in precision
        self.accelerator = Accelerator(
            mixed_precision=_precision(config.precision),
            gradient_accumulation_steps=config.accumulate_batches,
            # The processes share the batches out among them, so their number does not change what is learnt.
            dataloader_config=DataLoaderConfiguration(split_batches=True),
        )

        if self.accelerator.device.type == "cpu" and self.accelerator.mixed_precision == "bf16":
            depthwise_in_float32(model)
        self.batch_size = min(config.batch_size, len(train))
        self.classifier = model
        self.train_set: AlbumentationsDataset | Features = train
        self.validation_set: Pictures | Features = validation
        network: nn.Module = model
        start = time.perf_counter()
        if config.freeze_backbone:
            train.set_seed(epoch_seed(seed, 0))
            model.to(self.accelerator.device)
            with self.accelerator.autocast():
                self.train_set = features_of(model, train, self.batch_size, config.num_workers)
                self.validation_set = features_of(model, validation, self.batch_size)
            network = model.head
        else:
            freeze(model, config.frozen_stages)
        self.feature_seconds = time.perf_counter() - start
        self.generator = torch.Generator()
        loader = DataLoader(
            self.train_set,
            self.batch_size,
            shuffle=True,
            generator=self.generator,
            num_workers=config.num_workers,
            drop_last=True,  # batch norm can't learn from a last batch of one
        )
        optimizer = create_optimizer_v2(network, config.optimizer, lr=config.lr, weight_decay=config.weight_decay)
        if self.accelerator.num_processes > 1 and self.accelerator.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(network, optimizer, loader)
        if config.compile:
            self.model.compile()
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer,
            config.scheduler,
            num_epochs=config.epochs,
            warmup_epochs=config.warmup_epochs,  # type: ignore[arg-type]  # timm takes fractions as well
            step_on_epochs=False,
            updates_per_epoch=len(self.loader),
        )

        self.epoch = 0
        self.best_epoch = 0
        self.best_accuracy = -1.0

    def fit(self) -> Iterator[Epoch]:
        """Trains the epochs that are left, yielding what each came to; ends with the best epoch's weights."""
        self._resume()
        while self.epoch < self.config.epochs:
            self.epoch += 1
            epoch = self._train_epoch()
            epoch.metrics["validation_accuracy"] = accuracy = self._validate()
            if accuracy > self.best_accuracy:
                self.best_epoch, self.best_accuracy = self.epoch, accuracy
            # The caller has recorded the epoch before its checkpoint says that it is done.
            yield epoch
            if self.checkpoints and self.accelerator.is_main_process:
                self.checkpoints.save(self.epoch, self.best_epoch, *self.state_dict())
            self.accelerator.wait_for_everyone()
        if self.checkpoints and self.best_epoch != self.epoch:
            self.classifier.load_state_dict(self.checkpoints.tensors(self.best_epoch, "model"))
        self.accelerator.wait_for_everyone()
        # Behind the last epoch the classifier answers in float32; unwrapping it before would end mixed precision.
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    def _train_epoch(self) -> Epoch:
        seed = epoch_seed(self.seed, self.epoch)
        torch.manual_seed(seed)
        self.generator.manual_seed(seed)
        self.train_set.set_seed(epoch_seed(seed, self.accelerator.process_index))
        train_mode(self.model)

        first_step = (self.epoch - 1) * len(self.loader)
        losses: list[Tensor] = []
        start = time.perf_counter()
        for step, (images, labels) in enumerate(progress(self.loader, f"epoch {self.epoch}"), first_step):
            self.scheduler.step_update(step)
            with self.accelerator.accumulate(self.model):
                loss = F.cross_entropy(self.model(images), labels, label_smoothing=self.config.label_smoothing)
                self.accelerator.backward(loss)
                if self.config.clip_grad_norm and self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss.detach())
        seconds = time.perf_counter() - start
        if self.epoch == 1:
            seconds += self.feature_seconds  # what training on features costs

        values = torch.stack(losses).tolist()
        if not all(value == value for value in values):
            raise UserError(
                f"the loss is not a number in epoch {self.epoch}; try a smaller trainer.lr, or precision=no"
            )
        metrics = {
            "train_loss": sum(values) / len(values),
            "train_seconds": seconds,
            "images_per_second": len(values) * self.batch_size / seconds,
            "lr": self.optimizer.param_groups[-1]["lr"],
        }
        return Epoch(self.epoch, metrics, dict(enumerate(values, first_step)))

    @torch.inference_mode()
    def _validate(self) -> float:
        self.model.eval()
        correct = 0
        for indices, inputs in self.validation_set.batches(self.batch_size):
            logits = self.model(torch.as_tensor(inputs, device=self.accelerator.device))
            correct += int((logits.argmax(1).cpu().numpy() == self.validation_set.labels[indices]).sum())
        return correct / len(self.validation_set)

    def _resume(self) -> None:
        if self.config.resume == "never" or not self.checkpoints:
            return
        if (last := self.checkpoints.last_epoch()) is not None:
            names = ("model", "optimizer")
            self.load_state_dict(
                {name: self.checkpoints.tensors(last, name) for name in names}, self.checkpoints.rest(last)
            )
            log.info("going on from the checkpoint of epoch %d", last)

    def state_dict(self) -> tuple[dict[str, dict[str, Tensor]], State]:
        """All that the next epoch depends on: tensors by file and name, and what JSON can hold."""
        tensors, optimizer = flatten_optimizer(self.optimizer.state_dict())
        rest = {
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_accuracy": self.best_accuracy,
            "optimizer": optimizer,
        }
        return {"model": self.classifier.state_dict(), "optimizer": tensors}, rest

    def load_state_dict(self, tensors: dict[str, dict[str, Tensor]], rest: State) -> None:
        """The inverse of `state_dict`."""
        self.classifier.load_state_dict(tensors["model"])
        self.optimizer.load_state_dict(unflatten_optimizer(tensors["optimizer"], rest["optimizer"]))
        self.epoch, self.best_epoch = rest["epoch"], rest["best_epoch"]
        self.best_accuracy = rest["best_accuracy"]


def _precision(name: str) -> str:
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"


def depthwise_in_float32(model: nn.Module) -> None:
    """Takes depthwise convolutions out of bf16 autocast.

    On a CPU oneDNN's bf16 backward of 5x5 and of strided ones takes three to fifteen times as long as in float32.
    """

    def in_float32(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(pixels: Tensor) -> Tensor:
            with torch.autocast(pixels.device.type, enabled=False):
                return forward(pixels.float()).to(pixels.dtype)

        return run

    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.forward = in_float32(module.forward)  # type: ignore[assignment]


def freeze(model: CIFARClassifier, stages: int) -> None:
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

"""Trainer: the loop, validation, checkpoints, resume."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration
from timm.layers import convert_sync_batchnorm
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from serving.model.errors import UserError
from training.data.augmentation import AlbumentationsDataset, Shuffled, epoch_seed
from training.data.pictures import Pictures
from training.loop.checkpoint import Checkpoints, State, Tensors, flatten_optimizer, unflatten_optimizer
from training.loop.features import Features, augmented_features, plain_features
from training.loop.optimization import AveragedWeights, Loss, build_optimizer, build_schedule, freeze, train_mode
from training.machine.devices import depthwise_in_float32, precision, prepare, take_threads, workers
from training.machine.processes import copy_buffers_from_first, join
from training.model.classifier import ImageClassifier
from training.progress import progress
from training.settings import TrainerSettings

log = logging.getLogger(__name__)

# What a checkpoint holds of the trainer itself.
PROGRESS = ("epoch", "best_epoch", "best_accuracy", "improved", "total_steps")
WARM_UP_STEPS = 2  # in which kernels are chosen and memory is allocated
MEASURED_SHARE = 0.03  # of a time budget, for the steps by which it becomes a number of steps


@dataclass
class Epoch:
    """What one epoch came to: metrics by name, and the loss of every step of it by the step's number."""

    number: int
    metrics: dict[str, float]
    losses: dict[int, float] = field(default_factory=dict)


def steps_within(seconds: float, step: float, after_epoch: float, steps_of_epoch: int) -> int:
    """The steps that take so long together with what comes after each epoch; all in seconds."""
    epochs, rest = divmod(seconds, steps_of_epoch * step + after_epoch)
    return int(epochs) * steps_of_epoch + max(0, int((rest - after_epoch) / step))


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
        evaluation_batch_size: int | None = None,
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
        together = 2 * processes if settings.mixes else processes  # pictures are mixed in pairs
        self.batch_size = min(settings.batch_size, len(train) // together * together)
        if not self.batch_size:
            raise UserError(f"{len(train)} training pictures are too few for {processes} processes")
        self.steps = len(train) // self.batch_size  # of an epoch
        self.evaluation_batch_size = evaluation_batch_size or self.batch_size
        self.num_workers = workers(settings.num_workers)

        prepare()
        AcceleratorState._reset_state()  # the candidates of one process may differ in precision
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision=precision(settings.precision),
            gradient_accumulation_steps=settings.accumulate_batches,
            # The processes share the batches out among them, so their number does not change what is learnt.
            dataloader_config=DataLoaderConfiguration(split_batches=True, non_blocking=True),
        )
        self.device = self.accelerator.device
        self.loss = Loss(settings, train.pictures.labels, int(model.head[-1].out_features), self.device)  # type: ignore[arg-type]
        if self.device.type == "cpu" and self.accelerator.mixed_precision == "bf16":
            depthwise_in_float32(model)
        model.preprocessing.training_size = settings.image_size
        network: nn.Module = model.head if settings.freeze_backbone else model
        if not settings.freeze_backbone:
            freeze(model, settings.frozen_stages)
        self.average = AveragedWeights(network, settings.ema).to(self.device) if settings.ema else None
        optimizer = build_optimizer(settings, network)
        if processes > 1 and self.device.type == "cuda":
            network = convert_sync_batchnorm(network)  # PyTorch's own would drop the activations in timm's layers
        self.model, self.optimizer = self.accelerator.prepare(network, optimizer)
        if settings.compile:
            torch.compiler.reset()  # of what other candidates have compiled, of which there may be so many
            self.model.compile()

        self.scheduler: Scheduler | None = None
        self.epoch = 0
        self.best_epoch = 0
        self.best_accuracy = -1.0
        self.improved = 0  # the last epoch with a better validation accuracy than all before
        self.total_steps = settings.steps or settings.epochs * self.steps

    @property
    def epochs(self) -> int:
        """How many there will be, unless it stops early; the last may be a part of one."""
        return math.ceil(self.total_steps / self.steps)

    def fit(self) -> Iterator[Epoch]:
        """Trains the epochs that are left, yielding what each came to; ends with the best epoch's weights.

        It has resumed when it returns, a time budget has become `total_steps`, and `torch.get_num_threads()` are the
        run's.
        """
        self._resume()
        start = time.perf_counter()
        sampler, loader = self._loader()
        feature_seconds = time.perf_counter() - start
        if self.settings.compile:
            self._rehearse(sampler, loader, WARM_UP_STEPS)
        if self.settings.minutes and not self.epoch:
            self.total_steps = self._affordable(self.settings.minutes, start, sampler, loader)
        self.scheduler = build_schedule(self.settings, self.optimizer, self.total_steps, self.steps)
        return self._epochs(sampler, loader, feature_seconds)

    def _epochs(self, sampler: Shuffled, loader: DataLoader, feature_seconds: float) -> Iterator[Epoch]:
        while self.epoch < self.epochs and not self._stops_early():
            self.epoch += 1
            epoch = self._train_epoch(sampler, loader)
            epoch.metrics["validation_accuracy"] = accuracy = self._validate()
            if self.settings.freeze_backbone:
                epoch.metrics["feature_seconds"] = feature_seconds  # once for all epochs
            if accuracy > self.best_accuracy:
                self.improved = self.epoch
            if accuracy >= self.best_accuracy:  # of equal ones the later, which has learnt more
                self.best_epoch, self.best_accuracy = self.epoch, accuracy
            # The caller has recorded the epoch before its checkpoint says that it is done.
            yield epoch
            if self.checkpoints and self.accelerator.is_main_process:
                self.checkpoints.save(self.epoch, self.best_epoch, *self.state_dict())
            self.accelerator.wait_for_everyone()
        if self.checkpoints and self.best_epoch != self.epoch:
            self._load_weights(self.checkpoints.load(self.best_epoch, but="optimizer")[0])
        if self.average:
            self.average.exchange(self.accelerator.unwrap_model(self.model))
        self.accelerator.wait_for_everyone()
        # After the last epoch the classifier answers in float32; unwrapping it before would end mixed precision.
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    def _stops_early(self) -> bool:
        patience = self.settings.early_stopping
        if not patience or self.epoch - self.improved < patience:
            return False
        log.info("stopping after epoch %d: none since epoch %d was better", self.epoch, self.improved)
        return True

    def _loader(self) -> tuple[Shuffled, DataLoader]:
        """Batches of augmented pictures, or of what a frozen backbone makes of them."""
        train_set: AlbumentationsDataset | Features = self.train_set
        num_workers = self.num_workers
        if self.settings.freeze_backbone:
            self.train_set.set_seed(epoch_seed(self.seed, 0))
            self.classifier.to(self.device)
            with self.accelerator.autocast():
                train_set = augmented_features(self.classifier, self.train_set, self.evaluation_batch_size, num_workers)
                if isinstance(self.validation_set, Pictures):
                    self.validation_set = plain_features(
                        self.classifier, self.validation_set, self.evaluation_batch_size
                    )
            num_workers = 0  # what is left to read lies in memory
        sampler = Shuffled(len(train_set))
        loader = DataLoader(
            train_set,
            self.batch_size,
            sampler=sampler,
            generator=torch.Generator(),  # else workers take their seed from that of dropout
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=self.device.type == "cuda",
            drop_last=True,  # batch norm can't learn from a last batch of one
        )
        prepared: DataLoader = self.accelerator.prepare(loader)
        return sampler, prepared

    def _train_epoch(self, sampler: Shuffled, loader: DataLoader) -> Epoch:
        first_step = (self.epoch - 1) * self.steps
        sampler.take(min(self.steps, self.total_steps - first_step) * self.batch_size)
        self._seed(sampler, self.epoch)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        losses, waited = self._train_steps(loader, first_step)
        copy_buffers_from_first(self.model)
        if self.average:
            copy_buffers_from_first(self.average)
        values = self.accelerator.reduce(torch.stack(losses), "mean").tolist()
        seconds = time.perf_counter() - start
        if not all(value == value for value in values):
            raise UserError(
                f"the loss is not a number in epoch {self.epoch}; try a smaller trainer.lr, or trainer.precision=no"
            )
        metrics = {
            "train_loss": sum(values) / len(values),
            "train_seconds": seconds,
            "images_per_second": len(values) * self.batch_size / seconds,
            "input_share": waited / seconds,  # of the time, that the loop waited for pictures
            "lr": self.optimizer.param_groups[-1]["lr"],
        }
        if self.device.type == "cuda":
            metrics["peak_device_gigabytes"] = torch.cuda.max_memory_allocated() / 1e9
        return Epoch(self.epoch, metrics, dict(enumerate(values, first_step)))

    def _seed(self, sampler: Shuffled, epoch: int) -> None:
        """Makes all that is random a function of the run's seed and the epoch."""
        sampler.seed = seed = epoch_seed(self.seed, epoch)
        self.train_set.set_seed(seed)
        own = epoch_seed(seed, self.accelerator.process_index)
        torch.manual_seed(own)  # of dropout
        np.random.seed(own)

    def _train_steps(self, loader: DataLoader, first_step: int) -> tuple[list[Tensor], float]:
        """A pass over the loader; returns the losses, still on the device, and the seconds that pictures took to come.

        Nothing in it waits for a GPU, which is given step after step ahead of time.
        """
        train_mode(self.model)
        network = self.accelerator.unwrap_model(self.model)
        batches, losses = len(loader), list[Tensor]()
        waited = 0.0
        asked = time.perf_counter()
        for step, (images, labels) in enumerate(progress(loader, f"epoch {self.epoch}"), first_step):
            waited += time.perf_counter() - asked
            if self.scheduler:
                self.scheduler.step_update(step)
            with self.accelerator.accumulate(self.model):
                loss = self.loss(self.model, images, labels)
                self.accelerator.backward(loss * self._share(step - first_step, batches))
                if self.settings.clip_grad_norm and self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            if self.average and self.accelerator.sync_gradients:
                self.average.update(network, step // self.settings.accumulate_batches + 1)
            losses.append(loss.detach())
            asked = time.perf_counter()
        return losses, waited

    def _rehearse(self, sampler: Shuffled, loader: DataLoader, steps: int) -> float:
        """Trains so many steps, or an epoch's, and undoes what they changed; returns the seconds of one."""
        before = deepcopy(self.state_dict())
        sampler.take(steps * self.batch_size)
        self._seed(sampler, 0)
        start = time.perf_counter()
        losses, _ = self._train_steps(loader, 0)
        losses[-1].item()  # waits for a GPU
        seconds = (time.perf_counter() - start) / len(losses)
        self.load_state_dict(*before)
        return seconds

    def _affordable(self, minutes: float, start: float, sampler: Shuffled, loader: DataLoader) -> int:
        """The steps that fit into what is left of so many minutes, with a validation and a checkpoint after each epoch.

        Raises UserError where nothing is left.
        """

        def slowest(seconds: float) -> float:  # of the processes, which must agree
            everyone = self.accelerator.gather(torch.tensor([seconds], device=self.device))
            return float(everyone.max())

        warm_up = slowest(self._rehearse(sampler, loader, WARM_UP_STEPS))
        step = slowest(self._rehearse(sampler, loader, max(1, int(MEASURED_SHARE * 60 * minutes / warm_up))))
        if self.settings.compile:
            self._validate()  # which compiles once what it then runs
        began = time.perf_counter()
        self._validate()
        if self.checkpoints and self.accelerator.is_main_process:
            self.checkpoints.rehearse(*self.state_dict())
        after_epoch = slowest(time.perf_counter() - began)
        gone = slowest(time.perf_counter() - start)
        steps = steps_within(60 * minutes - gone, step, after_epoch, self.steps)
        if steps < 1:
            raise UserError(
                f"trainer.minutes={minutes:g}: {gone:.3g} s went by before the first step; one takes {step:.3g} s, and "
                f"its validation {after_epoch:.3g} s\nGive it more minutes."
            )
        log.info("%.3g minutes are %d steps of %.3g s each", minutes, steps, step)
        return steps

    def _share(self, batch: int, batches: int) -> float:
        """What a batch's loss counts more in an epoch's last step, for which too few batches may be left."""
        together = self.settings.accumulate_batches
        first = batch // together * together
        return together / min(together, batches - first)

    def _validate(self) -> float:
        """The accuracy of what training would end with: of the averaged weights where they are averaged."""
        model = self.accelerator.unwrap_model(self.model)  # for what is wrapped around it counts on equal shares
        model.eval()
        with self.average.in_place_of(model) if self.average else nullcontext(), torch.inference_mode():
            correct = torch.zeros((), dtype=torch.int64, device=self.device)
            batches = self.validation_set.batches(self.evaluation_batch_size)
            processes = self.accelerator.num_processes
            for indices, inputs in islice(batches, self.accelerator.process_index, None, processes):
                logits = model(torch.as_tensor(inputs, device=self.device))
                labels = torch.as_tensor(self.validation_set.labels[indices], device=self.device)
                correct += (logits.argmax(1) == labels).sum()
            return int(self.accelerator.reduce(correct)) / len(self.validation_set)

    def _resume(self) -> None:
        if not self.checkpoints:
            return
        if self.settings.resume == "never" and self.accelerator.is_main_process:
            self.checkpoints.forget_epochs()
        self.accelerator.wait_for_everyone()  # the main process has just fetched them, or forgotten
        if (last := self.checkpoints.last_epoch()) is not None:
            self.load_state_dict(*self.checkpoints.load(last))
            log.info("resuming from the checkpoint of epoch %d", last)

    def state_dict(self) -> tuple[Tensors, State]:
        """All that the next epoch depends on."""
        tensors, optimizer = flatten_optimizer(self.optimizer.state_dict())
        rest = {name: getattr(self, name) for name in PROGRESS}
        rest |= {"threads": torch.get_num_threads(), "processes": self.accelerator.num_processes}
        if self.accelerator.scaler:
            rest["scaler"] = self.accelerator.scaler.state_dict()
        average = {"average": self.average.module.state_dict()} if self.average else {}
        return (
            {"model": self.classifier.state_dict(), "optimizer": tensors, **average},
            {**rest, "optimizer": optimizer},
        )

    def load_state_dict(self, tensors: Tensors, rest: State) -> None:
        """The inverse of `state_dict`; the threads are taken where so many CPUs are given to as many processes."""
        processes = self.accelerator.num_processes
        if (before := rest.get("processes", processes)) == processes:
            take_threads(rest.get("threads"))
        else:
            log.warning(
                "processes: this run began with %d and goes on with %d, so its weights may differ", before, processes
            )
        self._load_weights(tensors)
        self.optimizer.load_state_dict(unflatten_optimizer(tensors["optimizer"], rest["optimizer"]))
        if self.accelerator.scaler and "scaler" in rest:
            self.accelerator.scaler.load_state_dict(rest["scaler"])
        for name in PROGRESS:
            setattr(self, name, rest[name])

    def _load_weights(self, tensors: Tensors) -> None:
        self.classifier.load_state_dict(tensors["model"])
        if self.average:
            self.average.module.load_state_dict(tensors["average"])

"""What few pictures change, such as the head alone and more epochs: decided once, from counts and settings alone.

The numbers stand in the experiments, such as conf/experiment/quick.yaml.
"""

import math

from training.model.backbones import own_settings
from training.settings import TrainSettings


def suited(settings: TrainSettings, pictures: int) -> TrainSettings:
    """The settings for so many training pictures, with nothing left to decide.

    The first entry of `small_data` with more pictures in `below` replaces what it names, but for the `image_size` of a
    model that takes pictures of one size only; then there are as many epochs as `trainer.min_steps` needs. Without
    these two it is what it was.
    """
    values = settings.model_dump()
    for entry in settings.small_data:
        if pictures < entry.below:
            if entry.image_size and not own_settings(settings.model.backbone).fixed_size:
                values["model"]["image_size"] = entry.image_size
            values["trainer"] |= entry.trainer
            break
    trainer = values["trainer"]
    if trainer["min_steps"] and not trainer["steps"] and not trainer["minutes"]:
        steps = max(1, pictures // trainer["batch_size"])
        trainer["epochs"] = max(trainer["epochs"], math.ceil(trainer["min_steps"] / steps))
    trainer["min_steps"], values["small_data"] = None, []
    return TrainSettings.model_validate(values)

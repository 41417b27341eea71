"""The precisions that a model may answer in."""

import os
from typing import Literal, cast, get_args

from serving.model.errors import UserError

Precision = Literal["fp32", "bf16", "int8", "fp16"]
Choice = Literal["fp32", "bf16", "int8", "fp16", "auto"]


def chosen() -> Choice:
    """SERVING_PRECISION, or fp32; raises UserError where it is none of them."""
    given = os.environ.get("SERVING_PRECISION") or "fp32"
    if given not in get_args(Choice):
        raise UserError(f"SERVING_PRECISION={given} is not one of {', '.join(get_args(Choice))}")
    return cast(Choice, given)

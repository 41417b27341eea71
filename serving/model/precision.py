"""The precisions that a model may answer in."""

import os
from typing import Literal, cast, get_args

from serving.model.errors import UserError

Precision = Literal["fp32", "bf16", "int8", "fp16"]
Choice = Precision | Literal["auto"]


def chosen() -> Choice:
    """SERVING_PRECISION, or fp32; raises UserError where it is none of them."""
    known = (*get_args(Precision), "auto")
    given = os.environ.get("SERVING_PRECISION") or "fp32"
    if given not in known:
        raise UserError(f"SERVING_PRECISION={given} is not one of {', '.join(known)}")
    return cast(Choice, given)

"""The service of this environment's settings: bentoml serve serving.online.service:Classifier

In a Bento, which `make bento` builds, the model is the file that it holds, unless SERVING_MODEL names another.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

from bentoml import server_context

from serving.model.errors import exit_in_words
from serving.model.registry import SCHEME, existing_file
from serving.online.app import create_service
from serving.settings import load_settings

PR_SET_PDEATHSIG = 1  # of Linux' prctl.h

if server_context.worker_index and sys.platform == "linux":
    # BentoML's worker would outlive a killed `bentoml serve`, and keep its port.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

CODE = Path(__file__).parents[2]
HELD = CODE / "bento.onnx"

in_bento = (CODE.parent / "bento.yaml").is_file() and HELD.is_file()
given = {"model": str(HELD)} if in_bento and not os.environ.get("SERVING_MODEL") else {}
with exit_in_words():
    settings = load_settings(**given)
    if not settings.model.startswith(SCHEME):
        existing_file(settings.model)
Classifier = create_service(settings)

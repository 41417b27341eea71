#!/bin/sh
# Writes model.onnx beside this script: a small model of the digits as the last commit before contract 1 exported it.
#   tests/serving/model/contract_0/make.sh    (in the environment of `make test`)
set -eu
commit=082eb8a
here=$(cd "$(dirname "$0")" && pwd)
checkout=$(mktemp -d)
trap 'git worktree remove --force "$checkout/code"; rm -rf "$checkout"' EXIT
git worktree add --quiet --detach "$checkout/code" "$commit"
cd "$checkout/code"
STATE_DIR="$checkout/state" MLFLOW_TRACKING_URI="sqlite:///$checkout/state/mlflow.db" python - "$here/model.onnx" <<'PYTHON'
import shutil
import sys

from training import registry
from training.config import compose_config
from training.export import export_run
from training.train import train

small = "{stem_width: 4, channels: [8, 12, 16, 24]}"
config = compose_config(
    [
        *("data=digits", "experiment=quick", "model=timm", "model.backbone=resnet10t", "model.weights=none"),
        *(f"+model.backbone_options={small}", "model.image_size=32", "trainer.frozen_stages=0", "trainer.epochs=20"),
    ]
)
run_id = train(config)
version = registry.register(run_id, export_run(run_id))
shutil.copy(registry.onnx_file(registry.version_uri(version)), sys.argv[1])
PYTHON

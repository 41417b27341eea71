"""docs/models.md, from a trial of one model of every family of timm's: python docs/models.py [MODEL ...]

Each family's smallest model, with random weights, makes one training step and is exported, and its ONNX file is asked.
With names it tries just these, and prints what became of them.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

SECONDS = 600
HEADER = """# Models

`model=NAME` takes any of timm's models, at the size and with the normalisation that it was made for. Tried here: the
smallest model of every family in timm {version}, with random weights: one training step in float32, the export to ONNX,
and the file's answers against PyTorch's. Made by `python docs/models.py`.

{works} of the {tried} families that were tried, of {all} there are, train, export and answer alike; those that can't be
exported are refused before training. `trainer.frozen_stages` needs timm to know a model's stages; where it does not,
the whole model or the head alone can be trained.

| family | tried | parameters | size | interpolation | trains | frozen stages | ONNX |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def smallest(family: str) -> str:
    """The model of a family with the fewest parameters."""
    import timm
    import torch

    def parameters(name: str) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in timm.create_model(name).parameters())

    return min(timm.list_models(module=family), key=parameters)


def tried(name: str) -> dict[str, str]:
    """What becomes of a model."""
    import numpy as np
    import torch
    from torch.nn import functional as F

    from training.config import compose
    from training.model.classifier import build_model
    from training.release.export import export_onnx, onnx_classify, parity

    torch.manual_seed(0)
    settings = compose([f"model={name}", "model.weights=none"]).model
    model = build_model(settings, 10)
    size = settings.image_size
    row = {"tried": name, "parameters": f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M", "size": str(size)}
    row |= {"interpolation": settings.interpolation, "trains": "no", "frozen stages": "no", "ONNX": "no"}
    images = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    try:
        optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-3)
        F.cross_entropy(model(images), torch.tensor([0, 1])).backward()
        optimizer.step()
        row["trains"] = "yes"
        try:
            row["frozen stages"] = f"up to {len(model.stages()) - 1}"
        except Exception as error:
            print(f"{name}: {error!r}", file=sys.stderr)
        model.eval()
        with torch.inference_mode():
            expected = model(images).softmax(1).numpy()
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "model.onnx"
            export_onnx(model, path)
            classify = onnx_classify(path)
            answers = classify(images.numpy())
            classify(np.zeros((1, 70, 50, 3), np.uint8))
        row["ONNX"] = "yes" if parity(expected, answers).holds else "other answers"
    except Exception as error:
        print(f"{name}: {' '.join(str(error).split())[-300:]}", file=sys.stderr)
    return row


def in_a_process_of_its_own(name: str) -> dict[str, str]:
    """A crash or an endless loop of a model ends its own trial alone."""
    try:
        result = subprocess.run([sys.executable, __file__, name], stdout=subprocess.PIPE, text=True, timeout=SECONDS)
        return dict(json.loads(result.stdout.splitlines()[-1]))
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        return {"tried": name, "trains": "no: its trial did not end"}


def write(rows: dict[str, dict[str, str]], families: int) -> None:
    """The table of what was tried so far."""
    import timm

    columns = ["tried", "parameters", "size", "interpolation", "trains", "frozen stages", "ONNX"]
    works = sum(row.get("ONNX") == "yes" for row in rows.values())
    lines = [f"| {family} | {' | '.join(row.get(column, '') for column in columns)} |" for family, row in rows.items()]
    header = HEADER.format(version=timm.__version__, works=works, tried=len(rows), all=families)
    (DOCS / "models.md").write_text(header + "\n".join(lines) + "\n")


def main() -> None:
    import timm

    families = [family for family in timm.list_modules() if timm.list_models(module=family)]
    rows = {}
    for family in families:
        rows[family] = in_a_process_of_its_own(smallest(family))
        print(family, rows[family], flush=True)
        write(rows, len(families))


if __name__ == "__main__":
    if sys.argv[1:]:
        for name in sys.argv[1:]:
            print(json.dumps(tried(name)))
    else:
        main()

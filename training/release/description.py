"""What a person reads about a version on MLflow's page."""

import json

from mlflow.entities import Run

from training import tracking

PRECISIONS = "precisions"  # the tag of a run that says what each costs and gains
LONGEST = 5000  # characters, which MLflow's database has room for
DECISION = "\n\n**Decision**: "  # comes last, so that another one can take its place


def description(run: Run, uri: str) -> str:
    """Markdown about a run's model, which is registered as `uri`; without the decision, which comes later."""
    tags, metrics = run.data.tags, run.data.metrics
    classes = json.loads(tracking.artifact(run.info.run_id, tracking.CLASSES_FILE).read_text())
    inputs = run.inputs.dataset_inputs if run.inputs else []
    pictures = {each.tags[0].value: json.loads(str(each.dataset.profile))["pictures"] for each in inputs}
    accuracy, low, high = (metrics[f"test_accuracy{end}"] for end in ("", "_low", "_high"))
    parts = [
        f"{tags['model']}, trained on **{tags['data']}** (fingerprint `{tags['data_fingerprint']}`) at commit "
        f"`{tags['git_commit']}`",
        f"**Pictures**: {', '.join(f'{count} for {split}' for split, count in pictures.items())}",
        f"**Classes** ({len(classes)}): {listed(classes):.1000}",
        f"**Test accuracy**: {accuracy:.2%} [{low:.1%} to {high:.1%}]",
        *([f"**Precisions beside float32**: {tags[PRECISIONS]}."] if tags.get(PRECISIONS) else []),
        f"**Serve it**: `SERVING_MODEL={uri} python -m serving`",
        f'**Load it**:\n```python\nmodel = mlflow.pyfunc.load_model("{uri}")\n'
        "# uint8 (N, height, width, 3) in RGB -> float32 (N, classes)\n"
        'model.predict(model.input_example)["probabilities"]\n```',
    ]
    return with_decision("\n\n".join(parts), "not compared yet")


def with_decision(described: str, words: str) -> str:
    """A version's description with another decision."""
    return f"{described.partition(DECISION)[0]}{DECISION}{words}"[:LONGEST]


def listed(classes: list[str]) -> str:
    return ", ".join(classes[:20]) + (f" and {len(classes) - 20} more" if len(classes) > 20 else "")

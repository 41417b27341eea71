"""The previous champion again: python -m flows.rollback

The command needs nothing but MLflow; as a deployment it is a flow.
"""

from prefect import flow
from prefect.artifacts import create_markdown_artifact

import flows.failures  # noqa: F401  (a mistake reads as one line)
from flows.arguments import run_command
from serving.model.registry import registered_name
from training.release import registry


def restore(name: str = "") -> str:
    """Makes the previous champion the champion again; returns its version.

    Args:
        name: the registered model; empty: MODEL_NAME, or image-classifier.
    """
    return registry.rollback(registered_name(name))


@flow(name="rollback")
def rollback(name: str = "") -> str:
    """Makes the previous champion the champion again; returns its version.

    It is not retried by itself: a second time would go back one further.

    Args:
        name: the registered model; empty: MODEL_NAME, or image-classifier.
    """
    version = restore(name)
    create_markdown_artifact(f"# Version {version} is the champion again", key="rollback")
    return version


if __name__ == "__main__":
    run_command(restore, "python -m flows.rollback")

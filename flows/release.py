"""Promotions again, after a rollback that holds them: python -m flows.release

The command needs nothing but MLflow; as a deployment it is a flow.
"""

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.arguments import run_command
from flows.failures import cancellable
from flows.rollback import lock_everywhere
from serving.model.registry import registered_name
from training.release import registry


def let_through(name: str = "") -> None:
    """Lets promotions through again that a rollback holds.

    Args:
        name: the registered model; empty: MODEL_NAME, or image-classifier.
    """
    print(registry.release(registered_name(name)))


@flow(name="release")
@cancellable
def release(name: str = "") -> str:
    """Lets promotions through again that a rollback holds; returns a sentence about it.

    Args:
        name: the registered model; empty: MODEL_NAME, or image-classifier.
    """
    said = registry.release(registered_name(name), lock_everywhere)
    create_markdown_artifact(said, key="release")
    return said


if __name__ == "__main__":
    run_command(let_through, "python -m flows.release")

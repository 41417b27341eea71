"""The previous champion again: python -m flows.rollback"""

from prefect import flow
from prefect.artifacts import create_markdown_artifact

import flows.failures  # noqa: F401  (a mistake reads as one line)
from flows.arguments import run_command
from training.release import registry


@flow(name="rollback")
def rollback() -> str:
    """Puts the champion back that the present one replaced; returns its version.

    It is not tried again by itself: a second time would go back one further.
    """
    version = registry.rollback()
    create_markdown_artifact(f"# Version {version} is the champion again", key="rollback")
    return version


if __name__ == "__main__":
    run_command(rollback, "python -m flows.rollback")

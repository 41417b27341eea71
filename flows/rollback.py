"""The previous champion again, as `python -m training.registry rollback` does it, from Prefect's page or a schedule."""

from prefect import flow
from prefect.artifacts import create_markdown_artifact

import flows.failures  # noqa: F401  (a mistake reads as one line)
from training import registry


@flow(name="rollback")
def rollback() -> str:
    """Puts the champion back that the present one replaced; returns its version.

    It is not tried again by itself: a second time would go back one further.
    """
    version = registry.rollback()
    create_markdown_artifact(f"# Version {version} is the champion again", key="rollback")
    return version

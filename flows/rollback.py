"""The previous champion again: python -m flows.rollback

The command needs nothing but MLflow; as a deployment it is a flow.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.settings import PREFECT_API_URL

from flows.arguments import run_command
from flows.failures import cancellable
from serving.model.registry import registered_name
from training.release import registry

LIMIT = "champion"  # infra/deploy.sh creates it
SECONDS = 180  # nobody holds it for so long, and a process that died while it did has lost it after 60


@contextmanager
def lock_everywhere(name: str) -> Iterator[None]:
    """The lock of a registered model's aliases in this state directory, and with a Prefect server on all machines.

    Where the server has no such limit, or does not lend it in time, it says so and holds in the state directory alone.
    """
    with registry.state_lock(name), _released(ExitStack()) as held:
        if PREFECT_API_URL.value():
            slot = concurrency(
                LIMIT, timeout_seconds=SECONDS, lease_duration=60, strict=True, raise_on_lease_renewal_failure=False
            )
            try:
                held.enter_context(slot)
            except (ConcurrencySlotAcquisitionError, TimeoutError) as error:
                get_run_logger().warning(
                    f"{error}: the champion of {name} is locked on this machine alone, and not for others\n"
                    f"Create the limit (prefect gcl create {LIMIT} --limit 1), or free it where it is there already "
                    f"(prefect gcl update {LIMIT} --active-slots 0)."
                )
        yield


@contextmanager
def _released(held: ExitStack) -> Iterator[ExitStack]:
    """Gives back what is held in the end; what was done under it stands, also where the server is away by then."""
    try:
        yield held
    finally:
        try:
            held.close()
        except httpx.HTTPError as error:
            get_run_logger().warning(f"{error}: the limit {LIMIT} is given back within a minute")


def restore(name: str = "", hold: bool = False) -> str:
    """Makes the previous champion the champion again; returns its version.

    Args:
        name: the registered model; empty: MODEL_NAME, or image-classifier.
        hold: whether nothing is promoted from then on, until python -m flows.release.
    """
    return registry.rollback(registered_name(name), hold)


@flow(name="rollback")
@cancellable
def rollback(name: str = "", hold: bool = False) -> str:
    """Makes the previous champion the champion again; returns its version.

    It is not retried by itself: a second time would go back one further.

    Args:
        name: the registered model; empty: MODEL_NAME, or image-classifier.
        hold: whether nothing is promoted from then on, until the deployment `release` is run.
    """
    version = registry.rollback(registered_name(name), hold, lock_everywhere)
    said = "Promotions are held until they are released." if hold else ""
    create_markdown_artifact(f"# Version {version} is the champion again\n\n{said}", key="rollback")
    return version


if __name__ == "__main__":
    run_command(restore, "python -m flows.rollback hold=true")

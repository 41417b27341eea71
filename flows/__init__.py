"""What happens, in which order, with which retries and schedules. No machine learning here."""

import asyncio
import logging
import os
from urllib.parse import unquote, urlsplit

from serving.model.errors import without_credentials

# Prefect shows its server's address. A user and a password in it go to where they are not shown, before it is imported.
address = os.environ.get("PREFECT_API_URL", "")
if user := urlsplit(address).netloc.rpartition("@")[0]:
    os.environ |= {"PREFECT_API_URL": without_credentials(address), "PREFECT_API_AUTH_STRING": unquote(user)}

from prefect._internal.concurrency import services  # noqa: E402 - after the address

# What training and serving say of their progress belongs in the flow run's log.
for package in ("training", "serving"):
    logging.getLogger(package).setLevel(logging.INFO)


def _end_prefect_services() -> None:
    """Lets a forked process end with exit code 0.

    Prefect forgets its services in one, but asks each at the exit whether it is done, and fails an assertion where
    nothing says so. A data loader takes such a worker for one that has died, and training fails.
    """
    for service in services._active_services:
        service._done_event = asyncio.Event()
        service._done_event.set()


os.register_at_fork(after_in_child=_end_prefect_services)

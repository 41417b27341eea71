"""What happens, in which order, with which retries and schedules. No machine learning here."""

import logging
import os
from urllib.parse import unquote, urlsplit

from serving.model.errors import without_credentials

# Prefect shows its server's address. A user and a password in it go to where they are not shown, before it is imported.
address = os.environ.get("PREFECT_API_URL", "")
if user := urlsplit(address).netloc.rpartition("@")[0]:
    os.environ |= {"PREFECT_API_URL": without_credentials(address), "PREFECT_API_AUTH_STRING": unquote(user)}

# What training and serving say of their progress belongs in the flow run's log.
for package in ("training", "serving"):
    logging.getLogger(package).setLevel(logging.INFO)

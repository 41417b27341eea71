"""What happens, in which order, with which retries and schedules. No machine learning here."""

import logging

# What training says of its progress belongs in the flow run's log.
logging.getLogger("training").setLevel(logging.INFO)

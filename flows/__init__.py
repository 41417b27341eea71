"""What happens, in which order, with which retries and schedules. No machine learning here."""

import logging

# What training and serving say of their progress belongs in the flow run's log.
for package in ("training", "serving"):
    logging.getLogger(package).setLevel(logging.INFO)

"""The service: answers over HTTP, follows the registry's champion."""

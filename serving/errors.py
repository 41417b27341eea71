"""Why a request is refused, or the service can't start."""


class Refusal(Exception):
    """Becomes a JSON answer with an HTTP status.

    Args:
        status: 4xx or 503.
        code: for programs, in snake_case.
        message: for people, a sentence or two.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class StartError(Exception):
    """The service can't start; says why, and what to do, in one or two lines."""

"""Why a request is refused, or the service can't start."""


class Refusal(Exception):
    """Becomes a JSON answer with an HTTP status.

    Args:
        status: 4xx or 503.
        code: for programs, in snake_case.
        message: for people, a sentence or two.
        headers: of the answer.
    """

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}


class StartError(Exception):
    """The service can't start; says why, and what to do, in one or two lines."""


class ModelError(StartError):
    """There is no such model, or it does not answer as one of ours does."""


class RegistryError(StartError):
    """The registry can't be asked at present."""

"""Bearer tokens: who may ask."""

import hmac
from collections.abc import Sequence

from pydantic import SecretStr

from serving.errors import Refusal

# The page can ask for the token only once it is there.
PAGE = "/ui"


class TokenAuth:
    """Args:
    tokens: without any, everybody may ask.
    public_paths: these need none.
    """

    def __init__(self, tokens: Sequence[SecretStr], public_paths: Sequence[str]) -> None:
        self._tokens = [token.get_secret_value().encode() for token in tokens]
        self._public = {"/", PAGE, *public_paths}

    def check(self, path: str, authorization: bytes) -> None:
        """Raises Refusal 401 where the header `Authorization` holds none of the tokens."""
        if not self._tokens or path in self._public or path.startswith(f"{PAGE}/"):
            return
        scheme, _, token = authorization.partition(b" ")
        # All are compared, each in constant time: how long it takes tells nothing of them.
        matches = [hmac.compare_digest(token.strip(), known) for known in self._tokens]
        if scheme.lower() != b"bearer" or not any(matches):
            message = "This service wants a token: Authorization: Bearer TOKEN." if not token else "The token is wrong."
            raise Refusal(401, "unauthorized", message, {"www-authenticate": "Bearer"})

"""Whether a port can be listened on: python -m serving.port HOST PORT SETTING"""

import socket
import sys

from serving.errors import StartError


def check_port(host: str, port: int, setting: str) -> None:
    """Raises StartError where the port can't be had, naming the setting that changes it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise StartError(
                f"{host}:{port} can't be listened on ({error}); choose another port: {setting}="
            ) from error


if __name__ == "__main__":
    try:
        check_port(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    except StartError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

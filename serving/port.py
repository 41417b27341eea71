"""Whether a port is free: python -m serving.port host=127.0.0.1 port=3000 setting=PORT"""

import socket
import sys

from serving.model.errors import UserError, exit_in_words


def check_port(host: str, port: int, setting: str) -> None:
    """Raises UserError where the port can't be listened on, naming the setting that changes it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            message = f"{host}:{port} can't be listened on ({error}); choose another port: {setting}="
            raise UserError(message) from error


if __name__ == "__main__":
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    with exit_in_words():
        if not given["port"].isdecimal():
            raise UserError(f"{given['setting']}={given['port']} is no port; give a number, such as 3000")
        check_port(given["host"], int(given["port"]), given["setting"])

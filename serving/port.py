"""Where a server listens. Whether a port is free: python -m serving.port host=127.0.0.1 port=3000 setting=PORT"""

import socket
import sys

from serving.model.errors import UserError, exit_in_words


def listen(host: str, port: int, setting: str) -> socket.socket:
    """A socket that listens at a name or an address, of IPv4 or IPv6.

    Raises UserError where the port can't be listened on, naming the setting that changes it.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address, family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise UserError(f"{where} can't be listened on ({error}); choose another port: {setting}=") from error


def check_port(host: str, port: int, setting: str) -> None:
    """Raises UserError where the port can't be listened on."""
    listen(host, port, setting).close()


if __name__ == "__main__":
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    with exit_in_words():
        if not given["port"].isdecimal():
            raise UserError(f"{given['setting']}={given['port']} is no port; give a number, such as 3000")
        check_port(given["host"], int(given["port"]), given["setting"])

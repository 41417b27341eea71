"""Where a server listens. Whether a port is free: python -m serving.port host=127.0.0.1 port=3000 setting=PORT"""

import errno
import socket
import sys

from serving.model.errors import UserError, exit_in_words

ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # IPv6, say, where localhost has an address of it by name alone


def listen(host: str, port: int, setting: str) -> list[socket.socket]:
    """Sockets that listen at all addresses of a name, or at one of IPv4 or IPv6.

    Raises UserError where the port can't be listened on, naming the setting that changes it.
    """
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    listeners: list[socket.socket] = []
    try:
        for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            try:
                listeners.append(socket.create_server(address, family=family, backlog=2048))
            except OSError as error:
                if error.errno not in ABSENT:
                    raise
                absent = error
        if not listeners:
            raise absent
    except (OSError, OverflowError, ValueError) as error:  # ValueError: what is no name
        message = f"{where} can't be listened on ({error}); choose another port, {setting}=, or another address"
        raise UserError(message) from error
    return listeners


def check_port(host: str, port: int, setting: str) -> None:
    """Raises UserError where the port can't be listened on."""
    for listener in listen(host, port, setting):
        listener.close()


if __name__ == "__main__":
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    with exit_in_words():
        if not given["port"].isdecimal():
            raise UserError(f"{given['setting']}={given['port']} is no port; give a number, such as 3000")
        check_port(given["host"], int(given["port"]), given["setting"])

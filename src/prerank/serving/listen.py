"""A socket to listen on, taken before a server says where it is."""

from __future__ import annotations

import socket

from prerank.errors import ConfigError

BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at ``host`` and ``port``.

    Raises:
        ConfigError: the port is taken or not allowed, or the host is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            "cannot listen there",
            where=address(host, port),
            must="an address of this machine and a port that is free",
            got=error.strerror or str(error),
            hint="take another with --port, or end the process that has it",
        ) from None


def address(host: str, port: int) -> str:
    """Return ``http://host:port``, an IPv6 host in brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

"""Sockets to listen at, and what is wrong with an address where there can be none."""

import errno
import socket

from fedray.errors import ClusterError

BACKLOG = 1024  # connections that the kernel holds until they are accepted


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections at an address of this machine.

    port : 0: any that is free.

    Raises
    ------
    ClusterError
        If it cannot: say, because another program does.
    """
    if not 0 <= port < 1 << 16:
        raise ClusterError(f"there is no port {port}", "Take one below 65536")
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, *_, address = min(addresses, key=lambda one: one[0] != socket.AF_INET)
        is_any = address[0] == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(
            address[:2], family=family, backlog=BACKLOG, dualstack_ipv6=is_any
        )
    except OSError as error:
        raise _cannot_listen(error, host, port) from None
    except UnicodeError:  # no name has such labels
        raise _cannot_listen(socket.gaierror(), host, port) from None


def _cannot_listen(error: OSError, host: str, port: int) -> ClusterError:
    number = None if isinstance(error, socket.gaierror) else error.errno
    if number == errno.EADDRINUSE:
        what = f"another program listens at {host}:{port}"
        return ClusterError(what, "Take another --port")
    if number in (errno.EACCES, errno.EPERM):
        what = f"this user may not listen at port {port}"
        return ClusterError(what, "Take a --port above 1023")
    if number in (None, errno.EADDRNOTAVAIL):
        what = f"{host[:80]!r} is no address of this machine"
        hint = "Take --host 127.0.0.1 for this machine alone, 0.0.0.0 for others too"
        return ClusterError(what, hint)
    what = f"cannot listen at {host}:{port}: {error.strerror}"
    return ClusterError(what, "Take another --port")

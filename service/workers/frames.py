"""Frames between a server and its worker processes: pickles whose large buffers travel beside them, uncopied."""

import pickle
import socket
import struct
from typing import Any

import numpy as np

_COUNT = struct.Struct("<I")
_SIZE = struct.Struct("<Q")


def send(connection: socket.socket, value: Any) -> None:
    """Send a value; blocks until the other side has read most of it.

    Raises:
        OSError: the other side is gone.
    """
    buffers: list[pickle.PickleBuffer] = []
    parts = [memoryview(pickle.dumps(value, pickle.HIGHEST_PROTOCOL, buffer_callback=buffers.append))]
    parts += [buffer.raw() for buffer in buffers]
    connection.sendall(_COUNT.pack(len(parts)) + b"".join(_SIZE.pack(part.nbytes) for part in parts))
    for part in parts:
        connection.sendall(part)


def receive(connection: socket.socket) -> Any:
    """The next value that the other side sent.

    Raises:
        EOFError: the other side is gone.
    """
    (count,) = _COUNT.unpack(_read(connection, _COUNT.size))
    sizes = [_SIZE.unpack(_read(connection, _SIZE.size))[0] for _ in range(count)]
    pickled, *buffers = [_read(connection, size) for size in sizes]
    return pickle.loads(pickled, buffers=buffers)


def _read(connection: socket.socket, size: int) -> memoryview:
    # Not a bytearray, which would be filled with zeros while all other threads of the interpreter wait.
    data = np.empty(size, np.uint8).data
    view = data
    while view:
        try:
            got = connection.recv_into(view)
        except ConnectionError:
            got = 0
        if not got:
            raise EOFError
        view = view[got:]
    return data

"""Sends and receives messages over the socket between the daemon and its page process.

A message is its length in four bytes, then msgpack.
"""

import socket
import struct
import time
from typing import TypeVar

import msgspec

from svcproxy.limits import UI_PAGE_BYTES

_LENGTH = struct.Struct(">I")
_CHUNK = 1 << 18

Message = TypeVar("Message")


class ChannelClosedError(Exception):
    """The other process has ended."""


class MalformedMessageError(Exception):
    """The message exceeds the limit or cannot be decoded."""


def send(channel: socket.socket, message: msgspec.Struct, seconds: float) -> None:
    """Send a message.

    Args:
        channel: the connected socket.
        message: the message.
        seconds: how long this may take.

    Raises:
        ChannelClosedError: the other process has ended.
        TimeoutError: it does not read in time.
    """
    data = msgspec.msgpack.encode(message)
    channel.settimeout(seconds)
    try:
        channel.sendall(_LENGTH.pack(len(data)) + data)
    except TimeoutError:
        raise
    except OSError as error:
        raise ChannelClosedError(str(error)) from error


def receive(channel: socket.socket, wanted: type[Message], seconds: float) -> Message:
    """Receive a message.

    Args:
        channel: the connected socket.
        wanted: the type of the message.
        seconds: how long this may take.

    Raises:
        ChannelClosedError: the other process has ended.
        MalformedMessageError: the message is malformed or too long.
        TimeoutError: it does not arrive in time.
    """
    deadline = time.monotonic() + seconds
    (length,) = _LENGTH.unpack(_exactly(channel, _LENGTH.size, deadline))
    if length > UI_PAGE_BYTES:
        raise MalformedMessageError(f"a message of {length} bytes")
    try:
        return msgspec.msgpack.decode(_exactly(channel, length, deadline), type=wanted)
    except msgspec.DecodeError as error:
        raise MalformedMessageError(str(error)) from error


def _exactly(channel: socket.socket, number: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < number:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        channel.settimeout(left)
        try:
            piece = channel.recv(min(_CHUNK, number - len(data)))
        except TimeoutError:
            raise
        except OSError as error:
            raise ChannelClosedError(str(error)) from error
        if not piece:
            raise ChannelClosedError("end of file")
        data += piece
    return bytes(data)

"""Ending a connection whose client does not read."""

import asyncio
import socket
import struct


def drop(transport: asyncio.BaseTransport | None) -> None:
    """Tear a connection down at once. What was sent and not read is not kept, neither here nor in the kernel."""
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if isinstance(transport, asyncio.WriteTransport):
        transport.abort()

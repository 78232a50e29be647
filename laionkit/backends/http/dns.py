"""A DNS client for `--resolver`: A and AAAA questions to one server, UDP first, TCP if cut.

RFC 1035. The system's resolver answers a few hundred names a second; a server near by that is
asked directly answers thousands. It reads no /etc/hosts and trusts no address unchecked: the
caller judges every one.
"""

import asyncio
import ipaddress
import secrets
import socket
import struct

from laionkit.core.errors import ConfigError

PORT = 53
TRIES = 3
WAIT_S = 2.0
_A, _AAAA = 1, 28
_TRUNCATED = 0x0200


class DnsClient:
    """Asks one server. `look_up` has the shape that CheckedResolver takes."""

    def __init__(self, server: str) -> None:
        """`server` is an address, with ``:port`` or ``[address]:port`` where it is not 53."""
        self.address, self.port = split_server(server)

    async def look_up(self, host: str, port: int) -> list[str]:
        """IPv4 addresses, then IPv6 ones. Raises socket.gaierror as the system would."""
        name = host.encode("idna")
        answers = await asyncio.gather(
            self._ask(name, _A), self._ask(name, _AAAA), return_exceptions=True
        )
        found = [address for answer in answers if isinstance(answer, list) for address in answer]
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        if failed and not found:  # some servers fail at AAAA and know A
            raise failed[0]
        return found

    async def _ask(self, name: bytes, kind: int) -> list[str]:
        number = secrets.randbelow(1 << 16)
        question = b"".join(bytes([len(p)]) + p for p in name.split(b".") if p) + b"\0"
        query = struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + question
        query += struct.pack(">2H", kind, 1)
        for _ in range(TRIES):
            try:
                async with asyncio.timeout(WAIT_S):
                    reply = await self._over_udp(query)
                    if struct.unpack_from(">H", reply, 2)[0] & _TRUNCATED:
                        reply = await self._over_tcp(query)
                return read_reply(reply, query, kind)
            except (TimeoutError, OSError) as error:
                if isinstance(error, socket.gaierror):
                    raise
        raise socket.gaierror(socket.EAI_AGAIN, f"no answer from {self.address}")

    async def _over_udp(self, query: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[bytes] = loop.create_future()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _OneReply(reply, query[:2]), remote_addr=(self.address, self.port)
        )
        try:
            transport.sendto(query)
            return await reply
        finally:
            transport.close()

    async def _over_tcp(self, query: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(self.address, self.port)
        try:
            writer.write(struct.pack(">H", len(query)) + query)
            (size,) = struct.unpack(">H", await reader.readexactly(2))
            return await reader.readexactly(size)
        finally:
            writer.close()


class _OneReply(asyncio.DatagramProtocol):
    """Hands over the first datagram that carries the question's number."""

    def __init__(self, reply: "asyncio.Future[bytes]", number: bytes) -> None:
        self.reply, self.number = reply, number

    def datagram_received(self, data: bytes, addr: object) -> None:
        if len(data) >= 12 and data[:2] == self.number and not self.reply.done():
            self.reply.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.reply.done():
            self.reply.set_exception(exc)


def read_reply(reply: bytes, query: bytes, kind: int) -> list[str]:
    """Addresses of the wanted kind in a reply to `query`. Raises socket.gaierror."""
    try:
        number, flags, asked, answered = struct.unpack_from(">4H", reply)
        if number != struct.unpack_from(">H", query)[0] or not flags & 0x8000:
            raise socket.gaierror(socket.EAI_AGAIN, "a reply to another question")
        if flags & 0xF == 3:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if flags & 0xF:
            raise socket.gaierror(socket.EAI_AGAIN, f"the server answered error {flags & 0xF}")
        place = 12
        for _ in range(asked):
            place = _skip_name(reply, place) + 4
        found = []
        for _ in range(answered):
            place = _skip_name(reply, place)
            type_, _, _, size = struct.unpack_from(">2HIH", reply, place)
            place += 10
            if type_ == kind and size == (4 if kind == _A else 16):
                found.append(str(ipaddress.ip_address(reply[place : place + size])))
            place += size
    except (struct.error, IndexError, ValueError) as error:
        raise socket.gaierror(socket.EAI_AGAIN, f"an unreadable reply: {error}") from error
    return found


def _skip_name(reply: bytes, place: int) -> int:
    while (size := reply[place]) != 0:
        if size >= 0xC0:
            return place + 2
        place += 1 + size
    return place + 1


def split_server(server: str) -> tuple[str, int]:
    """Split ``address``, ``address:port`` or ``[address]:port``. Raises ConfigError."""
    address, port = server, str(PORT)
    if server.startswith("["):
        address, _, port = server[1:].partition("]")
        port = port.removeprefix(":") or str(PORT)
    elif server.count(":") == 1:
        address, _, port = server.partition(":")
    try:
        return str(ipaddress.ip_address(address)), int(port)
    except ValueError as error:
        raise ConfigError(
            f"resolver={server!r} is no address of a DNS server: give one such as 1.1.1.1 or "
            "127.0.0.1:5353"
        ) from error

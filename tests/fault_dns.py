"""A real DNS server on loopback that fails when it is told to."""

import socket
import struct
import threading
import time


class FaultDns(threading.Thread):
    """Answers A questions: names with 127.0.0.9 or `address`, ``nx.*`` with "no such name".

    After `good_answers` questions it answers "server failure" for `fails_for_s` seconds.
    """

    def __init__(self, address: str = "127.0.0.9") -> None:
        super().__init__(daemon=True)
        self.address = socket.inet_aton(address)
        self.good_answers = 10**9
        self.knows_ipv6 = True
        self.fails_for_s = 0.0
        self._failed_first: float | None = None
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.start()

    @property
    def server(self) -> str:
        return f"127.0.0.1:{self.socket.getsockname()[1]}"

    def run(self) -> None:
        while True:
            try:
                query, peer = self.socket.recvfrom(512)
            except OSError:
                return
            kind = struct.unpack(">H", query[-4:-2])[0]
            missing = query[12:15] == b"\x02nx"
            unknown = kind != 1 and not self.knows_ipv6
            code = 2 if self._fails() or unknown else 3 if missing else 0
            found = kind == 1 and not code
            head = query[:2] + struct.pack(">5H", 0x8180 | code, 1, found, 0, 0)
            answer = b"\xc0\x0c" + struct.pack(">2HIH", 1, 1, 60, 4) + self.address
            self.socket.sendto(head + query[12:] + (answer if found else b""), peer)

    def _fails(self) -> bool:
        self.good_answers -= 1
        if self.good_answers >= 0:
            return False
        if self._failed_first is None:
            self._failed_first = time.monotonic()
        return time.monotonic() - self._failed_first < self.fails_for_s

    def close(self) -> None:
        self.socket.close()

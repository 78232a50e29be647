"""A function on hostile bytes, run in processes that may die of them.

Decoders are C libraries: a crafted picture can crash one, hang it or eat all memory, and a thread
that does so takes its whole process along. Here each call runs in a small process. A crash costs
that call; a call that takes too long is ended by the kernel's timer, whatever it is doing.

The first process, the nursery, loads the function once and forks the others, so that a new one is
there in milliseconds. It has one thread and no files of ours, which is what makes forking safe.
Answers are JSON and bytes, never pickles: what comes back had hostile bytes in its hands. A call
with 100 kB in and 20 kB out costs 0.06 ms of CPU, both sides together.
"""

import contextlib
import json
import os
import pickle
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from laionkit.core.errors import StageFailed

# (body, what JSON can say) → (what JSON can say, bytes or none). Pickled by name or by value.
Work = Callable[[bytes, Any], tuple[Any, bytes | None]]

_FRAME = struct.Struct(">IQ?")
_NUMBER = struct.Struct(">q")
_BUFFER_BYTES = 1 << 20
# What one process may allocate. 90 million pixels, the most that are decoded by default, take 1.5
# GB where alpha and profile are applied; a file that asks for more ends in a MemoryError.
MEMORY_BYTES = 4 << 30
# How many nurseries are tried before the fault is taken for the machine's.
NURSERIES = 2


class CallDied(Exception):
    """The process that ran a call is gone. `timed_out` where the timer ended it."""

    def __init__(self, detail: str, timed_out: bool) -> None:
        super().__init__(detail)
        self.detail, self.timed_out = detail, timed_out


class Isolated:
    """Calls a function in processes of its own, one process for each call under way."""

    def __init__(self, work: Work, timeout_s: float) -> None:
        """Start loading the function; nothing waits for that. `timeout_s` bounds one call."""
        self._start_with = pickle.dumps((work, timeout_s))
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._busy: set[_Process] = set()
        self._nursery = _Nursery(self._start_with)
        self._is_closed = False

    def __call__(self, body: bytes, asked: Any) -> tuple[Any, bytes | None]:
        """The function's answer. Raises CallDied where its process did not live to give it.

        Raises StageFailed where no process can be started at all.
        """
        process = self._take()
        try:
            answer = process.call(body, asked)
        except (OSError, EOFError) as error:
            with self._lock:
                self._busy.discard(process)
                ended = process.ended()
            timed_out = ended == -signal.SIGALRM
            raise CallDied(_how_it_ended(ended), timed_out) from error
        with self._lock:
            self._busy.discard(process)
            self._idle.append(process)
        return answer

    def close(self) -> None:
        """End every process, also those in the middle of a call."""
        with self._lock:
            self._is_closed = True
            for process in self._idle:
                process.close()
            for process in self._busy:
                process.hang_up()
            self._nursery.close()

    def _take(self) -> "_Process":
        with self._lock:
            if self._is_closed:
                raise CallDied("the pool is closed", timed_out=False)
            process = self._idle.pop() if self._idle else self._fork()
            self._busy.add(process)
        return process

    def _fork(self) -> "_Process":
        """Start a process, from a new nursery where the old one is gone."""
        for _ in range(NURSERIES):
            try:
                return _Process(self._nursery)
            except (OSError, EOFError):
                ended = self._nursery.close()
                self._nursery = _Nursery(self._start_with)
        raise StageFailed(
            f"no decoder can be started: {_how_it_ended(ended)}. See what it said above"
        )


class _Process:
    """The parent's end of one forked process."""

    def __init__(self, nursery: "_Nursery") -> None:
        self._nursery = nursery
        self._socket, theirs = socket.socketpair()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        with theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            try:
                self._pid = nursery.fork(theirs)
            except (OSError, EOFError):
                self.close()
                raise

    def call(self, body: bytes, asked: Any) -> tuple[Any, bytes | None]:
        _send(self._socket, asked, body)
        return _receive(self._socket)

    def ended(self) -> int | None:
        """How the process ended, as subprocess has it; None where that cannot be known."""
        self.close()
        return self._nursery.wait_for(self._pid)

    def close(self) -> None:
        self._socket.close()

    def hang_up(self) -> None:
        """Wake who waits for an answer; they close."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class _Nursery:
    """The process that forks the others. Its parent asks it one thing at a time."""

    def __init__(self, start_with: bytes) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-P", "-m", __name__, str(theirs.fileno())]
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                env=child_environment(),
                stdin=subprocess.DEVNULL,
            )
        with contextlib.suppress(BrokenPipeError):  # it failed to start: `fork` says so
            self._control.sendall(_NUMBER.pack(len(start_with)) + start_with)

    def fork(self, theirs: socket.socket) -> int:
        """The number of a new process. Raises OSError or EOFError where the nursery is gone."""
        socket.send_fds(self._control, [b"f" * _NUMBER.size], [theirs.fileno()])
        pid: int = _NUMBER.unpack(_receive_exactly(self._control, _NUMBER.size))[0]
        return pid

    def wait_for(self, pid: int) -> int | None:
        try:
            self._control.sendall(_NUMBER.pack(pid))
            code: int = _NUMBER.unpack(_receive_exactly(self._control, _NUMBER.size))[0]
        except (OSError, EOFError):
            return None
        return code

    def close(self) -> int:
        """End it with all that it forked; return its exit code."""
        self._control.close()
        return self._process.wait()


def _how_it_ended(code: int | None) -> str:
    if code is None:
        return "its process was killed"
    if code < 0:
        return f"its process was killed by {signal.Signals(-code).name}"
    return f"its process ended with exit code {code}"


def child_environment() -> dict[str, str]:
    """Ours, with the path that finds this package, and no threads in numpy before the fork."""
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    return {**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def _send(to: socket.socket, said: Any, body: bytes | None) -> None:
    words = json.dumps(said, default=str).encode()
    head = _FRAME.pack(len(words), len(body or b""), body is not None) + words
    whole = len(head) + len(body or b"")
    sent = to.sendmsg([head, body or b""])
    if sent < whole:
        to.sendall((head + (body or b""))[sent:])


def _receive(source: socket.socket) -> tuple[Any, bytes | None]:
    words, size, is_body = _FRAME.unpack(_receive_exactly(source, _FRAME.size))
    data = memoryview(_receive_exactly(source, words + size))
    return json.loads(bytes(data[:words])), bytes(data[words:]) if is_body else None


def _receive_exactly(source: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    place = 0
    while place < size:
        count = source.recv_into(memoryview(data)[place:], size - place, socket.MSG_WAITALL)
        if not count:
            raise EOFError("the other side is gone")
        place += count
    return data


def _nursery_main(control: socket.socket) -> None:
    """Fork on request, tell how a child ended on request, end with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    try:
        (size,) = _NUMBER.unpack(_receive_exactly(control, _NUMBER.size))
        start_with = _receive_exactly(control, size)
    except (OSError, EOFError):  # the parent was stopped before it could say what to run
        return
    work, timeout_s = pickle.loads(start_with)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _bound_memory()
    # Where memory runs out, the kernel shall take one of these, not who feeds them.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    children: set[int] = set()
    while True:
        request, (*given,), _, _ = socket.recv_fds(control, _NUMBER.size, 1)
        if not request:
            break
        if given:
            pid = os.fork()
            if not pid:
                control.close()
                _serve(socket.socket(fileno=given[0]), work, timeout_s)
            os.close(given[0])
            children.add(pid)
            control.sendall(_NUMBER.pack(pid))
        else:
            (pid,) = _NUMBER.unpack(request)
            children.discard(pid)
            control.sendall(_NUMBER.pack(_wait_for(pid)))
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        _wait_for(pid)


def _bound_memory() -> None:
    """Bound what this process and those it forks may allocate, where nothing bounds it tighter."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if soft == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, hard))


def _wait_for(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _serve(channel: socket.socket, work: Work, timeout_s: float) -> None:
    """Answer calls until the other side hangs up; never returns."""
    try:
        # Libraries print a line for each odd byte; hostile files would flood the user's terminal.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        while True:
            asked, body = _receive(channel)
            signal.setitimer(signal.ITIMER_REAL, timeout_s)
            answer, made = work(body or b"", asked)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _send(channel, answer, made)
    except (OSError, EOFError):
        os._exit(0)
    finally:
        os._exit(1)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as parent:
        _nursery_main(parent)

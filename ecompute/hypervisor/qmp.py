"""QEMU's monitor, for callers that are ordinary threads (the ``qemu.qmp`` package is written for asyncio).

Each `Monitor` has an event loop in a thread of its own and ends it on `close`; nothing is shared, so
that a monitor that hangs holds up only who asked it. Starts no processes.

Threads: `execute` and `close` from any.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine, Mapping
from typing import Any, Self, TypeVar

from qemu.qmp import QMPClient, QMPError

from ecompute.cluster.errors import HypervisorError

T = TypeVar("T")


class Monitor:
    """A QMP session over a connected socket, which it takes.

    Args:
        connection: the other end is QEMU's, in control mode.
        timeout_s: for the greeting and for each command.

    Raises:
        HypervisorError: QEMU does not greet.
    """

    def __init__(self, connection: socket.socket, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
        self._thread.start()
        self._client = QMPClient("ecompute")
        self._client.logger.disabled = True  # it logs each lost connection, which here is an error of the caller's
        connection.setblocking(False)
        try:
            self._wait("greeting", self._client.connect(connection))
        except HypervisorError:
            connection.close()
            self._end_loop()
            raise

    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Return what QEMU answers to ``command`` (its QMP reference manual).

        Raises:
            HypervisorError: it refuses, hangs up, or does not answer in time.
        """
        return self._wait(command, self._client.execute(command, dict(arguments) if arguments else None))

    def close(self) -> None:
        """Hang up; QEMU runs on. Idempotent."""
        if not self._loop.is_closed():
            try:
                self._wait("hanging up", self._client.disconnect())
            except HypervisorError:  # it hung up first
                pass
            finally:
                self._end_loop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait(self, what: str, work: Coroutine[Any, Any, T]) -> T:
        # The limit is kept in the loop, where the work also tidies up after it was cut off.
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, self._timeout_s), self._loop)
        try:
            return future.result()
        except TimeoutError as error:
            raise HypervisorError(f"QEMU's monitor: no answer to {what} within {self._timeout_s:g} s") from error
        except (QMPError, OSError, EOFError) as error:
            raise HypervisorError(f"QEMU's monitor: {what}: {error}") from error

    def _end_loop(self) -> None:
        async def cancel_rest() -> None:
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(cancel_rest(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

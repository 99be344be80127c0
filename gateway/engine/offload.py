"""HOT PATH. Owns content coding without stopping the loop: small bodies here and now, large ones in the pool."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final

from gateway.call import Data
from gateway.engine.body import deflate, inflate
from gateway.errors import Code, TollwayError

#: zlib handles this much in about a millisecond.
HERE_BYTES: Final = 128 * 1024
_HERE_PLAIN_BYTES: Final = 8 * HERE_BYTES

Then = Callable[[bytes], None]
Fail = Callable[[BaseException], None]


class Coder:
    """Inflates and deflates; `then` or `fail` is called once, on the loop's thread, perhaps before the return."""

    def __init__(self, pool: Executor, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._loop = loop

    def inflate(self, data: Data, coding: str, bytes_max: int, then: Then, fail: Fail) -> None:
        """See `gateway.engine.body.inflate`."""
        if len(data) <= HERE_BYTES:
            # A small bomb may hold much: what is made here is bounded, and anything larger is done in the pool.
            try:
                plain = inflate(data, coding, min(_HERE_PLAIN_BYTES, bytes_max))
            except TollwayError as error:
                if error.code is not Code.BODY_TOO_LARGE or bytes_max <= _HERE_PLAIN_BYTES:
                    fail(error)
                    return
            else:
                then(plain)
                return
        self._in_pool(lambda: inflate(data, coding, bytes_max), then, fail)

    def deflate(self, data: bytes, coding: str, then: Then, fail: Fail) -> None:
        """See `gateway.engine.body.deflate`."""
        if len(data) <= HERE_BYTES:
            then(deflate(data, coding))
        else:
            self._in_pool(lambda: deflate(data, coding), then, fail)

    def _in_pool(self, work: Callable[[], bytes], then: Then, fail: Fail) -> None:
        def on_done(future: "asyncio.Future[bytes]") -> None:
            error = future.exception()
            if error is not None:
                fail(error)
            else:
                then(future.result())

        self._loop.run_in_executor(self._pool, work).add_done_callback(on_done)

"""Owns the gRPC services that a worker answers by itself: health (Check, Watch) and server reflection.

To a call they are a backend like any other: an `Upstream` whose answers come at once or, of Watch, when readiness
changes. A stream holds little: a message is read only when the answer to the one before it has gone.
"""

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from gateway.call import Data, Headers
from gateway.net.exchange import UpstreamListener
from gateway.wire.grpc import CONTENT_TYPE, GrpcFault, MessageReader, frame, status_trailers
from gateway.wire.protobuf_fields import Malformed, text_of
from gateway.wire.reflection import Reflection, decode_files
from gateway.wire.reflection_files import PACKED
from gateway.wire.status import Grpc

#: Of one message to these services: it holds a name.
MESSAGE_BYTES_MAX: Final = 4096
#: Of one reflection stream: answers are up to 20 KB, and a client that looks everything up asks for a few dozen.
MESSAGES_MAX: Final = 256
#: Health streams of a worker: they need no key.
WATCHERS_MAX: Final = 256
CHECK_RPC: Final = b"/grpc.health.v1.Health/Check"
WATCH_RPC: Final = b"/grpc.health.v1.Health/Watch"
#: Services whose health may be asked for by name; "" is the server.
_HEALTH_SERVICES: Final = frozenset({"", "inference.GRPCInferenceService"})
#: grpc.health.v1.HealthCheckResponse.
_SERVING: Final = b"\x08\x01"
_NOT_SERVING: Final = b"\x08\x02"
_SERVICE_UNKNOWN: Final = b"\x08\x03"


class Service(Protocol):
    """What a local service does with the messages of a call."""

    def on_message(self, call: "LocalCall", message: bytes) -> None:
        """Answer by `call.send` and `call.end`, now or later.

        Raises:
            Malformed: it is not the service's request.
        """

    def on_messages_end(self, call: "LocalCall") -> None:
        """The caller has said all."""

    def on_over(self, call: "LocalCall") -> None:
        """The call has ended, by whomever."""

    def on_leaving(self, call: "LocalCall") -> None:
        """The worker leaves: end the call as soon as nothing waits in it."""


class LocalCall:
    """One call of a local service, as an `Upstream`."""

    def __init__(self, service: Service, listener: UpstreamListener) -> None:
        #: False: messages wait here, the caller shall send no more.
        self.is_writable = True
        #: The caller does not read.
        self.is_paused = False
        self.is_over = False
        self._service = service
        self._listener = listener
        self._reader = MessageReader(MESSAGE_BYTES_MAX)
        self._waiting: deque[bytes] = deque()
        self.messages = 0
        self._is_request_ended = False
        self._is_begun = False

    @property
    def is_idle(self) -> bool:
        """Every message that came is answered."""
        return not self._waiting

    # -- Upstream -----------------------------------------------------------------------------------------------------

    def send_body(self, data: Data) -> None:
        if self.is_over:
            return
        try:
            for is_compressed, message in self._reader.feed(data):
                if is_compressed:
                    raise GrpcFault(Grpc.UNIMPLEMENTED, "this service reads no compressed messages")
                self._waiting.append(message)
        except GrpcFault as fault:
            self.end(fault.status, fault.message)
            return
        self._go_on()
        self.is_writable = not self._waiting

    def send_end(self) -> None:
        self._is_request_ended = True
        if not self._reader.is_between_messages:
            self.end(Grpc.INVALID_ARGUMENT, "the request ends within a message")
        self._go_on()

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False
        self._go_on()
        if not self.is_writable and not self._waiting and not self.is_over:
            self.is_writable = True
            self._listener.on_upstream_writable()

    def cancel(self) -> None:
        if not self.is_over:
            self.is_over = True
            self._service.on_over(self)

    # -- for the service ----------------------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """One message of the reply."""
        if not self.is_over:
            self._begin()
            self._listener.on_reply_body(frame(message))

    def end(self, status: Grpc, text: str = "") -> None:
        """End the call, unless it is over."""
        if self.is_over:
            return
        self.is_over = True
        self._waiting.clear()
        self._service.on_over(self)
        self._begin()
        self._listener.on_reply_end(status_trailers(status, text))

    def _begin(self) -> None:
        if not self._is_begun:
            self._is_begun = True
            self._listener.on_reply_head(200, [CONTENT_TYPE], -1)

    def _go_on(self) -> None:
        while self._waiting and not self.is_paused and not self.is_over:
            self.messages += 1
            try:
                self._service.on_message(self, self._waiting.popleft())
            except Malformed as error:
                self.end(Grpc.INVALID_ARGUMENT, f"malformed request: {error}")
        if self._is_request_ended and not self._waiting and not self.is_over:
            self._service.on_messages_end(self)


class _Health:
    """What Check and Watch say of a service."""

    def __init__(self, is_ready: Callable[[], bool]) -> None:
        self._is_ready = is_ready

    def find(self, service: str) -> bytes | None:
        """HealthCheckResponse of a service by its name; None: it is not known."""
        if service not in _HEALTH_SERVICES:
            return None
        return _SERVING if self._is_ready() else _NOT_SERVING


class _Check:
    """One message in, one out."""

    def __init__(self, health: _Health) -> None:
        self._health = health

    def on_message(self, call: LocalCall, message: bytes) -> None:
        service = text_of(message, 1)
        status = self._health.find(service)
        if status is None:
            call.end(Grpc.NOT_FOUND, f"service '{service[:200]}' is unknown")
            return
        call.send(status)
        call.end(Grpc.OK)

    def on_messages_end(self, call: LocalCall) -> None:
        call.end(Grpc.INVALID_ARGUMENT, "the call has no message")

    def on_over(self, call: LocalCall) -> None: ...

    def on_leaving(self, call: LocalCall) -> None: ...


class _Watch:
    """The status now, and each change of it. A service that is not known may become so: the stream stays open."""

    def __init__(self, health: _Health) -> None:
        self._health = health
        #: Call → (service, what it was told last).
        self._watchers: dict[LocalCall, tuple[str, bytes]] = {}

    def on_message(self, call: LocalCall, message: bytes) -> None:
        if call in self._watchers:
            call.end(Grpc.INVALID_ARGUMENT, "a Watch has one message")
        elif len(self._watchers) >= WATCHERS_MAX:
            call.end(Grpc.RESOURCE_EXHAUSTED, f"{WATCHERS_MAX} health streams are open")
        else:
            self._watchers[call] = (text_of(message, 1), b"")
            self._tell(call)

    def on_messages_end(self, call: LocalCall) -> None:
        if call not in self._watchers:
            call.end(Grpc.INVALID_ARGUMENT, "the call has no message")

    def on_over(self, call: LocalCall) -> None:
        self._watchers.pop(call, None)

    def on_leaving(self, call: LocalCall) -> None:
        self._tell(call)
        call.end(Grpc.OK)

    def notify(self) -> None:
        for call in list(self._watchers):
            self._tell(call)

    def _tell(self, call: LocalCall) -> None:
        """Say what has changed; a caller who does not read is told when he does, and only the newest."""
        known = self._watchers.get(call)
        if known is None or call.is_paused:
            return
        service, told = known
        status = self._health.find(service) or _SERVICE_UNKNOWN
        if status != told:
            self._watchers[call] = (service, status)
            call.send(status)


class _ReflectionService:
    """Answers message by message; both versions of the service are one."""

    def __init__(self) -> None:
        #: Made of the packed files when first asked for: most workers never are.
        self._reflection: Reflection | None = None

    def on_message(self, call: LocalCall, message: bytes) -> None:
        if call.messages > MESSAGES_MAX:
            call.end(Grpc.RESOURCE_EXHAUSTED, f"more than {MESSAGES_MAX} questions on one stream")
            return
        if self._reflection is None:
            self._reflection = decode_files(PACKED)
        call.send(self._reflection.answer(message))

    def on_messages_end(self, call: LocalCall) -> None:
        call.end(Grpc.OK)

    def on_over(self, call: LocalCall) -> None: ...

    def on_leaving(self, call: LocalCall) -> None:
        if call.is_idle:
            call.end(Grpc.OK)


class _Tracked:
    """A service whose calls may stay open: who leaves can end them."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._calls: set[LocalCall] = set()
        self._is_leaving = False

    def open_call(self, listener: UpstreamListener) -> LocalCall:
        call = LocalCall(self, listener)
        self._calls.add(call)
        return call

    def on_message(self, call: LocalCall, message: bytes) -> None:
        self._service.on_message(call, message)
        if self._is_leaving:
            self._service.on_leaving(call)

    def on_messages_end(self, call: LocalCall) -> None:
        self._service.on_messages_end(call)

    def on_over(self, call: LocalCall) -> None:
        self._calls.discard(call)
        self._service.on_over(call)

    def on_leaving(self, call: LocalCall) -> None:
        self._service.on_leaving(call)

    def leave(self) -> None:
        """End what is idle now, and the rest when it is."""
        self._is_leaving = True
        for call in list(self._calls):
            self._service.on_leaving(call)


class LocalServices:
    """All of them, as an `UpstreamPool`. `is_ready` says whether the worker serves."""

    def __init__(self, is_ready: Callable[[], bool]) -> None:
        health = _Health(is_ready)
        self._check = _Check(health)
        self._watch = _Watch(health)
        self._watches = _Tracked(self._watch)
        self._reflections = _Tracked(_ReflectionService())

    def request(
        self, method: bytes, target: bytes, headers: Headers, content_length: int, listener: UpstreamListener
    ) -> LocalCall:
        """See `UpstreamPool`."""
        if target == CHECK_RPC:
            return LocalCall(self._check, listener)
        return (self._watches if target == WATCH_RPC else self._reflections).open_call(listener)

    def notify(self) -> None:
        """Readiness may have changed."""
        self._watch.notify()

    def leave(self) -> None:
        """The worker is told to stop: streams end, so that they do not hold it up."""
        self._watches.leave()
        self._reflections.leave()

    def close(self) -> None:
        """See `UpstreamPool`."""
        self.leave()

"""The fuzz targets by name. `make fuzz` drives them by coverage (tests/fuzz/harness.py), `make test` by hypothesis."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.fuzz import targets_calls as calls
from tests.fuzz import targets_engine as engine
from tests.fuzz import targets_http1 as http1
from tests.fuzz import targets_http2 as http2
from tests.fuzz import targets_http2_shell as shell
from tests.fuzz import targets_records as records


class Target(NamedTuple):
    """`run` raises on a finding and only then; `seeds` are inputs that reach far."""

    run: Callable[[bytes], None]
    seeds: Sequence[bytes]


TARGETS = {
    "http1_connection": Target(http1.http1_connection, http1.HTTP1_SEEDS),
    "http1_response": Target(http1.http1_response, http1.RESPONSE_SEEDS),
    "http2_server": Target(http2.http2_server, http2.SERVER_SEEDS),
    "http2_client": Target(http2.http2_client, http2.CLIENT_SEEDS),
    "header_blocks": Target(http2.header_blocks, http2.BLOCK_SEEDS),
    "h2_inbound": Target(shell.h2_inbound, shell.INBOUND_SEEDS),
    "h2_outbound": Target(shell.h2_outbound, shell.OUTBOUND_SEEDS),
    "grpc_messages": Target(calls.grpc_messages, calls.GRPC_SEEDS),
    "grpc_peek": Target(calls.grpc_peek, calls.PEEK_SEEDS),
    "peek_memory": Target(calls.peek_memory, calls.MEMORY_SEEDS),
    "oip_target": Target(calls.oip_target, calls.TARGET_SEEDS),
    "json_heads": Target(calls.json_heads, calls.JSON_SEEDS),
    "key_text": Target(calls.key_text, calls.KEY_SEEDS),
    "credential": Target(calls.credential, calls.CREDENTIAL_SEEDS),
    "call_head": Target(calls.call_head, calls.HEAD_SEEDS),
    "event": Target(records.event, records.EVENT_SEEDS),
    "packed_calls": Target(records.packed_calls, records.PACKED_SEEDS),
    "frames": Target(records.frames, records.FRAME_SEEDS),
    "wounded_log": Target(records.wounded_log, records.WOUND_SEEDS),
    "strange_payloads": Target(records.strange_payloads, records.PAYLOAD_SEEDS),
    "config": Target(engine.config, engine.CONFIG_SEEDS),
    "infer_http": Target(engine.infer_http, engine.HTTP_SEEDS),
    "infer_grpc": Target(engine.infer_grpc, engine.INFER_GRPC_SEEDS),
    "inflating": Target(engine.inflating, engine.INFLATE_SEEDS),
}

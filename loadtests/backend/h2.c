/* Owns HTTP/2 with prior knowledge (RFC 9113) as a gRPC server: frames, both flow controls, canned replies.
 * A reply is HEADERS, DATA, HEADERS(trailers); while the connection window is used up, replies wait in order. */
#include "backend.h"

#include <stdio.h>
#include <string.h>

enum frame { DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION };
enum { END_STREAM = 0x1, ACK = 0x1, END_HEADERS = 0x4, PADDED = 0x8, HAS_PRIORITY = 0x20 };
#define FRAME_HEAD 9
#define FRAME_BYTES_MAX 16384
#define STREAM_WINDOW (16 * 1024 * 1024)
#define STREAM_UPDATE_AT (4 * 1024 * 1024)
#define CONNECTION_UPDATE_AT (1024 * 1024)
#define CONNECTION_WINDOW (1024 * 1024 * 1024)
#define SLOTS (4 * H2_STREAMS)
#define MINUS_ONE "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01" /* int64 -1 as a varint */
#define FLOATS 240 /* 960 bytes of tensor, about 1 KB of message */

/* A message with its 5 bytes of gRPC framing; count 0: the method is not served. */
static struct {
    uint8_t bytes[2048];
    size_t count;
} messages[ROUTES];

static const uint8_t HEAD_BLOCK[] = "\x88" /* :status 200 */
                                    "\x0f\x10\x10" "application/grpc"; /* content-type, without indexing */
static const uint8_t OK_BLOCK[] = "\x00\x0bgrpc-status\x01" "0";
static const uint8_t UNIMPLEMENTED_BLOCK[] = "\x88\x0f\x10\x10" "application/grpc"
                                             "\x00\x0bgrpc-status\x02" "12";

/* Protobuf: a length-delimited field with a one- or two-byte length. */
static size_t put_field(uint8_t *to, int number, const void *data, size_t bytes) {
    size_t at = 0;
    to[at++] = (uint8_t)(number << 3 | 2);
    if (bytes > 127) to[at++] = (uint8_t)(bytes | 0x80);
    to[at++] = (uint8_t)(bytes > 127 ? bytes >> 7 : bytes);
    memcpy(to + at, data, bytes);
    return at + bytes;
}

static size_t put_text(uint8_t *to, int number, const char *text) { return put_field(to, number, text, strlen(text)); }

static void set_message(enum route route, const uint8_t *data, size_t bytes) {
    uint8_t *to = messages[route].bytes;
    to[0] = to[1] = to[2] = 0;
    to[3] = (uint8_t)(bytes >> 8);
    to[4] = (uint8_t)bytes;
    memcpy(to + 5, data, bytes);
    messages[route].count = bytes + 5;
}

/* ModelInferResponse: model_name 1, model_version 2, outputs 5 {name 1, datatype 2, shape 3}, raw_output_contents 6. */
static size_t infer_response(uint8_t *to) {
    uint8_t output[64];
    float tensor[FLOATS];
    for (int i = 0; i < FLOATS; i++) tensor[i] = (float)i;
    size_t at = put_text(output, 1, "y");
    at += put_text(output + at, 2, "FP32");
    at += put_field(output + at, 3, "\x01\xf0\x01", 3); /* packed [1, 240] */
    size_t bytes = put_text(to, 1, "bench");
    bytes += put_text(to + bytes, 2, "1");
    bytes += put_field(to + bytes, 5, output, at);
    return bytes + put_field(to + bytes, 6, tensor, sizeof tensor);
}

static size_t tensor_metadata(uint8_t *to, int number, const char *name) {
    uint8_t tensor[64];
    size_t at = put_text(tensor, 1, name);
    at += put_text(tensor + at, 2, "FP32");
    at += put_field(tensor + at, 3, MINUS_ONE MINUS_ONE, 20); /* packed [-1, -1] */
    return put_field(to, number, tensor, at);
}

void h2_init(void) {
    uint8_t message[1536], model[64];
    set_message(ROUTE_INFER, message, infer_response(message));
    set_message(ROUTE_LIVE, (const uint8_t *)"\x08\x01", 2); /* live, ready, or SERVING */
    size_t bytes = put_text(message, 1, "bench");
    bytes += put_text(message + bytes, 2, "1");
    set_message(ROUTE_SERVER, message, bytes);
    bytes += put_text(message + bytes, 3, "bench");
    bytes += tensor_metadata(message + bytes, 4, "x");
    bytes += tensor_metadata(message + bytes, 5, "y");
    set_message(ROUTE_MODEL, message, bytes);
    size_t at = put_text(model, 1, "bench");
    at += put_text(model + at, 2, "1");
    at += put_text(model + at, 3, "READY");
    set_message(ROUTE_INDEX, message, put_field(message, 1, model, at));
}

static void put_u32(uint8_t *to, uint32_t value) {
    for (int i = 0; i < 4; i++) to[i] = (uint8_t)(value >> (24 - 8 * i));
}

static uint32_t get_u32(const uint8_t *from) {
    return (uint32_t)from[0] << 24 | (uint32_t)from[1] << 16 | (uint32_t)from[2] << 8 | from[3];
}

static void send_frame(struct connection *c, enum frame type, uint8_t flags, uint32_t stream, const void *data,
                       size_t bytes) {
    uint8_t *to = reserve(c, FRAME_HEAD + bytes);
    put_u32(to, (uint32_t)(bytes << 8 | type));
    to[4] = flags;
    put_u32(to + 5, stream);
    if (bytes > 0) memcpy(to + FRAME_HEAD, data, bytes);
    c->out_bytes += FRAME_HEAD + bytes;
}

static void send_u32(struct connection *c, enum frame type, uint32_t stream, uint32_t value) {
    uint8_t data[4];
    put_u32(data, value);
    send_frame(c, type, 0, stream, data, 4);
}

void h2_open(struct connection *c) {
    uint8_t settings[12] = {0, 3, 0, 0, H2_STREAMS >> 8, H2_STREAMS & 0xff, 0, 4};
    put_u32(settings + 8, STREAM_WINDOW);
    send_frame(c, SETTINGS, 0, 0, settings, sizeof settings);
    send_u32(c, WINDOW_UPDATE, 0, CONNECTION_WINDOW - 65535);
    c->h2->table.bytes_max = HPACK_TABLE_BYTES;
    c->h2->send_window = c->h2->stream_window = 65535;
}

static size_t fail(struct connection *c, uint32_t code) {
    uint8_t data[8] = {0};
    put_u32(data + 4, code);
    send_frame(c, GOAWAY, 0, 0, data, sizeof data);
    c->is_closing = true;
    return 0;
}

static struct h2_stream *slot_of(struct h2_state *h2, uint32_t id) { return &h2->streams[(id >> 1) % SLOTS]; }

static struct h2_stream *find_stream(struct h2_state *h2, uint32_t id) {
    struct h2_stream *slot = slot_of(h2, id);
    return id != 0 && slot->id == id ? slot : NULL;
}

static void send_reply(struct connection *c, uint32_t stream, enum route route) {
    size_t bytes = messages[route].count;
    if (bytes == 0) {
        send_frame(c, HEADERS, END_HEADERS | END_STREAM, stream, UNIMPLEMENTED_BLOCK, sizeof UNIMPLEMENTED_BLOCK - 1);
        return;
    }
    send_frame(c, HEADERS, END_HEADERS, stream, HEAD_BLOCK, sizeof HEAD_BLOCK - 1);
    send_frame(c, DATA, 0, stream, messages[route].bytes, bytes);
    send_frame(c, HEADERS, END_HEADERS | END_STREAM, stream, OK_BLOCK, sizeof OK_BLOCK - 1);
    c->h2->send_window -= (int64_t)bytes;
}

static void send_waiting(struct connection *c) {
    struct h2_state *h2 = c->h2;
    while (h2->waiting_count > 0) {
        struct h2_stream *stream = find_stream(h2, h2->waiting[h2->waiting_first]);
        if (stream != NULL && h2->send_window < (int64_t)messages[stream->route].count) return;
        if (stream != NULL) {
            send_reply(c, stream->id, stream->route);
            stream->id = 0;
        }
        h2->waiting_first = (h2->waiting_first + 1) % H2_STREAMS;
        h2->waiting_count--;
    }
}

static void end_request(struct connection *c, struct h2_stream *stream) {
    struct h2_state *h2 = c->h2;
    if (stream->route == ROUTE_INFER) {
        counters.grpc_calls++;
        counters.traced += stream->is_traced;
    }
    if (h2->stream_window < (int64_t)messages[stream->route].count || h2->waiting_count == H2_STREAMS) {
        /* A peer whose stream window is smaller than one small reply is not one this bench drives. */
        send_u32(c, RST_STREAM, stream->id, 0x7 /* REFUSED_STREAM */);
        stream->id = 0;
        return;
    }
    h2->waiting[(h2->waiting_first + h2->waiting_count++) % H2_STREAMS] = stream->id;
    send_waiting(c);
}

static void on_block(struct connection *c) {
    struct h2_state *h2 = c->h2;
    uint32_t id = h2->block_stream;
    uint8_t route;
    bool is_traced;
    h2->block_stream = 0;
    if (!hpack_decode(&h2->table, h2->block, h2->block_bytes, &route, &is_traced)) {
        fail(c, 0x9 /* COMPRESSION_ERROR */);
        return;
    }
    struct h2_stream *slot = slot_of(h2, id);
    if (slot->id != 0 && slot->id != id) {
        send_u32(c, RST_STREAM, id, 0x7 /* REFUSED_STREAM: a stream 8,192 ids older still lives in its slot */);
        return;
    }
    if (slot->id != id) *slot = (struct h2_stream){.id = id, .route = route, .is_traced = is_traced};
    if (h2->block_ends_stream) end_request(c, slot);
}

static void take_block(struct connection *c, const uint8_t *data, size_t bytes, uint8_t flags) {
    struct h2_state *h2 = c->h2;
    if (h2->block_bytes + bytes > sizeof h2->block) {
        fail(c, 0xb /* ENHANCE_YOUR_CALM */);
        return;
    }
    memcpy(h2->block + h2->block_bytes, data, bytes);
    h2->block_bytes += bytes;
    if (flags & END_HEADERS) on_block(c);
}

static void on_data(struct connection *c, uint32_t id, uint8_t flags, size_t frame_bytes, size_t body_bytes) {
    struct h2_state *h2 = c->h2;
    counters.body_bytes += body_bytes;
    h2->unacknowledged += (uint32_t)frame_bytes; /* padding counts (RFC 9113 §6.1) */
    if (h2->unacknowledged >= CONNECTION_UPDATE_AT) {
        send_u32(c, WINDOW_UPDATE, 0, h2->unacknowledged);
        h2->unacknowledged = 0;
    }
    struct h2_stream *stream = find_stream(h2, id);
    if (stream == NULL) return; /* reset meanwhile */
    stream->unacknowledged += (uint32_t)frame_bytes;
    if (flags & END_STREAM) {
        end_request(c, stream);
    } else if (stream->unacknowledged >= STREAM_UPDATE_AT) {
        send_u32(c, WINDOW_UPDATE, id, stream->unacknowledged);
        stream->unacknowledged = 0;
    }
}

static void on_settings(struct connection *c, const uint8_t *data, size_t bytes) {
    for (size_t at = 0; at + 6 <= bytes; at += 6)
        if (data[at] == 0 && data[at + 1] == 4) c->h2->stream_window = get_u32(data + at + 2);
    send_frame(c, SETTINGS, ACK, 0, NULL, 0);
}

static void on_frame(struct connection *c, enum frame type, uint8_t flags, uint32_t id, const uint8_t *data,
                     size_t bytes) {
    struct h2_state *h2 = c->h2;
    size_t frame_bytes = bytes;
    if ((type == DATA || type == HEADERS) && (flags & PADDED)) {
        if (bytes == 0 || data[0] >= bytes) {
            fail(c, 0x1 /* PROTOCOL_ERROR */);
            return;
        }
        bytes -= 1u + data[0];
        data++;
    }
    if (h2->block_stream != 0 && type != CONTINUATION) {
        fail(c, 0x1);
    } else if (type == DATA) {
        on_data(c, id, flags, frame_bytes, bytes);
    } else if (type == HEADERS) {
        size_t skipped = flags & HAS_PRIORITY ? 5 : 0;
        if (bytes < skipped || id % 2 == 0) {
            fail(c, 0x1);
            return;
        }
        h2->block_stream = id;
        h2->block_bytes = 0;
        h2->block_ends_stream = flags & END_STREAM;
        take_block(c, data + skipped, bytes - skipped, flags);
    } else if (type == CONTINUATION) {
        if (id == 0 || id != h2->block_stream)
            fail(c, 0x1);
        else
            take_block(c, data, bytes, flags);
    } else if (type == RST_STREAM) {
        struct h2_stream *stream = find_stream(h2, id);
        if (stream != NULL) stream->id = 0;
    } else if (type == SETTINGS && !(flags & ACK)) {
        on_settings(c, data, bytes);
    } else if (type == PING && !(flags & ACK) && bytes == 8) {
        send_frame(c, PING, ACK, 0, data, 8);
    } else if (type == WINDOW_UPDATE && id == 0 && bytes == 4) {
        h2->send_window += get_u32(data);
        send_waiting(c);
    } /* PRIORITY, GOAWAY, a stream's WINDOW_UPDATE (replies fit the first window) and unknown types: nothing to do */
}

size_t h2_take(struct connection *c, const uint8_t *data, size_t bytes) {
    size_t at = 0;
    while (bytes - at >= FRAME_HEAD && !c->is_closing) {
        const uint8_t *head = data + at;
        size_t frame_bytes = get_u32(head) >> 8;
        if (frame_bytes > FRAME_BYTES_MAX) {
            fail(c, 0x6 /* FRAME_SIZE_ERROR */);
            break;
        }
        if (bytes - at < FRAME_HEAD + frame_bytes) break;
        on_frame(c, head[3], head[4], get_u32(head + 5) & 0x7fffffff, head + FRAME_HEAD, frame_bytes);
        at += FRAME_HEAD + frame_bytes;
    }
    return at;
}

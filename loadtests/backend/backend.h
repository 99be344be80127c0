/* The bench's backend: one epoll thread that answers OIP calls over HTTP/1.1 and gRPC with canned replies.
 * It must never be the bottleneck, so it parses only what a proxy could get wrong. Shared declarations. */
#ifndef BENCH_BACKEND_H
#define BENCH_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IN_BYTES (128 * 1024)
#define H2_STREAMS 1024 /* announced as MAX_CONCURRENT_STREAMS; the slot table is four times as large */
#define HPACK_TABLE_BYTES 4096

/* What a call asks for, from its path; the same list serves both protocols. */
enum route {
    ROUTE_INFER,
    ROUTE_LIVE, /* also ready, model ready and grpc.health: a 200, or one true field */
    ROUTE_SERVER,
    ROUTE_MODEL,
    ROUTE_CONFIG,
    ROUTE_INDEX,
    ROUTE_STATS,
    ROUTE_UNKNOWN,
    ROUTES
};

struct counters {
    uint64_t http_calls, grpc_calls; /* infer calls answered */
    uint64_t traced;                 /* infer calls that carried a traceparent */
    uint64_t body_bytes;             /* request bodies of infer calls, gRPC framing included */
};
extern struct counters counters;

enum protocol { NOT_KNOWN, HTTP1, HTTP2 };

/* HTTP/1.1: where the current request stands. */
struct h1_state {
    enum { H1_HEAD, H1_BODY, H1_CHUNK_SIZE, H1_CHUNK_DATA, H1_CHUNK_END, H1_TRAILERS } phase;
    uint64_t left; /* bytes of body or chunk still to come */
    enum route route;
    bool is_binary, is_traced, is_close;
};

/* One entry of the peer's HPACK dynamic table: only what routing needs, and its size for eviction. */
enum field_name { NAME_OTHER, NAME_PATH, NAME_TRACEPARENT };
struct hpack_entry {
    uint32_t size, name_bytes;
    uint8_t name, route;
};
struct hpack_table {
    struct hpack_entry entries[HPACK_TABLE_BYTES / 32]; /* a ring; newest at `first` */
    unsigned first, count, bytes, bytes_max;
};

struct h2_stream {
    uint32_t id; /* 0: free; a stream's slot is its id, see h2.c */
    uint32_t unacknowledged;
    uint8_t route;
    bool is_traced;
};

struct h2_state {
    struct hpack_table table;
    struct h2_stream streams[4 * H2_STREAMS];
    uint32_t waiting[H2_STREAMS]; /* ring: infer streams whose reply waits for connection window */
    unsigned waiting_first, waiting_count;
    int64_t send_window;
    int64_t stream_window; /* the peer's SETTINGS_INITIAL_WINDOW_SIZE */
    uint32_t unacknowledged;
    uint32_t block_stream; /* stream of a header block that goes on in CONTINUATION; 0: none */
    bool block_ends_stream;
    size_t block_bytes;
    uint8_t block[16 * 1024];
};

struct connection {
    int fd;
    enum protocol protocol;
    bool is_closing, is_waiting_to_write;
    uint8_t *in;
    size_t in_bytes;
    uint8_t *out;
    size_t out_bytes, out_capacity;
    struct h1_state h1;
    struct h2_state *h2;
};

/* backend.c */
uint8_t *reserve(struct connection *c, size_t bytes); /* room at the end of `out`; the caller adds to out_bytes */
void append(struct connection *c, const void *data, size_t bytes);
enum route route_of(const char *path, size_t bytes);
size_t stats_json(char *buffer, size_t capacity);

/* h1.c, h2.c: take what is whole in `data`, return how much was taken; set is_closing on a protocol error. */
void h1_init(void);
size_t h1_take(struct connection *c, const uint8_t *data, size_t bytes);
void h2_init(void);
void h2_open(struct connection *c);
size_t h2_take(struct connection *c, const uint8_t *data, size_t bytes);

/* hpack.c: decode a whole header block; false on a malformed one. */
void hpack_init(void);
bool hpack_decode(struct hpack_table *table, const uint8_t *block, size_t bytes, uint8_t *route, bool *is_traced);

#endif

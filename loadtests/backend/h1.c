/* Owns HTTP/1.1: heads, bodies by length or in chunks, 100-continue, keep-alive and pipelining. */
#define _GNU_SOURCE
#include "backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define FLOATS 220 /* 880 bytes of tensor, about 1 KB with its JSON */

struct reply {
    char bytes[8192];
    size_t count;
};
static struct reply replies[ROUTES], binary_infer;

static const char JSON_TYPE[] = "Content-Type: application/json\r\n";

static void set_reply(struct reply *reply, const char *status, const char *headers, const void *body, size_t bytes) {
    int head = snprintf(reply->bytes, sizeof reply->bytes, "HTTP/1.1 %s\r\n%sContent-Length: %zu\r\n\r\n", status,
                        headers, bytes);
    memcpy(reply->bytes + head, body, bytes);
    reply->count = (size_t)head + bytes;
}

static void set_json(enum route route, const char *status, const char *body) {
    set_reply(&replies[route], status, JSON_TYPE, body, strlen(body));
}

static void set_infer_replies(void) {
    char body[4096], headers[160];
    int n = snprintf(body, sizeof body,
                     "{\"model_name\":\"bench\",\"model_version\":\"1\",\"outputs\":[{\"name\":\"y\",\"datatype\":\"FP32\","
                     "\"shape\":[1,%d],\"parameters\":{\"binary_data_size\":%d}}]}",
                     FLOATS, 4 * FLOATS);
    snprintf(headers, sizeof headers,
             "Content-Type: application/octet-stream\r\nInference-Header-Content-Length: %d\r\n", n);
    for (int i = 0; i < FLOATS; i++) {
        float value = (float)i;
        memcpy(body + n + 4 * i, &value, 4);
    }
    set_reply(&binary_infer, "200 OK", headers, body, (size_t)n + 4 * FLOATS);
    n = snprintf(body, sizeof body,
                 "{\"model_name\":\"bench\",\"model_version\":\"1\",\"outputs\":[{\"name\":\"y\",\"datatype\":\"FP32\","
                 "\"shape\":[1,%d],\"data\":[0",
                 FLOATS);
    for (int i = 1; i < FLOATS; i++) n += snprintf(body + n, sizeof body - (size_t)n, ",%d", i);
    snprintf(body + n, sizeof body - (size_t)n, "]}]}");
    set_json(ROUTE_INFER, "200 OK", body);
}

void h1_init(void) {
    set_infer_replies();
    set_json(ROUTE_LIVE, "200 OK", "{\"name\":\"bench\",\"live\":true,\"ready\":true}");
    set_json(ROUTE_SERVER, "200 OK",
             "{\"name\":\"bench\",\"version\":\"1\",\"extensions\":[\"binary_tensor_data\",\"model_repository\"]}");
    set_json(ROUTE_MODEL, "200 OK",
             "{\"name\":\"bench\",\"versions\":[\"1\"],\"platform\":\"bench\",\"inputs\":[{\"name\":\"x\",\"datatype\":"
             "\"FP32\",\"shape\":[-1,-1]}],\"outputs\":[{\"name\":\"y\",\"datatype\":\"FP32\",\"shape\":[-1,-1]}]}");
    set_json(ROUTE_CONFIG, "200 OK", "{\"name\":\"bench\",\"platform\":\"bench\",\"max_batch_size\":1024}");
    set_json(ROUTE_INDEX, "200 OK",
             "[{\"name\":\"bench\",\"version\":\"1\",\"state\":\"READY\",\"reason\":\"\"}]");
    set_json(ROUTE_UNKNOWN, "404 Not Found", "{\"error\":\"no such path\"}");
}

static void answer(struct connection *c) {
    struct h1_state *h1 = &c->h1;
    h1->phase = H1_HEAD;
    if (h1->is_close) c->is_closing = true;
    if (h1->route == ROUTE_STATS) {
        struct reply reply;
        char body[256];
        set_reply(&reply, "200 OK", JSON_TYPE, body, stats_json(body, sizeof body));
        append(c, reply.bytes, reply.count);
        return;
    }
    if (h1->route == ROUTE_INFER) {
        counters.http_calls++;
        counters.traced += h1->is_traced;
    }
    struct reply *reply = h1->route == ROUTE_INFER && h1->is_binary ? &binary_infer : &replies[h1->route];
    append(c, reply->bytes, reply->count);
}

static bool is_name(const char *line, size_t bytes, const char *name) {
    return bytes == strlen(name) && strncasecmp(line, name, bytes) == 0;
}

static void take_header(struct connection *c, const char *line, size_t name_bytes, const char *value) {
    struct h1_state *h1 = &c->h1;
    while (*value == ' ') value++;
    if (is_name(line, name_bytes, "content-length"))
        h1->left = strtoull(value, NULL, 10);
    else if (is_name(line, name_bytes, "transfer-encoding"))
        h1->phase = H1_CHUNK_SIZE;
    else if (is_name(line, name_bytes, "inference-header-content-length"))
        h1->is_binary = true;
    else if (is_name(line, name_bytes, "traceparent"))
        h1->is_traced = true;
    else if (is_name(line, name_bytes, "connection"))
        h1->is_close = strncasecmp(value, "close", 5) == 0;
    else if (is_name(line, name_bytes, "expect"))
        append(c, "HTTP/1.1 100 Continue\r\n\r\n", 25);
}

/* `head` ends with CRLF CRLF. */
static void take_head(struct connection *c, const char *head, size_t bytes) {
    const char *end = head + bytes - 2;
    const char *line_end = memmem(head, bytes, "\r\n", 2);
    const char *path = memchr(head, ' ', (size_t)(line_end - head));
    const char *path_end = path ? memchr(path + 1, ' ', (size_t)(line_end - path - 1)) : NULL;
    if (path_end == NULL) {
        c->is_closing = true;
        return;
    }
    c->h1 = (struct h1_state){.phase = H1_BODY, .route = route_of(path + 1, (size_t)(path_end - path - 1))};
    for (const char *line = line_end + 2; line < end; line = line_end + 2) {
        line_end = memmem(line, (size_t)(end + 2 - line), "\r\n", 2);
        const char *colon = memchr(line, ':', (size_t)(line_end - line));
        if (colon != NULL) take_header(c, line, (size_t)(colon - line), colon + 1);
    }
}

static size_t drop_body(struct h1_state *h1, size_t bytes) {
    size_t taken = bytes < h1->left ? bytes : (size_t)h1->left;
    h1->left -= taken;
    counters.body_bytes += taken;
    return taken;
}

/* One CRLF-ended line of a chunked body; 0 when it is not whole yet. */
static size_t take_chunk_line(struct connection *c, const uint8_t *data, size_t bytes) {
    struct h1_state *h1 = &c->h1;
    const uint8_t *end = memmem(data, bytes, "\r\n", 2);
    if (end == NULL) return 0;
    if (h1->phase == H1_CHUNK_SIZE) {
        h1->left = strtoull((const char *)data, NULL, 16);
        h1->phase = h1->left > 0 ? H1_CHUNK_DATA : H1_TRAILERS;
    } else if (h1->phase == H1_CHUNK_END) {
        h1->phase = H1_CHUNK_SIZE;
    } else if (end == data) { /* the empty line behind the trailers */
        answer(c);
    }
    return (size_t)(end - data) + 2;
}

size_t h1_take(struct connection *c, const uint8_t *data, size_t bytes) {
    struct h1_state *h1 = &c->h1;
    size_t at = 0, step;
    while (at < bytes && !c->is_closing) {
        if (h1->phase == H1_HEAD) {
            const uint8_t *end = memmem(data + at, bytes - at, "\r\n\r\n", 4);
            if (end == NULL) break;
            step = (size_t)(end - data) + 4 - at;
            take_head(c, (const char *)data + at, step);
            if (c->is_closing) break;
            if (h1->phase == H1_BODY && h1->left == 0) answer(c);
        } else if (h1->phase == H1_BODY) {
            step = drop_body(h1, bytes - at);
            if (h1->left == 0) answer(c);
        } else if (h1->phase == H1_CHUNK_DATA) {
            step = drop_body(h1, bytes - at);
            if (h1->left == 0) h1->phase = H1_CHUNK_END;
        } else {
            step = take_chunk_line(c, data + at, bytes - at);
            if (step == 0) break;
        }
        at += step;
    }
    return at;
}

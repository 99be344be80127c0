/* Owns the process: listeners, the epoll loop, reading and writing, and the routes.
 * Usage: backend PORT [UNIX_PATH]. Prints "ready" once it listens; SIGTERM ends it. */
#define _GNU_SOURCE
#include "backend.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define EVENTS 256
static const char PREFACE[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
#define PREFACE_BYTES (sizeof PREFACE - 1)

struct counters counters;
static int epoll_fd;
static struct connection listeners[2];

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void *must(void *memory) {
    if (memory == NULL) die("out of memory");
    return memory;
}

uint8_t *reserve(struct connection *c, size_t bytes) {
    if (c->out_bytes + bytes > c->out_capacity) {
        while (c->out_bytes + bytes > c->out_capacity) c->out_capacity = c->out_capacity ? 2 * c->out_capacity : 4096;
        c->out = must(realloc(c->out, c->out_capacity));
    }
    return c->out + c->out_bytes;
}

void append(struct connection *c, const void *data, size_t bytes) {
    memcpy(reserve(c, bytes), data, bytes);
    c->out_bytes += bytes;
}

static bool ends_with(const char *text, size_t bytes, const char *end) {
    size_t end_bytes = strlen(end);
    return bytes >= end_bytes && memcmp(text + bytes - end_bytes, end, end_bytes) == 0;
}

static bool starts_with(const char *text, size_t bytes, const char *start) {
    return bytes >= strlen(start) && memcmp(text, start, strlen(start)) == 0;
}

/* REST: by how the path ends. gRPC: by the method's name. */
enum route route_of(const char *path, size_t bytes) {
    static const struct {
        const char *end;
        enum route route;
    } ENDS[] = {
        {"/infer", ROUTE_INFER},        {"/ModelInfer", ROUTE_INFER},      {"/ready", ROUTE_LIVE},
        {"/live", ROUTE_LIVE},          {"/ServerLive", ROUTE_LIVE},       {"/ServerReady", ROUTE_LIVE},
        {"/ModelReady", ROUTE_LIVE},    {"/Health/Check", ROUTE_LIVE},     {"/repository/index", ROUTE_INDEX},
        {"/config", ROUTE_CONFIG},      {"/RepositoryIndex", ROUTE_INDEX}, {"/ServerMetadata", ROUTE_SERVER},
        {"/v2", ROUTE_SERVER},          {"/v2/", ROUTE_SERVER},            {"/ModelMetadata", ROUTE_MODEL},
        {"/bench/stats", ROUTE_STATS},
    };
    for (size_t i = 0; i < sizeof ENDS / sizeof *ENDS; i++)
        if (ends_with(path, bytes, ENDS[i].end)) return ENDS[i].route;
    return starts_with(path, bytes, "/v2/models/") ? ROUTE_MODEL : ROUTE_UNKNOWN;
}

size_t stats_json(char *buffer, size_t capacity) {
    return (size_t)snprintf(buffer, capacity,
                            "{\"http_calls\":%llu,\"grpc_calls\":%llu,\"traced\":%llu,\"body_bytes\":%llu}",
                            (unsigned long long)counters.http_calls, (unsigned long long)counters.grpc_calls,
                            (unsigned long long)counters.traced, (unsigned long long)counters.body_bytes);
}

static void watch(struct connection *c, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll_fd, operation, c->fd, &event) != 0) die("epoll_ctl");
}

static void close_connection(struct connection *c) {
    close(c->fd);
    free(c->in);
    free(c->out);
    free(c->h2);
    free(c);
}

/* False once the connection is gone. */
static bool flush(struct connection *c) {
    size_t sent = 0;
    while (sent < c->out_bytes) {
        ssize_t n = send(c->fd, c->out + sent, c->out_bytes - sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
        if (n < 0) return close_connection(c), false;
        sent += (size_t)n;
    }
    memmove(c->out, c->out + sent, c->out_bytes - sent);
    c->out_bytes -= sent;
    bool is_blocked = c->out_bytes > 0;
    if (c->is_closing && !is_blocked) return close_connection(c), false;
    if (is_blocked != c->is_waiting_to_write) {
        /* While the peer does not read, neither do we: its own back-pressure bounds `out`. */
        watch(c, EPOLL_CTL_MOD, is_blocked ? EPOLLOUT : EPOLLIN);
        c->is_waiting_to_write = is_blocked;
    }
    return true;
}

static size_t take_preface(struct connection *c, const uint8_t *data, size_t bytes) {
    size_t known = bytes < PREFACE_BYTES ? bytes : PREFACE_BYTES;
    if (memcmp(data, PREFACE, known) != 0) {
        c->protocol = HTTP1;
        return 0;
    }
    if (known < PREFACE_BYTES) return 0;
    c->protocol = HTTP2;
    c->h2 = must(calloc(1, sizeof *c->h2));
    h2_open(c);
    return PREFACE_BYTES;
}

static void take(struct connection *c) {
    size_t taken = 0;
    if (c->protocol == NOT_KNOWN) taken = take_preface(c, c->in, c->in_bytes);
    if (c->protocol == HTTP1)
        taken += h1_take(c, c->in + taken, c->in_bytes - taken);
    else if (c->protocol == HTTP2)
        taken += h2_take(c, c->in + taken, c->in_bytes - taken);
    memmove(c->in, c->in + taken, c->in_bytes - taken);
    c->in_bytes -= taken;
    if (c->in_bytes == IN_BYTES) c->is_closing = true; /* a head or frame larger than the buffer */
}

static void on_readable(struct connection *c) {
    ssize_t n = recv(c->fd, c->in + c->in_bytes, IN_BYTES - c->in_bytes, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        close_connection(c);
        return;
    }
    c->in_bytes += (size_t)n;
    take(c);
    if (c->out_bytes > 0 || c->is_closing) flush(c);
}

/* Writable again, or an error that send() reports. What was read meanwhile is taken up once all is written. */
static void on_writable(struct connection *c) {
    if (!flush(c) || c->is_waiting_to_write) return;
    take(c);
    if (c->out_bytes > 0 || c->is_closing) flush(c);
}

static void on_connect(struct connection *listener) {
    int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return; /* the caller gave up, or descriptors ran out: level-triggered, so asked again */
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* fails on the unix listener, harmlessly */
    struct connection *c = must(calloc(1, sizeof *c));
    c->fd = fd;
    c->in = must(malloc(IN_BYTES));
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
}

static void listen_on(struct connection *slot, int family, const struct sockaddr *address, socklen_t bytes) {
    int on = 1;
    slot->fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (slot->fd < 0) die("socket");
    if (family == AF_INET) setsockopt(slot->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(slot->fd, address, bytes) != 0) die("bind");
    if (listen(slot->fd, 1024) != 0) die("listen");
    watch(slot, EPOLL_CTL_ADD, EPOLLIN);
}

static void listen_all(int argc, char **argv) {
    struct sockaddr_in tcp = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    tcp.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listen_on(&listeners[0], AF_INET, (struct sockaddr *)&tcp, sizeof tcp);
    if (argc < 3) return;
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    strncpy(local.sun_path, argv[2], sizeof local.sun_path - 1);
    umask(0177); /* the socket is ours alone */
    listen_on(&listeners[1], AF_UNIX, (struct sockaddr *)&local, sizeof local);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: backend PORT [UNIX_PATH]\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    hpack_init();
    h1_init();
    h2_init();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0) die("epoll_create1");
    listen_all(argc, argv);
    puts("ready");
    fflush(stdout);
    struct epoll_event events[EVENTS];
    for (;;) {
        int n = epoll_wait(epoll_fd, events, EVENTS, -1);
        if (n < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (c == &listeners[0] || c == &listeners[1])
                on_connect(c);
            else if (c->is_waiting_to_write)
                on_writable(c);
            else
                on_readable(c);
        }
    }
}

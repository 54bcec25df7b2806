/* The limit: a broadcast server in C that does nothing else, to know what the kernel allows.
 *
 *   limit PORT single   one send() per message and client
 *   limit PORT batched  one send() per client and turn of the event loop
 *
 * /ws echoes, /ws/anything is the one room there is. No fragments, no limits, no compression: it is
 * a yardstick, not a server for anybody.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_FDS 40000
#define EVENTS 512
#define INPUT 4096
#define BATCH (4 << 20)

struct client {
    int fd, member, position;
    enum { NONE, REQUEST, ROOM, ECHO_ROOM } state;
    uint32_t size; /* of what waits in input */
    uint8_t *input;
    uint8_t *backlog;
    size_t backlog_size;
};

static struct client clients[MAX_FDS];
static int members[MAX_FDS], member_count, poller, batched;
static uint8_t batch[BATCH];
static size_t batch_size;

static uint32_t roll(uint32_t x, int n) { return x << n | x >> (32 - n); }

static void sha1_block(uint32_t h[5], const uint8_t *p) {
    uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 |
               (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
    for (int i = 16; i < 80; i++) w[i] = roll(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
    for (int i = 0; i < 80; i++) {
        uint32_t f = i < 20   ? ((b & c) | (~b & d)) + 0x5a827999
                     : i < 40 ? (b ^ c ^ d) + 0x6ed9eba1
                     : i < 60 ? ((b & c) | (b & d) | (c & d)) + 0x8f1bbcdc
                              : (b ^ c ^ d) + 0xca62c1d6;
        uint32_t t = roll(a, 5) + f + e + w[i];
        e = d;
        d = c;
        c = roll(b, 30);
        b = a;
        a = t;
    }
    h[0] += a;
    h[1] += b;
    h[2] += c;
    h[3] += d;
    h[4] += e;
}

/* Sec-WebSocket-Accept: the base64 of the SHA-1 of the key and RFC 6455's constant. */
static void accept_key(const char *key, char out[32]) {
    static const char B64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
    uint8_t text[128] = {0}, digest[21] = {0};
    int size = sprintf((char *)text, "%.24s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key);
    text[size] = 0x80;
    text[126] = (uint8_t)(size * 8 >> 8);
    text[127] = (uint8_t)(size * 8);
    sha1_block(h, text);
    sha1_block(h, text + 64);
    for (int i = 0; i < 20; i++) digest[i] = (uint8_t)(h[i / 4] >> (24 - 8 * (i % 4)));
    for (int i = 0; i < 7; i++) {
        uint32_t n = (uint32_t)digest[3 * i] << 16 | (uint32_t)digest[3 * i + 1] << 8 |
                     digest[3 * i + 2];
        for (int j = 0; j < 4; j++) out[4 * i + j] = B64[n >> (18 - 6 * j) & 63];
    }
    out[27] = '=';
    out[28] = 0;
}

static void drop(struct client *c) {
    if (c->member) {
        int last = members[--member_count];
        members[c->position] = last;
        clients[last].position = c->position;
    }
    close(c->fd);
    free(c->input);
    free(c->backlog);
    memset(c, 0, sizeof *c);
}

static void want(struct client *c, uint32_t events) {
    struct epoll_event e = {.events = events, .data.fd = c->fd};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

static void put(struct client *c, const uint8_t *data, size_t size) {
    if (!c->backlog_size) {
        ssize_t n = send(c->fd, data, size, MSG_NOSIGNAL);
        if (n == (ssize_t)size) return;
        if (n < 0 && errno != EAGAIN) return; /* the next read tells */
        if (n > 0) data += n, size -= (size_t)n;
        want(c, EPOLLIN | EPOLLOUT);
    }
    c->backlog = realloc(c->backlog, c->backlog_size + size);
    memcpy(c->backlog + c->backlog_size, data, size);
    c->backlog_size += size;
}

static void put_backlog(struct client *c) {
    ssize_t n = send(c->fd, c->backlog, c->backlog_size, MSG_NOSIGNAL);
    if (n <= 0) return;
    c->backlog_size -= (size_t)n;
    memmove(c->backlog, c->backlog + n, c->backlog_size);
    if (!c->backlog_size) want(c, EPOLLIN);
}

static void flush(void) {
    for (int i = 0; i < member_count && batch_size; i++)
        put(&clients[members[i]], batch, batch_size);
    batch_size = 0;
}

static size_t frame(uint8_t *out, int opcode, const uint8_t *data, size_t size) {
    size_t at = 2;
    out[0] = (uint8_t)(0x80 | opcode);
    out[1] = (uint8_t)(size < 126 ? size : 126);
    if (size >= 126) {
        out[2] = (uint8_t)(size >> 8);
        out[3] = (uint8_t)size;
        at = 4;
    }
    memcpy(out + at, data, size);
    return at + size;
}

static void message(struct client *c, const uint8_t *data, size_t size) {
    uint8_t out[INPUT + 16];
    if (c->state == ECHO_ROOM) {
        put(c, out, frame(out, 1, data, size));
        return;
    }
    if (batch_size + size + 16 > BATCH) flush();
    batch_size += frame(batch + batch_size, 1, data, size);
    if (!batched) flush();
}

/* Returns the bytes of the first whole frame, or 0; unmasks it and hands it on. */
static size_t read_frame(struct client *c) {
    uint8_t *p = c->input;
    if (c->size < 6) return 0;
    size_t size = p[1] & 127u, at = 2;
    if (size == 127) return c->size; /* longer than anything we are sent: thrown away */
    if (size == 126) size = (size_t)p[2] << 8 | p[3], at = 4;
    if (c->size < at + 4 + size) return 0;
    uint8_t *key = p + at, *data = key + 4;
    for (size_t i = 0; i < size; i++) data[i] ^= key[i & 3];
    if ((p[0] & 15) < 3) message(c, data, size);
    return at + 4 + size;
}

static void handshake(struct client *c) {
    char answer[200], key[32];
    char *text = (char *)c->input, *found;
    text[c->size] = 0;
    if (!strstr(text, "\r\n\r\n")) return;
    found = strcasestr(text, "sec-websocket-key: ");
    if (!found) {
        drop(c);
        return;
    }
    accept_key(found + 19, key);
    int size = sprintf(answer,
                       "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                       "Connection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
                       key);
    c->state = strncmp(text, "GET /ws ", 8) ? ROOM : ECHO_ROOM;
    c->size = 0;
    put(c, (uint8_t *)answer, (size_t)size);
    if (c->state != ROOM) return;
    c->member = 1;
    c->position = member_count;
    members[member_count++] = c->fd;
}

static void on_readable(struct client *c) {
    ssize_t n = recv(c->fd, c->input + c->size, INPUT - c->size, 0);
    if (n <= 0) {
        if (n == 0 || errno != EAGAIN) drop(c);
        return;
    }
    c->size += (uint32_t)n;
    if (c->state == REQUEST) {
        handshake(c);
        return;
    }
    for (size_t used; c->size && (used = read_frame(c));) {
        c->size -= (uint32_t)used;
        memmove(c->input, c->input + used, c->size);
    }
    if (c->size == INPUT) drop(c);
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (fd >= MAX_FDS) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        clients[fd] = (struct client){.fd = fd, .state = REQUEST, .input = malloc(INPUT + 1)};
        struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
    }
}

int main(int argc, char **argv) {
    static struct epoll_event events[EVENTS];
    struct sockaddr_in at = {.sin_family = AF_INET};
    struct rlimit files;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (argc != 3) return 2;
    batched = !strcmp(argv[2], "batched");
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    at.sin_port = htons((uint16_t)atoi(argv[1]));
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 2048)) return 1;
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        int n = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            struct client *c = &clients[events[i].data.fd];
            if (events[i].data.fd == listener) {
                accept_all(listener);
                continue;
            }
            if (events[i].events & EPOLLOUT && c->backlog_size) put_backlog(c);
            if (c->state != NONE && events[i].events & ~(uint32_t)EPOLLOUT) on_readable(c);
        }
        flush();
    }
}

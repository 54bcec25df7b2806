/* The load generator: many WebSocket clients in one thread, as cheap as they can be.
 *
 * It reads commands from stdin, one a line, `verb key=value ...`, and answers each with one line of
 * JSON. `benchmarks/load.py` is the other side. It ends when stdin does.
 *
 *   connect  opens members of the broadcast, and keeps them
 *   drive    publishes and counts: closed loop (`inflight`) or at a rate (`rate`)
 *   echo     opens connections of its own, each with one message on its way, and closes them
 *   close    drops all members
 *   words    says what messages are filled with
 *
 * Rules of this file:
 * - A message is *done* when the last member of its group has got it, and only then makes room for
 *   the next one. So "8 in flight" means eight that somebody still waits for.
 * - Ordinary members only have their frame headers walked over; nothing of the payload is looked
 *   at. What the *probes* get is recorded, with the time of arrival, for Python to check.
 * - Every wait has a deadline. Connections are dropped with a reset, which leaves no TIME_WAIT.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MAX_CONNS 40000
#define MAX_GROUPS 4096
#define MAX_PROBES 16
#define RING 1024 /* messages of a group on their way at once; a power of two */
#define EVENTS 256
#define READ_SIZE (256 * 1024)
#define RECORD_SIZE (96u << 20)
#define PENDING_SIZE (256 * 1024) /* a publisher's bytes that the server does not take */
#define MAX_KEPT (1 << 20)        /* longest message that is looked at */
#define MAX_ECHOES (4 << 20)
#define FIRST_ID 1000000 /* client ids have seven digits, so that all messages are equally long */

enum state { FREE, CONNECTING, HANDSHAKE, HELLO, OPEN, LOST };

struct conn {
    int fd;
    uint32_t group;
    uint32_t count; /* broadcasts received in this drive */
    uint8_t state, echo, probe, publisher, uncounted, wait;
    uint8_t header[10], have; /* of the frame being read */
    uint64_t left;            /* bytes of its payload still to come */
    char *kept;               /* its payload, if anyone looks at it */
    uint32_t kept_size, kept_room;
    char *pending; /* what the server would not take yet */
    uint32_t pending_size;
    uint64_t asked; /* when this echo was sent */
};

struct group {
    uint32_t members; /* that count */
    uint32_t sent, done, next;
    uint32_t got[RING]; /* how many members have their nth message, n modulo RING */
};

static struct conn conns[MAX_CONNS];
static struct group groups[MAX_GROUPS];
static char input[READ_SIZE];
static char *record;
static size_t recorded;
static int truncated;
static float *echo_times;
static uint32_t echoes;
static int conn_count, group_count = 1;
static int opened, ready, failed, lost, odd;
static char failure[160], extension[160];
static uint64_t deliveries, bytes_in, last_delivery, unsent;
static int poller, ticker;

/* What the current command asks for. */
static int offer, publishers, inflight, sending, measuring, text_size, hello_frames, answer_pings;
static char path[200], hello[100], before[100], after[100];
static int reply_byte, port;
static double rate;
static uint64_t rate_start, rate_sent;

static const char WORDS[] =
    "the kettle is on and somebody has left the window open again so who is coming to the market "
    "this afternoon because we need bread apples and a new lamp for the hall and please remember "
    "that the meeting was moved to thursday at ten in the small room next to the kitchen where "
    "the old printer stands nobody knows why it hums at night but it does and the cat likes it "
    "there is still some soup in the blue pot help yourself and leave a note if you finish it or "
    "tell the others in the garden that the post has come with two letters and a heavy parcel "
    "from the coast it smells of salt and paint we think it is the boat that uncle karl promised "
    "to build last summer when the rain would not stop and everyone played cards until midnight "
    "then the lights went out and we found seven candles in a drawer under the maps of the lake "
    "which are out of date by forty years yet still show the best place to fish before breakfast "
    "on quiet mornings with the fog lifting slowly over the reeds and a train far away on its way "
    "to the city full of people reading yesterday's paper or sleeping against the cold glass and "
    "dreaming of nothing much at all until the whistle blows and the doors slide open with a sigh";

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static double cpu(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void say(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    putchar('\n');
    fflush(stdout);
}

static void give_up(struct conn *c, const char *why) {
    if (c->state == LOST || c->state == FREE) return;
    if (c->state == OPEN)
        lost++;
    else
        failed++;
    if (!failure[0]) {
        snprintf(failure, sizeof failure, "%s", why);
        for (char *p = failure; *p; p++) /* it will stand in JSON */
            if (*p == '"' || *p == '\\' || *p < ' ') *p = '?';
    }
    c->state = LOST;
    close(c->fd);
    c->fd = -1;
}

static void release(struct conn *c) {
    struct linger reset = {.l_onoff = 1, .l_linger = 0};
    if (c->fd >= 0 && c->state != FREE) {
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        close(c->fd);
    }
    free(c->kept);
    free(c->pending);
    memset(c, 0, sizeof *c);
    c->fd = -1;
}

/* ---- writing ---------------------------------------------------------------------------- */

static void want(struct conn *c, uint32_t events) {
    struct epoll_event e = {.events = events, .data.u32 = (uint32_t)(c - conns)};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

/* Returns 0 if so much waits already that these bytes were not taken. */
static int write_bytes(struct conn *c, const char *data, size_t size) {
    ssize_t n = 0;
    if (c->pending_size + size > PENDING_SIZE) return 0;
    if (!c->pending_size) {
        n = send(c->fd, data, size, MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN) {
            give_up(c, strerror(errno));
            return 0;
        }
        if (n < 0) n = 0;
        if ((size_t)n == size) return 1;
    }
    if (!c->pending) c->pending = malloc(PENDING_SIZE);
    memcpy(c->pending + c->pending_size, data + n, size - (size_t)n);
    if (!c->pending_size) want(c, EPOLLIN | EPOLLOUT);
    c->pending_size += (uint32_t)(size - (size_t)n);
    return 1;
}

static void write_pending(struct conn *c) {
    ssize_t n = send(c->fd, c->pending, c->pending_size, MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN) return;
    if (n < 0) {
        give_up(c, strerror(errno));
        return;
    }
    c->pending_size -= (uint32_t)n;
    memmove(c->pending, c->pending + n, c->pending_size);
    if (!c->pending_size) want(c, EPOLLIN);
}

/* A client's frame is masked; an all-zero key would let a server skip the work. */
static int write_frame(struct conn *c, int opcode, const char *payload, size_t size) {
    static const uint8_t key[4] = {0x37, 0xfa, 0x21, 0x3d};
    static uint8_t frame[MAX_KEPT + 16];
    size_t at = 2;
    if (size > MAX_KEPT) return 0;
    frame[0] = (uint8_t)(0x80 | opcode);
    if (size < 126) {
        frame[1] = (uint8_t)(0x80 | size);
    } else if (size < 65536) {
        frame[1] = 0x80 | 126;
        frame[at++] = (uint8_t)(size >> 8);
        frame[at++] = (uint8_t)size;
    } else {
        frame[1] = 0x80 | 127;
        for (int i = 7; i >= 0; i--) frame[at++] = (uint8_t)((uint64_t)size >> (8 * i));
    }
    memcpy(frame + at, key, 4);
    at += 4;
    for (size_t i = 0; i < size; i++) frame[at + i] = (uint8_t)(payload[i] ^ key[i & 3]);
    return write_bytes(c, (char *)frame, at + size);
}

/* The text: `~`, the number in its group (8 hex digits), when it was due (16), and words. */
static size_t compose(char *out, uint32_t number, uint64_t due) {
    size_t at = (size_t)sprintf(out, "%s~%08x%016llx", before, number, (unsigned long long)due);
    size_t end = strlen(before) + (size_t)text_size;
    size_t word = (number * 37u) % (sizeof WORDS - 1);
    for (; at < end; at++) {
        out[at] = WORDS[word];
        word = (word + 1) % (sizeof WORDS - 1);
    }
    strcpy(out + at, after);
    return at + strlen(after);
}

static int publish(uint32_t g, uint64_t due) {
    static char text[MAX_KEPT];
    struct group *group = &groups[g];
    struct conn *c = &conns[g + (uint32_t)group_count * (group->next % (uint32_t)publishers)];
    group->next++;
    if (c->state != OPEN || !write_frame(c, 1, text, compose(text, group->sent, due))) return 0;
    group->sent++;
    return 1;
}

/* Closed loop: fill up to `inflight` messages that some member still waits for. */
static void pump(uint32_t g) {
    while (sending && rate == 0 && groups[g].sent - groups[g].done < (uint32_t)inflight)
        if (!publish(g, now())) {
            unsent++;
            return;
        }
}

/* Open loop: whatever is due by now. Stamped with when it was due, not with when we came to it. */
static void pace(void) {
    uint64_t time = now(), due;
    while (sending && (due = rate_start + (uint64_t)((double)rate_sent * 1e9 / rate)) <= time) {
        if (!publish((uint32_t)(rate_sent % (uint64_t)group_count), due)) unsent++;
        rate_sent++;
    }
    if (sending) {
        struct itimerspec next = {.it_value = {.tv_sec = (time_t)(due / 1000000000u),
                                               .tv_nsec = (long)(due % 1000000000u)}};
        timerfd_settime(ticker, TFD_TIMER_ABSTIME, &next, NULL);
    }
}

/* ---- reading ---------------------------------------------------------------------------- */

/* One record: nanoseconds (8 bytes), connection (4), first byte of the frame (4), size (4). */
static void note(uint32_t who, uint32_t first, const char *data, uint32_t size) {
    uint64_t time = now();
    if (recorded + 20 + size > RECORD_SIZE) {
        truncated = 1;
        return;
    }
    memcpy(record + recorded, &time, 8);
    memcpy(record + recorded + 8, &who, 4);
    memcpy(record + recorded + 12, &first, 4);
    memcpy(record + recorded + 16, &size, 4);
    memcpy(record + recorded + 20, data, size);
    recorded += 20 + size;
}

static void ask_again(struct conn *c) {
    static char text[MAX_KEPT];
    uint64_t time = now();
    if (measuring && echoes < MAX_ECHOES) echo_times[echoes++] = (float)(time - c->asked) / 1e6f;
    if (!sending) return;
    c->asked = time;
    write_frame(c, 1, text, compose(text, ++c->count, time));
}

static void delivered(struct conn *c) {
    struct group *group = &groups[c->group];
    uint32_t slot = c->count++ & (RING - 1);
    deliveries++;
    if (rate != 0) return;
    if (++group->got[slot] == group->members) {
        group->got[slot] = 0;
        group->done++;
        pump(c->group);
    }
}

static void message(struct conn *c, uint32_t size) {
    if (c->state == HELLO) {
        if (--c->wait == 0) {
            c->state = OPEN;
            ready++;
        }
        if (!c->probe) return;
    }
    if (c->probe) note((uint32_t)(c - conns), c->header[0], c->kept, size);
    if (c->state != OPEN) return;
    if (c->echo) {
        ask_again(c);
        return;
    }
    if (answer_pings && size <= 4) { /* Engine.IO's own ping, which may be compressed */
        write_frame(c, 1, "3", 1);
        return;
    }
    if (c->uncounted) return;
    if (c->publisher && reply_byte && size && c->kept && c->kept[0] == reply_byte) return;
    delivered(c);
}

static void frame_done(struct conn *c) {
    int opcode = c->header[0] & 15, fin = c->header[0] & 128;
    uint32_t size = c->kept_size;
    c->have = 0;
    c->kept_size = 0;
    if (opcode == 8) {
        char why[160];
        unsigned code = size >= 2 ? (uint8_t)c->kept[0] * 256u + (uint8_t)c->kept[1] : 1005;
        snprintf(why, sizeof why, "the server closed with %u", code);
        give_up(c, why);
    } else if (opcode == 9) {
        write_frame(c, 10, c->kept ? c->kept : "", size);
    } else if (opcode == 1 || opcode == 2) {
        if (!fin) odd++;
        message(c, size);
    } else if (opcode != 10) {
        odd++;
    }
}

static unsigned header_size(const uint8_t *h) {
    unsigned length = h[1] & 127u;
    return length < 126 ? 2 : length == 126 ? 4 : 10;
}

static uint64_t payload_size(const uint8_t *h) {
    uint64_t length = h[1] & 127u;
    if (length < 126) return length;
    if (length == 126) return (uint64_t)h[2] << 8 | h[3];
    length = 0;
    for (int i = 2; i < 10; i++) length = length << 8 | h[i];
    return length;
}

/* A payload is kept where somebody looks at it: probes, publishers, control frames, greetings. */
static int is_kept(const struct conn *c) {
    return c->probe || c->publisher || c->header[0] & 8 || c->state != OPEN;
}

static void keep(struct conn *c, const char *data, size_t size) {
    if (c->kept_size + size > MAX_KEPT) {
        give_up(c, "a message longer than a megabyte");
        return;
    }
    if (c->kept_size + size > c->kept_room) {
        c->kept_room = (uint32_t)(c->kept_size + size + 256);
        c->kept = realloc(c->kept, c->kept_room);
    }
    memcpy(c->kept + c->kept_size, data, size);
    c->kept_size += (uint32_t)size;
}

static void walk(struct conn *c, const char *data, size_t size) {
    const char *end = data + size;
    while (data < end && c->state != LOST) {
        if (c->have < 2 || c->have < header_size(c->header)) {
            c->header[c->have++] = (uint8_t)*data++;
            if (c->have < 2 || c->have < header_size(c->header)) continue;
            c->left = payload_size(c->header);
        } else {
            size_t part = (size_t)(end - data) < c->left ? (size_t)(end - data) : (size_t)c->left;
            if (is_kept(c))
                keep(c, data, part);
            else
                c->kept_size += (uint32_t)part;
            data += part;
            c->left -= part;
        }
        if (!c->left) frame_done(c);
    }
}

static void opened_one(struct conn *c) {
    opened++;
    if (!c->wait) {
        c->state = OPEN;
        ready++;
        return;
    }
    c->state = HELLO;
    if (hello[0]) write_frame(c, 1, hello, strlen(hello));
}

/* The key of the request is RFC 6455's example, so the answer has to be the one it gives. */
static void handshake(struct conn *c, const char *data, size_t size) {
    char *end, *line;
    keep(c, data, size);
    keep(c, "", 1);
    c->kept_size--;
    end = strstr(c->kept, "\r\n\r\n");
    if (!end) return;
    *end = 0;
    if (strncmp(c->kept, "HTTP/1.1 101", 12) || !strstr(c->kept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")) {
        c->kept[strcspn(c->kept, "\r\n")] = 0;
        give_up(c, c->kept);
        return;
    }
    line = strcasestr(c->kept, "\r\nsec-websocket-extensions:");
    if (line && !extension[0]) {
        line += strlen("\r\nsec-websocket-extensions:");
        snprintf(extension, sizeof extension, "%.*s", (int)strcspn(line, "\r\n"), line);
    }
    end += 4;
    size = c->kept_size - (size_t)(end - c->kept);
    line = c->kept; /* walk() begins a buffer of its own */
    c->kept = NULL;
    c->kept_size = c->kept_room = 0;
    opened_one(c);
    walk(c, end, size);
    free(line);
}

static void ask(struct conn *c, int index) {
    char request[1024], target[400];
    size_t at = 0;
    for (const char *p = path; *p && at < sizeof target - 20; p++) {
        if (!strncmp(p, "{id}", 4)) {
            at += (size_t)sprintf(target + at, "%d", FIRST_ID + index);
            p += 3;
        } else if (!strncmp(p, "{room}", 6)) {
            at += (size_t)sprintf(target + at, "%u", c->group);
            p += 5;
        } else {
            target[at++] = *p;
        }
    }
    target[at] = 0;
    int size = snprintf(request, sizeof request,
                        "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\n"
                        "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                        "Sec-WebSocket-Version: 13\r\n%s\r\n",
                        target, port,
                        offer ? "Sec-WebSocket-Extensions: permessage-deflate; "
                                "client_max_window_bits\r\n"
                              : "");
    c->state = HANDSHAKE;
    want(c, EPOLLIN);
    write_bytes(c, request, (size_t)size);
}

static void on_event(struct conn *c, uint32_t events) {
    if (c->state == LOST || c->state == FREE) return;
    if (c->state == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error)
            give_up(c, strerror(error));
        else
            ask(c, (int)(c - conns));
        return;
    }
    if (events & EPOLLOUT && c->pending_size) write_pending(c);
    if (c->state == LOST || !(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    ssize_t n = recv(c->fd, input, sizeof input, 0);
    if (n <= 0) {
        if (n < 0 && errno == EAGAIN) return;
        give_up(c, n ? strerror(errno) : "the server hung up");
        return;
    }
    bytes_in += (uint64_t)n;
    if (c->state == HANDSHAKE)
        handshake(c, input, (size_t)n);
    else
        walk(c, input, (size_t)n);
}

/* One turn of the loop. Returns how many events there were. */
static int turn(int milliseconds) {
    static struct epoll_event events[EVENTS];
    uint64_t before_turn = deliveries;
    int n = epoll_wait(poller, events, EVENTS, milliseconds);
    for (int i = 0; i < n; i++) {
        if (events[i].data.u32 == MAX_CONNS) {
            uint64_t ticks;
            if (read(ticker, &ticks, sizeof ticks) > 0 && rate != 0) pace();
            continue;
        }
        on_event(&conns[events[i].data.u32], events[i].events);
        if (rate != 0 && sending && (i & 31) == 31) pace(); /* reading must not delay sending */
    }
    if (deliveries != before_turn) last_delivery = now();
    return n;
}

/* ---- commands --------------------------------------------------------------------------- */

static const char *value(const char *line, const char *key, const char *otherwise) {
    static char out[8][400];
    static int next;
    char pattern[40], *slot = out[next++ & 7];
    const char *found;
    snprintf(pattern, sizeof pattern, " %s=", key);
    found = strstr(line, pattern);
    if (!found) return otherwise;
    found += strlen(pattern);
    snprintf(slot, 400, "%.*s", (int)strcspn(found, " \n"), found);
    return slot;
}

static double number(const char *line, const char *key, double otherwise) {
    const char *text = value(line, key, NULL);
    return text ? atof(text) : otherwise;
}

static void begin(struct conn *c) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int one = 1;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    c->state = CONNECTING;
    if (c->fd < 0) {
        give_up(c, strerror(errno));
        return;
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event e = {.events = EPOLLOUT, .data.u32 = (uint32_t)(c - conns)};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e);
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS)
        give_up(c, strerror(errno));
}

static void read_options(const char *line) {
    port = (int)number(line, "port", 0);
    offer = (int)number(line, "offer", 0);
    hello_frames = (int)number(line, "wait", 0);
    answer_pings = (int)number(line, "pings", 0);
    snprintf(path, sizeof path, "%s", value(line, "path", "/"));
    snprintf(hello, sizeof hello, "%s", value(line, "hello", ""));
}

static void read_text_options(const char *line) {
    text_size = (int)number(line, "size", 64);
    snprintf(before, sizeof before, "%s", value(line, "before", ""));
    snprintf(after, sizeof after, "%s", value(line, "after", ""));
}

/* Open `n` more connections, `window` at a time. Returns the seconds it took. */
static double open_many(const char *line, int n, int echo) {
    int begun = 0, window = (int)number(line, "window", 64);
    uint64_t start = now();
    uint64_t deadline = start + (uint64_t)(number(line, "timeout", 30) * 1e9);
    opened = ready = failed = lost = odd = 0;
    failure[0] = 0;
    if (n > MAX_CONNS - conn_count) n = MAX_CONNS - conn_count;
    while (ready + failed < n && now() < deadline) {
        while (begun < n && begun - ready - failed < window) {
            struct conn *c = &conns[conn_count++];
            memset(c, 0, sizeof *c);
            c->echo = (uint8_t)echo;
            c->wait = (uint8_t)hello_frames;
            c->group = (uint32_t)((c - conns) % group_count);
            c->probe = !echo && (begun == n / 4 || begun == n / 2 || begun == n - 1);
            begin(c);
            begun++;
        }
        turn(100);
    }
    if (ready < n && !failure[0]) snprintf(failure, sizeof failure, "the deadline passed");
    return (double)(now() - start) / 1e9;
}

static void do_connect(const char *line) {
    read_options(line);
    group_count = (int)number(line, "groups", 1);
    if (group_count < 1 || group_count > MAX_GROUPS) group_count = 1;
    extension[0] = 0;
    double start = cpu(), seconds = open_many(line, (int)number(line, "n", 1), 0);
    say("{\"connected\": %d, \"failed\": %d, \"seconds\": %.6f, \"cpu\": %.4f, "
        "\"extension\": \"%s\", \"failure\": \"%s\"}",
        ready, failed, seconds, (cpu() - start) / seconds, extension, failure);
}

/* Wait until nothing has come for 50 ms. Returns 0 if that does not happen within `seconds`. */
static int settle(double seconds) {
    uint64_t deadline = now() + (uint64_t)(seconds * 1e9);
    while (now() < deadline)
        if (turn(50) == 0) return 1;
    return 0;
}

static void reset_counters(void) {
    for (int g = 0; g < group_count; g++) memset(&groups[g], 0, sizeof groups[g]);
    for (int i = 0; i < conn_count; i++) {
        struct conn *c = &conns[i];
        c->count = 0;
        c->publisher = i / group_count < publishers;
        /* Compressed, its personal answers can't be told from what goes to all. */
        c->uncounted = c->publisher && reply_byte && offer && rate == 0;
        if (c->state == OPEN && !c->uncounted) groups[c->group].members++;
    }
    deliveries = bytes_in = unsent = 0;
    lost = odd = 0;
    failure[0] = 0;
}

static int outstanding(void) {
    for (int g = 0; g < group_count; g++)
        if (rate == 0 && groups[g].done != groups[g].sent) return 1;
    if (rate == 0) return 0;
    uint64_t owed = 0;
    for (int g = 0; g < group_count; g++) owed += (uint64_t)groups[g].sent * groups[g].members;
    return deliveries < owed;
}

static int write_records(const char *name) {
    int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    size_t at = 0;
    if (fd < 0) return 0;
    while (at < recorded) {
        ssize_t n = write(fd, record + at, recorded - at);
        if (n <= 0) break;
        at += (size_t)n;
    }
    close(fd);
    return at == recorded;
}

static uint64_t messages_done(void) {
    uint64_t sum = 0;
    for (int g = 0; g < group_count; g++) sum += groups[g].done;
    return sum;
}

/* Run until `until`, or until nothing has been delivered for `patience` seconds.
 *
 * In a closed loop at least until `messages` are done, for as long as `longer` seconds more: in less
 * than one cycle, a slow server shows either what it computes or what it sends, but no rate.
 */
static int run_until(uint64_t until, double patience, uint64_t messages, double longer) {
    uint64_t latest = until + (uint64_t)(longer * 1e9), time;
    while ((time = now()) < until || (time < latest && rate == 0 && messages_done() < messages)) {
        turn(20);
        if (rate == 0 && now() - last_delivery > (uint64_t)(patience * 1e9)) return 0;
    }
    return 1;
}

static void do_drive(const char *line) {
    double warmup = number(line, "warmup", 0.3), seconds = number(line, "seconds", 1);
    double grace = number(line, "grace", 0.1), patience = number(line, "patience", 2);
    double drain = number(line, "drain", 5);
    publishers = (int)number(line, "publishers", 1);
    inflight = (int)number(line, "inflight", 1);
    rate = number(line, "rate", 0);
    reply_byte = value(line, "reply", "")[0];
    read_text_options(line);
    if (inflight > RING) inflight = RING;
    int quiet = settle(3);
    truncated = 0;
    reset_counters();
    note(UINT32_MAX, 0, "", 0); /* what comes after this mark belongs to this drive */

    uint64_t start = now();
    sending = 1;
    last_delivery = start;
    rate_start = start;
    rate_sent = 0;
    if (rate != 0)
        pace();
    else
        for (int g = 0; g < group_count; g++) pump((uint32_t)g);
    int alive = run_until(start + (uint64_t)(warmup * 1e9), patience, 1, patience);

    uint64_t from = now(), counted = deliveries;
    double used = cpu();
    uint64_t cycle = messages_done() + (uint64_t)inflight * (uint64_t)group_count;
    if (alive) alive = run_until(from + (uint64_t)(seconds * 1e9), patience, cycle, drain);
    uint64_t to = now();
    used = cpu() - used;
    counted = deliveries - counted;
    sending = 0;
    /* What is on its way belongs to this drive; after `drain` seconds we no longer wait for it. */
    uint64_t deadline = to + (uint64_t)((rate != 0 ? grace : drain) * 1e9);
    while (alive && outstanding() && now() < deadline) {
        turn(10);
        alive = rate != 0 || now() - last_delivery < (uint64_t)(patience * 1e9);
    }

    uint64_t sent = 0, owed = 0;
    for (int g = 0; g < group_count; g++) {
        sent += groups[g].sent;
        owed += (uint64_t)groups[g].sent * groups[g].members;
    }
    int saved = write_records(value(line, "record", "/dev/null"));
    recorded = 0;
    say("{\"seconds\": %.6f, \"deliveries\": %llu, \"cpu\": %.4f, \"sent\": %llu, "
        "\"received\": %llu, \"owed\": %llu, \"offered\": %llu, \"unsent\": %llu, "
        "\"complete\": %s, \"stalled\": %s, \"quiet\": %s, \"lost\": %d, \"odd\": %d, "
        "\"recorded\": %s, \"from\": %llu, \"to\": %llu, \"bytes\": %llu, \"failure\": \"%s\"}",
        (double)(to - from) / 1e9, (unsigned long long)counted, used / ((double)(to - from) / 1e9),
        (unsigned long long)sent, (unsigned long long)deliveries, (unsigned long long)owed,
        (unsigned long long)(rate != 0 ? rate_sent : sent), (unsigned long long)unsent,
        outstanding() ? "false" : "true", alive ? "false" : "true", quiet ? "true" : "false", lost,
        odd, saved && !truncated ? "true" : "false", (unsigned long long)from,
        (unsigned long long)to, (unsigned long long)bytes_in, failure);
}

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

static void do_echo(const char *line) {
    int first = conn_count, wanted = (int)number(line, "n", 100);
    double warmup = number(line, "warmup", 0.3), seconds = number(line, "seconds", 1);
    int members_offer = offer, members_pings = answer_pings;
    read_options(line);
    read_text_options(line);
    rate = 0;
    open_many(line, wanted, 1);
    int connected = ready;
    measuring = 0;
    sending = 1;
    echoes = 0;
    for (int i = first; i < conn_count; i++)
        if (conns[i].state == OPEN) ask_again(&conns[i]);
    uint64_t start = now();
    while (now() < start + (uint64_t)(warmup * 1e9)) turn(20);
    measuring = 1;
    uint64_t from = now();
    double used = cpu();
    while (now() < from + (uint64_t)(seconds * 1e9)) turn(20);
    double took = (double)(now() - from) / 1e9;
    used = cpu() - used;
    sending = measuring = 0;
    for (int i = first; i < conn_count; i++) release(&conns[i]);
    conn_count = first;
    offer = members_offer;
    answer_pings = members_pings;
    qsort(echo_times, echoes, sizeof *echo_times, by_size);
    say("{\"connected\": %d, \"seconds\": %.6f, \"echoes\": %u, \"cpu\": %.4f, \"lost\": %d, "
        "\"p50\": %.4f, \"p99\": %.4f, \"failure\": \"%s\"}",
        connected, took, echoes, used / took, lost,
        echoes ? (double)echo_times[echoes / 2] : 0.0,
        echoes ? (double)echo_times[echoes - 1 - echoes / 100] : 0.0, failure);
}

static void do_close(void) {
    for (int i = 0; i < conn_count; i++) release(&conns[i]);
    conn_count = 0;
    recorded = 0;
    say("{\"closed\": true}");
}

int main(void) {
    char line[2000];
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    poller = epoll_create1(EPOLL_CLOEXEC);
    ticker = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event e = {.events = EPOLLIN, .data.u32 = MAX_CONNS};
    epoll_ctl(poller, EPOLL_CTL_ADD, ticker, &e);
    record = malloc(RECORD_SIZE);
    echo_times = malloc(MAX_ECHOES * sizeof *echo_times);
    if (!record || !echo_times || poller < 0 || ticker < 0) return 1;
    while (fgets(line, sizeof line, stdin)) {
        if (!strncmp(line, "connect ", 8))
            do_connect(line);
        else if (!strncmp(line, "drive ", 6))
            do_drive(line);
        else if (!strncmp(line, "echo ", 5))
            do_echo(line);
        else if (!strncmp(line, "close", 5))
            do_close();
        else if (!strncmp(line, "words", 5))
            say("{\"words\": \"%s\"}", WORDS);
        else
            say("{\"failure\": \"unknown command\"}");
    }
    return 0;
}

/* The load generator: many WebSocket clients in one thread, as cheap as they can be.
 *
 * It reads commands from stdin, one a line, `verb key=value ...`, and answers each with one line of
 * JSON. `benchmarks/load.py` is the other side. It ends when stdin does.
 *
 *   connect  opens members of the broadcast, and keeps them
 *   drive    publishes and counts: closed loop (`each`) or at a rate (`rate`)
 *   herd     all members publish at once, and one echo is sent: how long does it wait?
 *   echo     opens connections of its own, each with one message on its way, and closes them
 *   close    drops all members
 *   words    says what messages are filled with
 *
 * Rules of this file:
 * - In a closed loop each publisher has `each` messages on their way, and publishes the next one when
 *   it gets one of its own back. It knows its own by four hexadecimal digits in the text.
 * - Deliveries are counted as they are read, at whoever reads them. Nothing else is counted.
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
#define EVENTS 256
#define READ_SIZE (256 * 1024)
#define RECORD_SIZE (96u << 20)
#define PENDING_SIZE (256 * 1024) /* a publisher's bytes that the server does not take */
#define MAX_KEPT (1 << 20)        /* longest message that is looked at */
#define MAX_ECHOES (4 << 20)
#define OWN_AT 9 /* where in a text its publisher stands */
#define OWN_SIZE 4
#define FIRST_ID 1000000 /* client ids have seven digits, so that all messages are equally long */

enum state { FREE, CONNECTING, HANDSHAKE, HELLO, OPEN, LOST };

struct conn {
    int fd;
    uint32_t group;
    uint32_t count; /* broadcasts received in this drive */
    uint8_t state, echo, probe, publisher, wait;
    char own[OWN_SIZE + 1]; /* what tells the texts that it published */
    uint8_t header[10], have; /* of the frame being read */
    uint64_t left;            /* bytes of its payload still to come */
    char *kept;               /* its payload, if anyone looks at it */
    uint32_t kept_size, kept_room;
    char *pending; /* what the server would not take yet */
    uint32_t pending_size;
    uint64_t asked; /* when this echo was sent */
};

struct group {
    uint32_t members;
    uint32_t sent, done; /* published; and got back by their publishers */
    uint32_t next;       /* whose turn it is, where they take turns */
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
static uint8_t speaks[MAX_CONNS]; /* who publishes */
static struct conn *awaited; /* the one whose answer is timed, if there is one */

/* What the current command asks for. */
static int offer, publishers, each, sending, measuring, text_size, hello_frames, answer_pings;
static size_t text_at; /* where in a payload the text begins */
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

/* The text: `~`, the number in its group (8 hex digits), its publisher (4), when it was due (16), and
 * words. */
static size_t compose(char *out, const struct conn *c, uint32_t number, uint64_t due) {
    size_t at = (size_t)sprintf(out, "%s~%08x%s%016llx", before, number, c->own,
                                (unsigned long long)due);
    size_t end = strlen(before) + (size_t)text_size;
    size_t word = (number * 37u) % (sizeof WORDS - 1);
    for (; at < end; at++) {
        out[at] = WORDS[word];
        word = (word + 1) % (sizeof WORDS - 1);
    }
    strcpy(out + at, after);
    return at + strlen(after);
}

/* The nth publisher of a group. They stand evenly among its members, so that none has the place of
 * the one that joined first, or last. */
static uint32_t speaker(uint32_t g, int n, int members) {
    return g + (uint32_t)(group_count * ((2 * n + 1) * members / (2 * publishers)));
}

static void choose_speakers(int clients) {
    int members = clients / group_count;
    if (publishers < 1) publishers = 1;
    if (publishers > members) publishers = members;
    memset(speaks, 0, sizeof speaks);
    for (int g = 0; g < group_count; g++)
        for (int n = 0; n < publishers; n++) speaks[speaker((uint32_t)g, n, members)] = 1;
}

static int publish(struct conn *c, uint64_t due) {
    static char text[MAX_KEPT];
    struct group *group = &groups[c->group];
    if (c->state != OPEN || !write_frame(c, 1, text, compose(text, c, group->sent, due))) {
        unsent++;
        return 0;
    }
    group->sent++;
    return 1;
}

/* Open loop: whatever is due by now. Stamped with when it was due, not with when we came to it. */
static void pace(void) {
    uint64_t time = now(), due;
    while (sending && (due = rate_start + (uint64_t)((double)rate_sent * 1e9 / rate)) <= time) {
        uint32_t g = (uint32_t)(rate_sent++ % (uint64_t)group_count);
        int n = (int)(groups[g].next++ % (uint32_t)publishers);
        publish(&conns[speaker(g, n, conn_count / group_count)], due);
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

static void send_echo(struct conn *c) {
    static char text[MAX_KEPT];
    c->asked = now();
    write_frame(c, 1, text, compose(text, c, ++c->count, c->asked));
}

static void echoed(struct conn *c) {
    if (measuring && echoes < MAX_ECHOES) echo_times[echoes++] = (float)(now() - c->asked) / 1e6f;
    if (sending) send_echo(c);
}

static void delivered(struct conn *c, const char *payload, size_t size) {
    if (c->publisher && reply_byte && size && payload[0] == reply_byte) return;
    deliveries++;
    c->count++;
    if (!c->publisher || size < text_at + OWN_AT + OWN_SIZE) return;
    if (memcmp(payload + text_at + OWN_AT, c->own, OWN_SIZE)) return;
    groups[c->group].done++;
    if (sending && rate == 0) publish(c, now());
}

/* A payload is kept where somebody looks at it: probes, publishers, control frames, greetings. */
static int is_kept(const struct conn *c) {
    return c->probe || c->publisher || c->header[0] & 8 || c->state != OPEN;
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
        echoed(c);
        return;
    }
    if (answer_pings && size <= 4) { /* Engine.IO's own ping, which may be compressed */
        write_frame(c, 1, "3", 1);
        return;
    }
    delivered(c, c->kept, is_kept(c) ? size : 0);
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

/* The short way for what a member gets most: whole messages of less than 64 KiB. Returns where the
 * first one begins that is not. */
static const char *walk_whole(struct conn *c, const char *data, const char *end) {
    while (end - data >= 4 && c->state == OPEN) {
        const uint8_t *h = (const uint8_t *)data;
        size_t header = h[1] == 126 ? 4 : 2, length = header == 4 ? h[2] * 256u + h[3] : h[1];
        if ((h[0] != 0x81 && h[0] != 0x82 && h[0] != 0xc1 && h[0] != 0xc2) || h[1] > 126 ||
            (size_t)(end - data) < header + length)
            break;
        data += header + length;
        delivered(c, data - length, length);
    }
    return data;
}

static void walk(struct conn *c, const char *data, size_t size) {
    const char *end = data + size;
    int simple = !c->probe && !c->echo && !answer_pings;
    while (data < end && c->state != LOST) {
        if (simple && !c->have && (data = walk_whole(c, data, end)) == end) break;
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
                        offer && !c->publisher ? "Sec-WebSocket-Extensions: permessage-deflate; "
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
        if (awaited) on_event(awaited, EPOLLIN);
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
    text_at = (size_t)number(line, "prefix", 0) + strlen(before);
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
            c->publisher = !echo && speaks[c - conns];
            snprintf(c->own, sizeof c->own, "%04x", (unsigned)(c - conns));
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
    publishers = (int)number(line, "publishers", 1);
    choose_speakers((int)number(line, "n", 1));
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

/* Begin a drive: nothing is sent or received yet, and these are its publishers. */
static void begin_drive(const char *line, int wanted) {
    publishers = wanted;
    reply_byte = value(line, "reply", "")[0];
    read_text_options(line);
    choose_speakers(conn_count);
    truncated = 0;
    for (int g = 0; g < group_count; g++) memset(&groups[g], 0, sizeof groups[g]);
    for (int i = 0; i < conn_count; i++) {
        struct conn *c = &conns[i];
        c->count = 0;
        c->publisher = speaks[i];
        if (c->state == OPEN) groups[c->group].members++;
    }
    deliveries = bytes_in = unsent = 0;
    lost = odd = 0;
    failure[0] = 0;
    note(UINT32_MAX, 0, "", 0); /* what comes after this mark belongs to this drive */
}

static uint64_t owed(void) {
    uint64_t sum = 0;
    for (int g = 0; g < group_count; g++) sum += (uint64_t)groups[g].sent * groups[g].members;
    return sum;
}

/* Has every member as many messages as were published in its group? */
static int complete(void) {
    if (deliveries != owed()) return 0;
    for (int i = 0; i < conn_count; i++)
        if (conns[i].state == OPEN && !conns[i].echo && conns[i].count != groups[conns[i].group].sent)
            return 0;
    return 1;
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

/* Wait for what is still on its way. Returns 0 if nothing came for `patience` seconds. */
static int drain(double seconds, double patience) {
    uint64_t deadline = now() + (uint64_t)(seconds * 1e9);
    while (deliveries < owed() && now() < deadline) {
        turn(10);
        if (now() - last_delivery > (uint64_t)(patience * 1e9)) return 0;
    }
    return 1;
}

/* The end of a drive, and of its answer: what became of all that was published. */
static void end_drive(const char *line, int alive) {
    uint64_t sent = 0;
    for (int g = 0; g < group_count; g++) sent += groups[g].sent;
    int saved = write_records(value(line, "record", "/dev/null"));
    recorded = 0;
    say("\"sent\": %llu, \"received\": %llu, \"owed\": %llu, \"unsent\": %llu, "
        "\"complete\": %s, \"stalled\": %s, \"lost\": %d, \"odd\": %d, \"recorded\": %s, "
        "\"bytes\": %llu, \"failure\": \"%s\"}",
        (unsigned long long)sent, (unsigned long long)deliveries, (unsigned long long)owed(),
        (unsigned long long)unsent, complete() ? "true" : "false", alive ? "false" : "true", lost,
        odd, saved && !truncated ? "true" : "false", (unsigned long long)bytes_in, failure);
}

static void do_drive(const char *line) {
    double warmup = number(line, "warmup", 0.3), seconds = number(line, "seconds", 1);
    double grace = number(line, "grace", 0.1), patience = number(line, "patience", 2);
    double longest = number(line, "drain", 5);
    int quiet = settle(3);
    begin_drive(line, (int)number(line, "publishers", 1));
    each = (int)number(line, "each", 1);
    rate = number(line, "rate", 0);

    uint64_t start = last_delivery = rate_start = now();
    sending = 1;
    rate_sent = 0;
    if (rate != 0) pace();
    for (int i = 0; i < conn_count && rate == 0; i++)
        for (int n = 0; n < each && conns[i].publisher; n++) publish(&conns[i], now());
    int alive = run_until(start + (uint64_t)(warmup * 1e9), patience, 1, patience);

    uint64_t from = now(), counted = deliveries;
    double used = cpu();
    uint64_t cycle = messages_done() + (uint64_t)(each * publishers * group_count);
    if (alive) alive = run_until(from + (uint64_t)(seconds * 1e9), patience, cycle, longest);
    uint64_t to = now();
    used = cpu() - used;
    counted = deliveries - counted;
    sending = 0;
    alive = alive && drain(rate != 0 ? grace : longest, patience);
    printf("{\"seconds\": %.6f, \"deliveries\": %llu, \"cpu\": %.4f, \"offered\": %llu, "
           "\"quiet\": %s, \"from\": %llu, \"to\": %llu, ",
           (double)(to - from) / 1e9, (unsigned long long)counted,
           used / ((double)(to - from) / 1e9), (unsigned long long)rate_sent,
           quiet ? "true" : "false", (unsigned long long)from, (unsigned long long)to);
    end_drive(line, alive);
}

/* Send an echo, and wait until it is back. Returns the milliseconds; -1 if it doesn't come. */
static double one_echo(struct conn *c, double seconds) {
    uint64_t deadline = now() + (uint64_t)(seconds * 1e9);
    echoes = 0;
    send_echo(c);
    while (!echoes && c->state == OPEN && now() < deadline) turn(10);
    return echoes ? (double)echo_times[0] : -1;
}

/* Every member publishes one message, at once, and then one more client sends its echo. A few times.
 *
 * That client's socket is looked at after every other one's, so that what the generator reads
 * meanwhile is no part of the wait.
 */
static void do_herd(const char *line) {
    int times = (int)number(line, "times", 3), members = conn_count, alive = 1;
    double longest = number(line, "drain", 5), patience = number(line, "patience", 2);
    struct conn *other = &conns[members];
    read_options(line);
    open_many(line, 1, 1);
    conn_count = members;
    begin_drive(line, members);
    sending = 0;
    measuring = 1;
    alive = settle(3) && other->state == OPEN && one_echo(other, patience) >= 0;
    double used = cpu();
    uint64_t start = now();
    printf("{\"waits\": [");
    awaited = other;
    for (int n = 0; n < times && alive; n++) {
        for (int i = 0; i < members; i++) publish(&conns[i], now());
        last_delivery = now();
        double wait = one_echo(other, longest + patience);
        printf(wait < 0 ? "%s null" : "%s %.3f", n ? "," : "", wait);
        alive = wait >= 0 && drain(longest, patience) && complete();
    }
    awaited = NULL;
    measuring = 0;
    release(other);
    printf("], \"cpu\": %.4f, ", (cpu() - used) / ((double)(now() - start) / 1e9));
    end_drive(line, alive);
}

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

static void do_echo(const char *line) {
    double warmup = number(line, "warmup", 0.3), seconds = number(line, "seconds", 1);
    read_options(line);
    read_text_options(line);
    rate = 0;
    open_many(line, (int)number(line, "n", 100), 1);
    sending = 1;
    for (int i = 0; i < conn_count; i++)
        if (conns[i].state == OPEN) send_echo(&conns[i]);
    uint64_t start = now();
    while (now() < start + (uint64_t)(warmup * 1e9)) turn(20);
    measuring = 1;
    echoes = 0;
    uint64_t from = now();
    double used = cpu();
    while (now() < from + (uint64_t)(seconds * 1e9)) turn(20);
    double took = (double)(now() - from) / 1e9;
    used = cpu() - used;
    sending = measuring = 0;
    qsort(echo_times, echoes, sizeof *echo_times, by_size);
    say("{\"connected\": %d, \"seconds\": %.6f, \"echoes\": %u, \"cpu\": %.4f, \"lost\": %d, "
        "\"p50\": %.4f, \"p99\": %.4f, \"failure\": \"%s\"}",
        ready, took, echoes, used / took, lost, echoes ? (double)echo_times[echoes / 2] : 0.0,
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
        else if (!strncmp(line, "herd ", 5))
            do_herd(line);
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

/* The two ends of benchmarks/router.py: a stand-in for a vLLM server, and a client that loads a router.
 *
 *   router_load serve PORT
 *   router_load load PORT MODE CONNECTIONS SECONDS WARMUP_S RAMP_MS RATE KEY VARY
 *
 * One thread and one epoll each, so that on a second core they are never what is measured. `serve` answers
 * POST with JSON of about 600 bytes or, where the body asks to stream, with events of about 220 bytes, one
 * HTTP chunk and one send each; it tells token ids where the body has return_token_ids, as vLLM does.
 * GET /set?events=N&gap_us=N&fault=N changes what later requests get (fault 1: close without an answer,
 * 2: 503). MODE is closed (next request after each answer), rate (open loop, latency from the due time),
 * stream (closed loop of event streams) or idle (take one event, then hold). VARY 1 gives every request a
 * header of its own. `load` prints one JSON line; times are in microseconds. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 1 << 16, EVENT = 220 };

static int poller;

static int64_t clock_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static void watch(int fd, void *owner) {
    struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = owner};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
}

static void no_delay(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static void wait_events(struct epoll_event *got, int size, int *count, int64_t until_us) {
    int64_t left = until_us - clock_us();
    if (left < 0) left = 0;
    struct timespec t = {left / 1000000, left % 1000000 * 1000};
    *count = epoll_pwait2(poller, got, size, until_us == INT64_MAX ? NULL : &t, NULL);
}

/* ---- serve ------------------------------------------------------------------------------------------ */

typedef struct Peer {
    int fd, used, left, tells_ids, sequence, is_dead;
    int64_t due;
    struct Peer *next; /* in the queue of streams, ordered by due: every stream has the same gap */
    int is_queued;
    char in[8192];
} Peer;

static int events_per_stream = 200, fault;
static int64_t gap_us;
static Peer *queue_head, *queue_tail;
static char json_answer[2048];
static int json_length;

static void enqueue(Peer *p) {
    p->next = NULL;
    p->is_queued = 1;
    if (queue_tail) queue_tail->next = p; else queue_head = p;
    queue_tail = p;
}

static void forget(Peer *p) {
    close(p->fd);
    if (p->is_queued) p->is_dead = 1; else free(p);
}

static int put(Peer *p, const char *bytes, int length) { return send(p->fd, bytes, length, MSG_NOSIGNAL) == length; }

static int send_event(Peer *p) {
    char event[512], wire[600], ids[48] = "";
    if (p->left-- == 0) return put(p, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n", 24);
    if (p->tells_ids) sprintf(ids, ",\"token_ids\":[%d]", 1000 + p->sequence);
    int n = sprintf(event, "data: {\"id\":\"chatcmpl-5d1e\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,"
                           "\"model\":\"mock\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"%06d ", p->sequence++);
    for (; n < EVENT - 44; n++) event[n] = 'a' + n % 26;
    n += sprintf(event + n, "\"},\"logprobs\":null,\"finish_reason\":null%s}]}\n\n", ids);
    int w = sprintf(wire, "%x\r\n", n);
    memcpy(wire + w, event, n);
    memcpy(wire + w + n, "\r\n", 2);
    return put(p, wire, w + n + 2);
}

static int number_after(const char *text, const char *name, int otherwise) {
    const char *at = strstr(text, name);
    return at ? atoi(at + strlen(name)) : otherwise;
}

/* Take one whole request out of the buffer: 1 done, 0 more bytes are needed, -1 the peer is gone. */
static int serve_request(Peer *p) {
    p->in[p->used] = 0;
    char *end = strstr(p->in, "\r\n\r\n");
    if (!end) return 0;
    char *field = strcasestr(p->in, "\r\ncontent-length:");
    int head = end + 4 - p->in, body = field && field < end ? atoi(field + 17) : 0;
    char *chunked = strcasestr(p->in, "\r\ntransfer-encoding: chunked");
    if (chunked && chunked < end) {
        char *last = strstr(end + 2, "\r\n0\r\n\r\n");
        if (!last) return 0;
        body = last + 7 - p->in - head;
    }
    if (p->used < head + body) return 0;
    char kept = p->in[head + body];
    p->in[head + body] = 0;
    int is_post = p->in[0] == 'P', good = 1;
    static const char unavailable[] = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
    char *stream = is_post ? strstr(p->in + head, "\"stream\":") : NULL;
    if (stream) stream += 9 + strspn(stream + 9, " ");
    if (is_post && fault == 1) good = 0;
    else if (is_post && fault == 2) good = put(p, unavailable, sizeof unavailable - 1);
    else if (stream && *stream == 't') {
        p->left = events_per_stream;
        p->sequence = 0;
        p->tells_ids = strstr(p->in + head, "return_token_ids") != NULL;
        static const char answer[] = "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                                     "transfer-encoding: chunked\r\n\r\n";
        good = put(p, answer, sizeof answer - 1) && send_event(p);
        p->due = clock_us() + gap_us;
        if (good && !p->is_queued) enqueue(p);
    } else if (is_post) good = put(p, json_answer, json_length);
    else {
        if (strstr(p->in, "/set?")) {
            events_per_stream = number_after(p->in, "events=", events_per_stream);
            gap_us = number_after(p->in, "gap_us=", (int)gap_us);
            fault = number_after(p->in, "fault=", 0);
            /* What an earlier scenario left waiting, for a minute perhaps, would hold up all that is queued behind it. */
            for (Peer *q = queue_head; q; q = q->next) {
                q->due = 0;
                if (!q->is_dead) shutdown(q->fd, SHUT_RDWR);
            }
        }
        static const char answer[] = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 58\r\n\r\n"
                                     "{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"object\":\"model\"}]} ";
        good = put(p, answer, sizeof answer - 1);
    }
    p->in[head + body] = kept;
    p->used -= head + body;
    memmove(p->in, p->in + head + body, p->used);
    return good ? 1 : -1;
}

static void serve(int port) {
    int n = sprintf(json_answer + 1024, "{\"id\":\"chatcmpl-5d1e\",\"object\":\"chat.completion\",\"created\":1760000000,\"model\":\"mock\","
        "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"");
    for (int i = 0; i < 330; i++) json_answer[1024 + n++] = 'a' + i % 26;
    n += sprintf(json_answer + 1024 + n, "\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":180,\"total_tokens\":240,\"completion_tokens\":60}}");
    int h = sprintf(json_answer, "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-length: %d\r\ncontent-type: application/json\r\n\r\n", n);
    memmove(json_answer + h, json_answer + 1024, n);
    json_length = h + n;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (void *)&a, sizeof a) || listen(listener, 4096)) { perror("bind"); exit(1); }
    watch(listener, NULL);
    struct epoll_event got[256];
    for (;;) {
        int count;
        wait_events(got, 256, &count, queue_head ? queue_head->due : INT64_MAX);
        for (int i = 0; i < count; i++) {
            Peer *p = got[i].data.ptr;
            if (!p) {
                int fd;
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    no_delay(fd);
                    p = calloc(1, sizeof *p);
                    p->fd = fd;
                    watch(fd, p);
                }
                continue;
            }
            if (p->is_dead) continue;
            ssize_t r = recv(p->fd, p->in + p->used, sizeof p->in - 1 - p->used, 0);
            if (r <= 0 && !(r < 0 && errno == EAGAIN)) { forget(p); continue; }
            if (r > 0) p->used += r;
            int state = 1;
            while (state == 1 && p->used && !p->is_queued) state = serve_request(p);
            if (state < 0) forget(p);
        }
        int64_t now = clock_us();
        while (queue_head && queue_head->due <= now) {
            Peer *p = queue_head;
            queue_head = p->next;
            if (!queue_head) queue_tail = NULL;
            p->is_queued = 0;
            if (p->is_dead) { free(p); continue; }
            int is_last = p->left == 0;
            if (!send_event(p)) { forget(p); continue; }
            p->due += p->left == 0 ? 0 : gap_us;
            if (!is_last) enqueue(p);
        }
    }
}

/* ---- load ------------------------------------------------------------------------------------------- */

typedef struct {
    int fd, is_busy, in_body, is_chunked, events, status, tail_used, last_byte;
    long left;
    int64_t since;
    char head[4096], tail[8];
    int head_used;
} Call;

typedef struct { int32_t *values; int used, size; } Samples;

static Samples latency, ttft;
static int is_measuring, wants_stream, is_idle_mode, varies, port_number;
static long answered, failed, events_seen;
static char request_head[1024], request_body[2048];

static void sample(Samples *s, int64_t us) {
    if (!is_measuring) return;
    if (s->used == s->size) s->values = realloc(s->values, (s->size = s->size * 2 + 65536) * sizeof *s->values);
    s->values[s->used++] = us;
}

static int ascending(const void *a, const void *b) { return *(int32_t *)a - *(int32_t *)b; }

static void print_samples(const char *name, Samples *s) {
    if (!s->used) return;
    qsort(s->values, s->used, sizeof *s->values, ascending);
    printf(",\"%s_p50\":%d,\"%s_p99\":%d", name, s->values[s->used / 2], name, s->values[(int)(s->used * 0.99)]);
}

static void begin(Call *c, int64_t since) {
    if (c->fd < 0) {
        struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port_number), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        c->fd = socket(AF_INET, SOCK_STREAM, 0);
        no_delay(c->fd);
        if (connect(c->fd, (void *)&a, sizeof a)) { perror("connect"); exit(1); }
        fcntl(c->fd, F_SETFL, O_NONBLOCK);
        watch(c->fd, c);
    }
    static long serial;
    char wire[4096], own[64] = "";
    if (varies) sprintf(own, "X-Request-Id: %ld\r\n", ++serial);
    int n = sprintf(wire, "%s%s\r\n%s", request_head, own, request_body);
    c->is_busy = 1;
    c->in_body = c->events = c->head_used = c->tail_used = c->last_byte = 0;
    c->since = since;
    if (send(c->fd, wire, n, MSG_NOSIGNAL) != n) failed++;
}

/* Feed bytes of an answer; 1 when it is complete. */
static int take(Call *c, char *bytes, int n, int64_t now) {
    if (!c->in_body) {
        int room = sizeof c->head - 1 - c->head_used, k = n < room ? n : room, before = c->head_used;
        memcpy(c->head + c->head_used, bytes, k);
        c->head_used += k;
        c->head[c->head_used] = 0;
        char *end = strstr(c->head, "\r\n\r\n");
        if (!end) return 0;
        int used = end + 4 - c->head - before;
        bytes += used;
        n -= used;
        end[2] = 0;
        c->status = atoi(c->head + 9);
        char *field = strcasestr(c->head, "\r\ncontent-length:");
        c->is_chunked = strcasestr(c->head, "\r\ntransfer-encoding: chunked") != NULL;
        c->left = field ? atol(field + 17) : 0;
        c->in_body = 1;
        if (!c->is_chunked && c->left == 0) return 1;
    }
    if (!c->is_chunked) return (c->left -= n) <= 0;
    for (int i = 0; i < n; i++) {
        if (bytes[i] == '\n' && c->last_byte == '\n') {
            if (c->events++ == 0) sample(&ttft, now - c->since);
            if (is_measuring) events_seen++;
        }
        c->last_byte = bytes[i];
    }
    for (int i = n > 7 ? n - 7 : 0; i < n; i++) {
        if (c->tail_used == 7) memmove(c->tail, c->tail + 1, --c->tail_used);
        c->tail[c->tail_used++] = bytes[i];
    }
    return c->tail_used == 7 && !memcmp(c->tail, "\r\n0\r\n\r\n", 7);
}

static double cpu_of(const char *pids) {
    char list[512], path[64], text[1024];
    double total = 0;
    snprintf(list, sizeof list, "%s", pids);
    for (char *pid = strtok(list, ","); pid; pid = strtok(NULL, ",")) {
        snprintf(path, sizeof path, "/proc/%s/stat", pid);
        FILE *f = fopen(path, "r");
        if (!f) continue;
        size_t n = fread(text, 1, sizeof text - 1, f);
        fclose(f);
        text[n] = 0;
        unsigned long user = 0, system = 0;
        char *at = strrchr(text, ')');
        if (at) sscanf(at + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system);
        total += (double)(user + system) / sysconf(_SC_CLK_TCK);
    }
    return total;
}

static void load(char **arg) {
    port_number = atoi(arg[0]);
    const char *mode = arg[1], *pids = getenv("CPU_OF") ? getenv("CPU_OF") : "";
    int connections = atoi(arg[2]), ramp_ms = atoi(arg[5]), is_rate = !strcmp(mode, "rate");
    double seconds = atof(arg[3]), warmup = atof(arg[4]), rate = atof(arg[6]);
    varies = atoi(arg[8]);
    is_idle_mode = !strcmp(mode, "idle");
    wants_stream = is_idle_mode || !strcmp(mode, "stream");
    int n = sprintf(request_body, "{\"model\":\"mock\",\"stream\":%s,\"max_tokens\":200,\"temperature\":0.7,\"messages\":[{\"role\":\"user\",\"content\":\"",
                    wants_stream ? "true" : "false");
    while (n < 680) n += sprintf(request_body + n, "a prompt of some length ");
    n += sprintf(request_body + n, "\"}]}");
    sprintf(request_head, "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: application/json\r\nAccept-Encoding: gzip\r\n"
            "Authorization: Bearer %s\r\nContent-Type: application/json\r\nUser-Agent: AsyncOpenAI/Python 2.0.0\r\n"
            "X-Stainless-Lang: python\r\nX-Stainless-OS: Linux\r\nContent-Length: %d\r\n", port_number, arg[7], n);
    Call *calls = calloc(connections, sizeof *calls);
    int64_t start = clock_us(), from = start + (int64_t)(warmup * 1e6) + ramp_ms * 1000LL, until = from + (int64_t)(seconds * 1e6);
    for (int i = 0; i < connections; i++) calls[i].fd = -1;
    int opened = 0, next_idle = 0;
    long sent = 0;
    double cpu_before = 0;
    struct epoll_event got[512];
    static char bytes[1 << 18];
    for (;;) {
        int64_t now = clock_us();
        if (!is_measuring && now >= from) { is_measuring = 1; cpu_before = cpu_of(pids); }
        if (now >= until) break;
        int64_t wake = is_measuring ? until : from;
        if (is_rate) {
            int64_t due = start + (int64_t)(sent * 1e6 / rate);
            for (int tries = 0; due <= now && tries < connections; tries++) {
                Call *c = &calls[next_idle++ % connections];
                if (c->is_busy) continue;
                begin(c, due);
                due = start + (int64_t)(++sent * 1e6 / rate);
            }
            if (due < wake) wake = due > now ? due : now + 100;
        } else while (opened < connections) {
            int64_t due = start + ramp_ms * 1000LL * opened / connections;
            if (due > now) { if (due < wake) wake = due; break; }
            begin(&calls[opened++], now);
        }
        int count;
        wait_events(got, 512, &count, wake);
        for (int i = 0; i < count; i++) {
            Call *c = got[i].data.ptr;
            if (c->fd < 0) continue;
            ssize_t r = recv(c->fd, bytes, sizeof bytes, 0);
            if (r < 0 && errno == EAGAIN) continue;
            int64_t t = clock_us();
            int is_over = r > 0 && c->is_busy ? take(c, bytes, r, t) : 0;
            if (r <= 0) {
                close(c->fd);
                c->fd = -1;
                if (c->is_busy) failed++;
                if (!is_rate && c->is_busy) begin(c, t); else c->is_busy = 0;
                continue;
            }
            if (!is_over) continue;
            c->is_busy = 0;
            if (c->status != 200) failed++;
            else if (is_measuring) { answered++; sample(&latency, t - c->since); }
            if (!is_rate && !is_idle_mode) begin(c, t);
        }
    }
    double elapsed = (clock_us() - from) / 1e6, cpu = cpu_of(pids) - cpu_before;
    int holding = 0;
    for (int i = 0; i < connections; i++) holding += calls[i].events > 0;
    printf("{\"answered\":%ld,\"failed\":%ld,\"events\":%ld,\"seconds\":%.3f,\"cpu_s\":%.3f,\"holding\":%d", answered, failed, events_seen, elapsed, cpu, holding);
    print_samples("latency", &latency);
    print_samples("ttft", &ttft);
    puts("}");
    fflush(stdout);
    if (is_idle_mode) getchar(); /* hold the streams until told to end */
}

int main(int count, char **arg) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(0);
    if (count == 3 && !strcmp(arg[1], "serve")) serve(atoi(arg[2]));
    else if (count == 11 && !strcmp(arg[1], "load")) load(arg + 2);
    else { fprintf(stderr, "see the comment at the top of router_load.c\n"); return 2; }
    return 0;
}

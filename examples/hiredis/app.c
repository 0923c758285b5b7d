/* A C app with hiredis, written as if there were no tunnel. */
#include <hiredis/hiredis.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

static char error_text[512];

/* Connects to REDIS_URL, redis://USER:PASSWORD@HOST:PORT/DATABASE. On failure it returns NULL and sets error_text. */
static redisContext *connect_to_redis(void)
{
    char user[64], password[64], host[64];
    int port, database = 0;
    if (sscanf(getenv("REDIS_URL"), "redis://%63[^:]:%63[^@]@%63[^:]:%d/%d", user, password, host, &port, &database) < 4) {
        snprintf(error_text, sizeof error_text, "not a URL");
        return NULL;
    }
    struct timeval patience = {15, 0};
    redisContext *c = redisConnectWithTimeout(host, port, patience);
    redisReply *reply = c->err ? NULL : redisCommand(c, "AUTH %s %s", user, password);
    if (!reply || reply->type == REDIS_REPLY_ERROR) {
        snprintf(error_text, sizeof error_text, "%s", reply ? reply->str : c->errstr);
        redisFree(c);
        return NULL;
    }
    freeReplyObject(reply);
    freeReplyObject(redisCommand(c, "SELECT %d", database));
    return c;
}

static void check(const char *name, int right) { printf("check %s: %s\n", name, right ? "ok" : "wrong result"); }

static int replies(redisReply *reply, const char *expected)
{
    int right = reply && reply->str && strstr(reply->str, expected);
    if (reply) freeReplyObject(reply);
    return right;
}

static void checks(void)
{
    redisContext *c = connect_to_redis();
    if (!c) {
        printf("check boot: %s\n", error_text);
        return;
    }
    check("boot", replies(redisCommand(c, "PING"), "PONG"));
    check("user", replies(redisCommand(c, "ACL WHOAMI"), "app"));
    check("database", replies(redisCommand(c, "CLIENT INFO"), " db=3 "));
    int right = 1;
    for (int n = 0; n < 100; n++) redisAppendCommand(c, "ECHO %d", n);
    for (int n = 0; n < 100; n++) {
        redisReply *reply = NULL;
        right &= redisGetReply(c, (void **)&reply) == REDIS_OK && atoi(reply->str) == n;
        if (reply) freeReplyObject(reply);
    }
    check("pipeline", right);
    freeReplyObject(redisCommand(c, "MULTI"));
    freeReplyObject(redisCommand(c, "SET a 1"));
    freeReplyObject(redisCommand(c, "INCR a"));
    redisReply *exec = redisCommand(c, "EXEC");
    check("transaction", exec && exec->elements == 2 && exec->element[1]->integer == 2);
    freeReplyObject(exec);
    redisContext *other = connect_to_redis();
    freeReplyObject(redisCommand(other, "SUBSCRIBE news"));
    freeReplyObject(redisCommand(c, "PUBLISH news hello"));
    redisReply *message = NULL;
    check("pubsub", redisGetReply(other, (void **)&message) == REDIS_OK && message->elements == 3 &&
                        strcmp(message->element[2]->str, "hello") == 0);
    freeReplyObject(message);
    redisFree(other);
    if (fork() == 0) {
        usleep(100000);
        freeReplyObject(redisCommand(connect_to_redis(), "RPUSH jobs job"));
        _exit(0);
    }
    redisReply *popped = redisCommand(c, "BLPOP jobs 10");
    check("blocking", popped && popped->elements == 2 && strcmp(popped->element[1]->str, "job") == 0);
    freeReplyObject(popped);
    size_t size = 10 << 20;
    char *value = malloc(size);
    memset(value, 'v', size);
    freeReplyObject(redisCommand(c, "SET big %b", value, size));
    redisReply *stored = redisCommand(c, "GET big");
    check("10 MiB", stored && (size_t)stored->len == size && memcmp(stored->str, value, size) == 0);
    freeReplyObject(stored);
    free(value);
    redisFree(c);
}

static void once(void)
{
    redisContext *c = connect_to_redis();
    if (c)
        printf("got PONG\n");
    else
        printf("error: %s\n", error_text);
}

static void outlive(void)
{
    redisContext *c = connect_to_redis();
    char line[16];
    int errors = 0;
    puts("ready");
    if (!fgets(line, sizeof line, stdin)) return;
    while (errors < 400) {
        redisReply *reply = c ? redisCommand(c, "PING") : NULL;
        if (reply) {
            freeReplyObject(reply);
            break;
        }
        errors++;
        usleep(50000);
        if (c) redisFree(c);
        c = connect_to_redis();
    }
    printf("back after %d errors\n", errors);
}

static volatile sig_atomic_t stop;
static void on_term(int number) { stop = number; }

static void serve(void)
{
    struct sigaction action = {.sa_handler = on_term, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &action, NULL);
    redisContext *c = connect_to_redis();
    freeReplyObject(redisCommand(c, "SET serving 1"));
    puts("ready");
    while (!stop) freeReplyObject(redisCommand(c, "BLPOP nothing 1"));
    freeReplyObject(redisCommand(c, "SET farewell bye"));
    puts("bye");
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "checks";
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (strcmp(mode, "once") == 0) once();
    else if (strcmp(mode, "outlive") == 0) outlive();
    else if (strcmp(mode, "serve") == 0) serve();
    else checks();
    return 0;
}

<?php
// A PHP app with phpredis, written as if there were no tunnel. It parses the URL itself, as PHP apps do.
require __DIR__ . "/../modes.php";

function connect(): Redis
{
    $url = parse_url(getenv("REDIS_URL"));
    $redis = new Redis();
    $redis->connect($url["host"], $url["port"], 5);
    // If an error begins with ERR, phpredis returns false, and getLastError() returns its text.
    if (!$redis->auth(array_map("rawurldecode", [$url["user"], $url["pass"]]))) {
        throw new RedisException($redis->getLastError());
    }
    $redis->select((int) trim($url["path"] ?? "0", "/"));
    return $redis;
}

function checks(): void
{
    $redis = null;
    check("boot", function () use (&$redis) {
        $redis = connect();
        return $redis->ping() === true;
    });
    if (!$redis) {
        return;
    }
    check("user", fn() => $redis->rawCommand("ACL", "WHOAMI") === "app");
    check("database", fn() => str_contains($redis->rawCommand("CLIENT", "INFO"), " db=3 "));
    check("pipeline", function () use ($redis) {
        $pipeline = $redis->pipeline();
        for ($n = 0; $n < 100; $n++) {
            $pipeline->echo("$n");
        }
        return $pipeline->exec() === array_map("strval", range(0, 99));
    });
    check("transaction", fn() => $redis->multi()->set("a", 1)->incr("a")->exec() === [true, 2]);
    check("pubsub", function () {
        // Publish from a second process, since subscribe blocks this one.
        $command = [PHP_BINARY, __FILE__, "publish"];
        $publisher = proc_open($command, [], $pipes);
        $heard = null;
        $listener = connect();
        $listener->setOption(Redis::OPT_READ_TIMEOUT, 10);
        try {
            $listener->subscribe(["news"], function ($listener, $channel, $message) use (&$heard) {
                $heard = $message;
                $listener->close();
            });
        } catch (RedisException) {
            // Only an exception ends subscribe.
        }
        proc_close($publisher);
        return $heard === "hello";
    });
    check("blocking", function () use ($redis) {
        $pusher = proc_open([PHP_BINARY, __FILE__, "push"], [], $pipes);
        $popped = $redis->blPop("jobs", 10);
        proc_close($pusher);
        return $popped === ["jobs", "job"];
    });
    check("10 MiB", function () use ($redis) {
        $value = str_repeat("v", 10 << 20);
        return $redis->set("big", $value) && $redis->get("big") === $value;
    });
}

($argv[1] ?? "checks")();

<?php
// A PHP app with Predis, written as if there were no tunnel.
require "Predis/autoload.php";
require __DIR__ . "/../modes.php";

function connect(): Predis\Client
{
    // Predis 1.1 ignores the URL's user name, so the app sends AUTH itself.
    $url = parse_url(getenv("REDIS_URL"));
    $redis = new Predis\Client(["host" => $url["host"], "port" => $url["port"], "read_write_timeout" => 15]);
    $answer = $redis->executeRaw(["AUTH", rawurldecode($url["user"]), rawurldecode($url["pass"])], $failed);
    if ($failed) {
        throw new Predis\Response\ServerException($answer);
    }
    $redis->select((int) trim($url["path"] ?? "0", "/"));
    return $redis;
}

function checks(): void
{
    $redis = null;
    check("boot", function () use (&$redis) {
        $redis = connect();
        return (string) $redis->ping() === "PONG";
    });
    if (!$redis) {
        return;
    }
    check("user", fn() => $redis->executeRaw(["ACL", "WHOAMI"]) === "app");
    check("database", fn() => str_contains($redis->executeRaw(["CLIENT", "INFO"]), " db=3 "));
    check("pipeline", function () use ($redis) {
        $replies = $redis->pipeline(function ($pipeline) {
            for ($n = 0; $n < 100; $n++) {
                $pipeline->echo("$n");
            }
        });
        return $replies === array_map("strval", range(0, 99));
    });
    check("transaction", function () use ($redis) {
        $replies = $redis->transaction(function ($transaction) {
            $transaction->set("a", 1);
            $transaction->incr("a");
        });
        return count($replies) === 2 && $replies[1] === 2;
    });
    check("pubsub", function () {
        $publisher = proc_open([PHP_BINARY, __FILE__, "publish"], [], $pipes);
        $heard = null;
        $loop = connect()->pubSubLoop();
        $loop->subscribe("news");
        foreach ($loop as $message) {
            if ($message->kind === "message") {
                $heard = $message->payload;
                $loop->stop(true);
                break;
            }
        }
        proc_close($publisher);
        return $heard === "hello";
    });
    check("blocking", function () use ($redis) {
        $pusher = proc_open([PHP_BINARY, __FILE__, "push"], [], $pipes);
        $popped = $redis->blpop(["jobs"], 10);
        proc_close($pusher);
        return $popped === ["jobs", "job"];
    });
    check("10 MiB", function () use ($redis) {
        $value = str_repeat("v", 10 << 20);
        return (string) $redis->set("big", $value) === "OK" && $redis->get("big") === $value;
    });
}

($argv[1] ?? "checks")();

<?php
// A PHP app with Predis, as it would be without a tunnel.
require "Predis/autoload.php";

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

function check(string $name, callable $condition): void
{
    try {
        echo "check $name: ", $condition() ? "ok" : "wrong result", "\n";
    } catch (Throwable $error) {
        echo "check $name: ", get_class($error), ": ", $error->getMessage(), "\n";
    }
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

function publish(): void
{
    $redis = connect();
    for ($tries = 0; $tries < 1000 && !$redis->publish("news", "hello"); $tries++) {
        usleep(10000);
    }
}

function push(): void
{
    usleep(100000);
    connect()->rpush("jobs", ["job"]);
}

function once(): void
{
    try {
        connect()->ping();
        echo "got PONG\n";
    } catch (Throwable $error) {
        echo "error ", get_class($error), ": ", $error->getMessage(), "\n";
    }
}

function outlive(): void
{
    $redis = connect();
    $redis->ping();
    echo "ready\n";
    fgets(STDIN);
    $errors = [];
    while (count($errors) < 400) {
        try {
            $redis->ping();
            break;
        } catch (Throwable $error) {
            $errors[] = get_class($error);
            usleep(50000);
            try {
                $redis = connect();
            } catch (Throwable) {
                // The next ping counts the failure.
            }
        }
    }
    echo "back after ", count($errors), " errors ", implode(" ", array_unique($errors)), "\n";
}

function serve(): void
{
    pcntl_async_signals(true);
    $stop = false;
    pcntl_signal(SIGTERM, function () use (&$stop) {
        $stop = true;
    });
    $redis = connect();
    $redis->set("serving", 1);
    echo "ready\n";
    while (!$stop) {
        $redis->blpop(["nothing"], 1);
    }
    $redis->set("farewell", "bye");
    echo "bye\n";
}

($argv[1] ?? "checks")();

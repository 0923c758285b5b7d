<?php
// The functions that both PHP clients share. Each app defines connect() and checks().
function check(string $name, callable $condition): void
{
    try {
        echo "check $name: ", $condition() ? "ok" : "wrong result", "\n";
    } catch (Throwable $error) {
        echo "check $name: ", get_class($error), ": ", $error->getMessage(), "\n";
    }
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
    connect()->rPush("jobs", "job");
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
                // The next ping fails and counts this error.
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
        $redis->blPop("nothing", 1);
    }
    $redis->set("farewell", "bye");
    echo "bye\n";
}

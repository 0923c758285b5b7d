<?php
// PHP sessions in Redis, written as if there were no tunnel: one connection for each request.
$url = parse_url(getenv("REDIS_URL"));
// In a query, + means a space, so encode it.
$encode = fn(string $part) => rawurlencode(rawurldecode($part));
$path = sprintf(
    "tcp://%s:%d?auth[user]=%s&auth[pass]=%s&database=%d",
    $url["host"], $url["port"], $encode($url["user"]), $encode($url["pass"]), (int) trim($url["path"] ?? "0", "/"),
);
ini_set("session.save_handler", "redis");
ini_set("session.save_path", $path);
session_id("visitor");
session_start(["use_cookies" => false, "cache_limiter" => ""]);
$_SESSION["visits"] = ($_SESSION["visits"] ?? 0) + 1;
echo "visit ", $_SESSION["visits"], "\n";
session_write_close();

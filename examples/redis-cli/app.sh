#!/bin/sh
# A shell script with redis-cli, written as if there were no tunnel.
cli() { redis-cli --no-auth-warning -u "$REDIS_URL" "$@"; }
check() { if [ "$2" = "$3" ]; then echo "check $1: ok"; else echo "check $1: $2"; fi; }

checks() {
    check boot "$(cli ping 2>&1)" PONG
    check user "$(cli acl whoami)" app
    check database "$(cli client info | grep -o ' db=3 ')" ' db=3 '
    check pipeline "$(for n in 1 2 3 4 5; do echo "ECHO $n"; done | cli | tr '\n' ' ')" '1 2 3 4 5 '
    check transaction "$(printf 'MULTI\nSET a 1\nINCR a\nEXEC\n' | cli | tr '\n' ' ')" 'OK QUEUED QUEUED OK 2 '
    heard=$(mktemp)
    cli subscribe news >"$heard" &
    while [ "$(cli publish news hello)" = 0 ]; do sleep 0.01; done
    while ! grep -q '^hello' "$heard"; do sleep 0.01; done
    kill $!
    check pubsub "$(grep -c '^hello' "$heard")" 1
    rm "$heard"
    (sleep 0.1 && cli rpush jobs job >/dev/null) &
    check blocking "$(cli blpop jobs 10 | tr '\n' ' ')" 'jobs job '
    big=$(mktemp)
    head -c 10485760 /dev/zero | tr '\0' v >"$big"
    cli -x set big <"$big" >/dev/null
    check '10 MiB' "$(cli get big | head -c 10485760 | cmp - "$big" && echo same)" same
    rm "$big"
}

once() {
    answer=$(cli ping 2>&1)
    if [ "$answer" = PONG ]; then echo "got PONG"; else echo "error: $(echo "$answer" | tr '\n' ' ')"; fi
}

outlive() {
    echo ready
    read -r _
    errors=0
    until cli ping >/dev/null 2>&1; do
        errors=$((errors + 1))
        sleep 0.05
    done
    echo "back after $errors errors"
}

serve() {
    stop=
    trap 'stop=1' TERM
    cli set serving 1 >/dev/null
    echo ready
    while [ -z "$stop" ]; do cli blpop nothing 1 >/dev/null; done
    cli set farewell bye >/dev/null
    echo bye
}

"${1:-checks}"

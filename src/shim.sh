#!/bin/sh
# Runs start-stunnel where no buildpack put it, as on a laptop. Made by: start-stunnel --print-shim > bin/start-stunnel
set -f; IFS=:
for directory in $PATH; do
    launcher=${directory:-.}/start-stunnel
    [ -f "$launcher" ] && [ -x "$launcher" ] || continue
    [ "$launcher" -ef "$0" ] || cmp -s "$launcher" "$0" || exec "$launcher" "$@"
done
case ${STUNNEL_ENABLED-} in 0 | [Ff][Aa][Ll][Ss][Ee] | [Nn][Oo] | [Oo][Ff][Ff])
    while case ${1-} in --) shift; false ;; --*=*) shift ;; --?*) shift 2 ;; *) false ;; esac; do :; done
    exec "$@" ;;
esac
echo "bin/start-stunnel: no start-stunnel on PATH: download it from the project's releases, or build it with \
cargo install; or set STUNNEL_ENABLED=false to run the command without a tunnel" >&2
exit 127

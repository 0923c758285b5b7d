#!/bin/sh
# Runs the start-stunnel on PATH, for machines without the buildpack. Made by: start-stunnel --print-shim > bin/start-stunnel
install_from=''
set -f; IFS=:
for directory in $PATH; do
    launcher=${directory:-.}/start-stunnel
    [ -f "$launcher" ] && [ -x "$launcher" ] || continue
    [ "$launcher" -ef "$0" ] || cmp -s "$launcher" "$0" || exec "$launcher" "$@"
done

# start-stunnel is not installed. If tunnels are disabled, skip the options, and run COMMAND.
enabled=${STUNNEL_ENABLED-} off=', or set STUNNEL_ENABLED=false to run the command without a tunnel'
while [ $# -gt 0 ]; do
    case $1 in
        --) shift; break ;;
        --enabled=*) enabled=${1#*=}; shift ;;
        --*=*) shift ;;
        --check | --status | --print-env | --print-shim | --help | --version | -[!-]*) off='' enabled=''; break ;;
        --*) [ "$1" != --enabled ] || enabled=${2-}; shift; [ $# = 0 ] || shift ;;
        *) break ;;
    esac
done
case $enabled in 0 | [Ff][Aa][Ll][Ss][Ee] | [Nn][Oo] | [Oo][Ff][Ff]) [ $# = 0 ] || exec "$@" ;; esac
echo "bin/start-stunnel: start-stunnel is not on PATH. Install start-stunnel${install_from:+ from $install_from}$off" >&2
exit 127

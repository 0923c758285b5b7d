#!/bin/sh
# Runs the start-stunnel on PATH, for machines without the buildpack. Made by: start-stunnel --print-shim > bin/start-stunnel
# All variables begin with shim_: if the app's environment had a variable of the same name, the app would see the shim's value.
shim_from='' shim_path=$PATH:
while [ "$shim_path" ]; do
    shim_file=${shim_path%%:*} shim_path=${shim_path#*:}
    shim_file=${shim_file:-.}/start-stunnel
    [ -f "$shim_file" ] && [ -x "$shim_file" ] || continue
    # Skip this shim, and every other shim: one of its first lines has this text.
    head -n 9 "$shim_file" 2>/dev/null | grep -q 'start-stunnel --print-shim' || [ "$shim_file" -ef "$0" ] || exec "$shim_file" "$@"
done

# start-stunnel is not installed. If tunnels are disabled, skip the options, and run COMMAND.
shim_enabled=${STUNNEL_ENABLED-} shim_or=', or set STUNNEL_ENABLED=false to run the command without a tunnel'
while [ $# -gt 0 ]; do
    case $1 in
        --) shift; break ;;
        --enabled=*) shim_enabled=${1#*=}; shift ;;
        --*=*) shift ;;
        --check | --status | --print-env | --print-shim | --help | --version | -[!-]*) shim_or='' shim_enabled=''; break ;;
        --*) [ "$1" != --enabled ] || shim_enabled=${2-}; shift; [ $# = 0 ] || shift ;;
        *) break ;;
    esac
done
case $shim_enabled in 0 | [Ff][Aa][Ll][Ss][Ee] | [Nn][Oo] | [Oo][Ff][Ff]) [ $# = 0 ] || exec "$@" ;; esac
echo "bin/start-stunnel: start-stunnel is not on PATH. Install start-stunnel${shim_from:+ from $shim_from}$shim_or" >&2
exit 127

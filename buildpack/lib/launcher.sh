# shellcheck shell=bash
# Functions for the scripts of the classic and the Cloud Native buildpack. The scripts must set $buildpack, the
# buildpack's own folder.

title() { echo "-----> $*"; }
detail() { echo "       $*"; }

# Prints each argument as a line of a warning or error, in Heroku's style.
warn() {
    local line
    for line in "$@"; do echo " !     $line" >&2; done
}

# Prints an error and ends the build.
fail() {
    warn "$@"
    exit 1
}

# Prints the address of this version's archive, or its name if release.conf contains no address. In a checkout, release.conf
# is one folder up.
archive_to_use() {
    local version address
    version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$buildpack/buildpack.toml")
    address=$(cat "$buildpack/release.conf" "$buildpack/../release.conf" 2>/dev/null | sed -n 's/^REPOSITORY=//p;T;q' || true)
    if [[ $address ]]; then
        echo "$address/releases/download/v$version/start-stunnel-buildpack-$version.tgz"
    else
        echo "start-stunnel-buildpack-$version.tgz, which bin/package makes in a clone of start-stunnel (README, \"Install\")"
    fi
}

# Sets $launcher to the path of the binary, and $launcher_version to its version. Ends the build if the checksum is wrong, or
# if the binary does not run on this system.
find_launcher() {
    [[ -d $buildpack/launcher ]] ||
        fail "This copy of the start-stunnel buildpack is a checkout of the sources, and contains no start-stunnel binary." \
            "Use $(archive_to_use)."
    check_launcher
    launcher_version=$("$launcher" --version 2>&1) ||
        fail "start-stunnel does not run on this system${STACK:+ (stack $STACK)}:" "$launcher_version" \
            "start-stunnel needs Linux with glibc 2.31 or later: heroku-22, Debian 11, Ubuntu 20.04, or a later version of these."
    # Keep only the first line, because the other lines describe the build.
    launcher_version=${launcher_version%%$'\n'*}
    launcher_version=${launcher_version#start-stunnel }
}

check_launcher() {
    local architecture
    architecture=$(uname -m)
    launcher=$buildpack/launcher/$architecture/start-stunnel
    [[ -f $launcher ]] ||
        fail "This package of the buildpack contains start-stunnel for $(cd "$buildpack/launcher" && echo */), not for $architecture." \
            "start-stunnel supports x86_64 and aarch64: use $(archive_to_use)."
    (cd "$buildpack/launcher" && grep " $architecture/start-stunnel\$" SHA256SUMS | sha256sum --check --strict --status) 2>/dev/null ||
        fail "The start-stunnel binary in this buildpack differs from its checksum: the package is damaged." \
            "Use an undamaged package: $(archive_to_use)."
}

# Ends the build if $1/bin/start-stunnel cannot be written. The caller must not have changed the app yet.
check_app() {
    local app=$1
    [[ ! -L $app/bin || -e $app/bin ]] ||
        fail "The app's bin is a broken link: $(readlink "$app/bin")" \
            "Make bin a folder, or a link to a folder of the app, because the build installs bin/start-stunnel."
    [[ ! -e $app/bin || -d $app/bin ]] || fail "The app's bin is not a folder, but the build installs bin/start-stunnel."
    [[ ! -d $app/bin/start-stunnel || -L $app/bin/start-stunnel ]] ||
        fail "The app's bin/start-stunnel is a folder. Rename this folder, because the build installs a file of this name."
    local folder=$app
    [[ ! -d $app/bin ]] || folder=$app/bin
    [[ -w $folder && -x $folder ]] || fail "The build cannot write to the app's folder: $folder"
}

# Succeeds if the file $1 is the launcher or the shim. Every version of the shim contains the line that grep searches for.
is_ours() { cmp -s "$1" "$launcher" || grep -qs '^# .*start-stunnel --print-shim' "$1"; }

# Prints a warning for each file of the app that belongs to Heroku's retired buildpack. The caller must set $launcher.
warn_of_leftovers() {
    local app=$1 remove="If heroku/redis is still among the buildpacks: heroku buildpacks:remove heroku/redis"
    if [[ -e $app/bin/start-stunnel ]] && ! is_ours "$app/bin/start-stunnel"; then
        warn "The launcher replaces another bin/start-stunnel in the app." "$remove" \
            "If the app's repository contains this file, delete the file, or replace the file by the shim: start-stunnel --print-shim"
    fi
    if [[ -e $app/bin/stunnel-conf.sh ]]; then
        warn "The app has a bin/stunnel-conf.sh, a part of the retired Redis buildpack. The launcher does not run it." "$remove" \
            "If the app's repository contains this file, delete the file. Settings are now variables (STUNNEL_...)."
    fi
}

# Replaces the file $1 in one step, so that a failed build keeps the old file. The other arguments are a command: with a path
# as its last argument, the command creates a file at this path.
replace() {
    local target=$1 new
    shift
    new=$(dirname "$target")/.start-stunnel.$$
    if ! { mkdir -p "$(dirname "$target")" && "$@" "$new" && mv -fT "$new" "$target"; }; then
        rm -f "$new"
        fail "Could not write $target"
    fi
}

checksum_of() { sha256sum <"$1" | cut -d ' ' -f 1; }

# Prints a hint if no line of the Procfile uses the launcher.
hint_at_procfile() {
    local app=$1
    if ! grep -qsE '^[A-Za-z0-9_-]+:.*start-stunnel' "$app/Procfile"; then
        detail "No process in the Procfile uses start-stunnel yet. Write bin/start-stunnel before each command that uses Redis:"
        detail "    web: bin/start-stunnel bundle exec puma -C config/puma.rb"
    fi
}

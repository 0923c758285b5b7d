# shellcheck shell=bash
# What the classic and the Cloud Native buildpack share: their voice, and where the launcher comes from.
# Expects $buildpack, the buildpack's own folder.

title() { echo "-----> $*"; }
detail() { echo "       $*"; }

# Every line of the message in Heroku's style for warnings and errors.
warn() {
    local line
    for line in "$@"; do echo " !     $line" >&2; done
}

# The same; then the build ends.
fail() {
    warn "$@"
    exit 1
}

# The buildpack's version, from the one place that has it.
buildpack_version() { sed -n 's/^version = "\(.*\)"$/\1/p' "$buildpack/buildpack.toml"; }

# Sets $launcher to a binary that was checked and runs here, and $launcher_version to what it says of itself.
find_launcher() {
    [[ -d $buildpack/launcher ]] ||
        fail "This copy of the start-stunnel buildpack holds no start-stunnel binary: it is a checkout of the sources." \
            "Use start-stunnel-buildpack-$(buildpack_version).tgz from the project's releases."
    check_launcher
    launcher_version=$("$launcher" --version 2>&1) ||
        fail "start-stunnel does not run on this system${STACK:+ (stack $STACK)}:" "$launcher_version" \
            "It needs Linux with glibc 2.31 or later: heroku-22 or later, Debian 11, Ubuntu 20.04."
    # Its first line; the second is about how it was built.
    launcher_version=${launcher_version%%$'\n'*}
    launcher_version=${launcher_version#start-stunnel }
}

check_launcher() {
    local architecture
    architecture=$(uname -m)
    launcher=$buildpack/launcher/$architecture/start-stunnel
    [[ -f $launcher ]] ||
        fail "This package of the buildpack holds start-stunnel for $(cd "$buildpack/launcher" && echo */), not for $architecture." \
            "There are releases for x86_64 and aarch64."
    (cd "$buildpack/launcher" && grep " $architecture/start-stunnel\$" SHA256SUMS | sha256sum --check --strict --status) 2>/dev/null ||
        fail "The start-stunnel binary in this buildpack differs from its checksum: the package is damaged." \
            "Get start-stunnel-buildpack-$(buildpack_version).tgz anew, and compare it with the release's SHA256SUMS."
}

# Ends the build, before anything is changed, unless $1/bin/start-stunnel can be written.
check_app() {
    local app=$1
    [[ ! -L $app/bin || -e $app/bin ]] ||
        fail "The app's bin is a link that leads nowhere here: $(readlink "$app/bin")" \
            "Make it a folder, or a link to a folder of the app: bin/start-stunnel goes there."
    [[ ! -e $app/bin || -d $app/bin ]] || fail "The app's bin is no folder, so bin/start-stunnel cannot be put there."
    [[ ! -d $app/bin/start-stunnel || -L $app/bin/start-stunnel ]] ||
        fail "The app's bin/start-stunnel is a folder; rename it: the launcher goes there."
    local folder=$app
    [[ ! -d $app/bin ]] || folder=$app/bin
    [[ -w $folder && -x $folder ]] || fail "The app's folder cannot be written: $folder"
}

# Whether $1 is the launcher, or a shim of this or of an older version, which all have this line.
is_ours() { cmp -s "$1" "$launcher" || grep -qs '^# .*start-stunnel --print-shim' "$1"; }

# Names what the app brings that the launcher does not go together with. Expects $launcher.
warn_of_leftovers() {
    local app=$1 remove="If heroku/redis is still among the buildpacks: heroku buildpacks:remove heroku/redis"
    if [[ -e $app/bin/start-stunnel ]] && ! is_ours "$app/bin/start-stunnel"; then
        warn "The app brings another bin/start-stunnel, which is replaced by the launcher." "$remove" \
            "If it is in the app's repository, delete it there, or keep the shim instead: start-stunnel --print-shim"
    fi
    if [[ -e $app/bin/stunnel-conf.sh ]]; then
        warn "The app has a bin/stunnel-conf.sh, as the retired Redis buildpack had; the launcher does not run it." "$remove" \
            "If it is in the app's repository, delete it there; settings are variables now (STUNNEL_...)."
    fi
}

# Puts a file or a link in place in one step, so that a build that fails leaves what was there.
# $1: the target; then a command that makes the file whose name is appended.
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

# Says what to do next when no process of the app uses the launcher.
hint_at_procfile() {
    local app=$1
    if ! grep -qsE '^[A-Za-z0-9_-]+:.*start-stunnel' "$app/Procfile"; then
        detail "No line of the Procfile uses it yet. Put it before a command whose Redis traffic is to be encrypted:"
        detail "    web: bin/start-stunnel bundle exec puma -C config/puma.rb"
    fi
}

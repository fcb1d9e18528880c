# shellcheck shell=bash
# Sourced by the other scripts: how they find folders, install what is missing, and speak.
# It changes no option of the shell that sources it.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
case $target in /*) ;; *) target=$PWD/$target ;; esac
export CARGO_TARGET_DIR=$target
export PATH="$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"

say() { printf '%s\n' "== $*"; }

die() {
    printf '%s\n' "error: $*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif have sudo; then
        sudo -n "$@"
    else
        return 1
    fi
}

# at_exit COMMAND: runs it when this script ends, also by a signal; the last one given runs first.
# Given twice it runs once. (A script that ends by `exec` runs none.)
exit_commands=()
at_exit() {
    local one
    for one in "${exit_commands[@]}"; do [ "$one" != "$1" ] || return 0; done
    exit_commands=("$1" "${exit_commands[@]}")
    trap run_exit_commands EXIT
}
run_exit_commands() {
    local one
    for one in "${exit_commands[@]}"; do eval "$one" || true; done
}

# own_tmp: from here on temporary files of this script, and of all that it starts, lie in a folder of
# their own, $tmp, which goes with the script: some compilers leave files behind, and what is killed does.
# Its path is short, for a Unix socket's may have 107 characters. What a script that was killed could not
# remove the next one does.
tmp=
own_tmp() {
    local above=${TMPDIR:-/tmp} old pid space
    [ "${#above}" -le 40 ] || above=/tmp
    space=$(readlink /proc/self/ns/pid 2>/dev/null)
    for old in "$above"/js-run-*; do
        # Only one's own, of this process space: the number of another one's script says nothing here.
        [ -O "$old" ] && read -r pid space_of_pid <"$old/.owner" && [ "$space_of_pid" = "$space" ] || continue
        kill -0 "$pid" 2>/dev/null || rm -rf "$old"
    done 2>/dev/null
    tmp=$(mktemp -d "$above/js-run-XXXXXX") || die "no folder can be made in $above"
    printf '%s %s\n' "$$" "$space" >"$tmp/.owner"
    # Some programs are started as another user and look for their files there.
    chmod 755 "$tmp"
    tmp_before=${TMPDIR-}
    export TMPDIR=$tmp
    at_exit end_tmp
}

end_tmp() {
    [ -n "$tmp" ] || return 0
    rm -rf "$tmp"
    tmp=
    if [ -n "$tmp_before" ]; then TMPDIR=$tmp_before; else unset TMPDIR; fi
}

# apt_install PACKAGE...: installs Debian packages; fails quietly where that cannot be done.
# It has the system's temporary files, for it becomes a user who cannot write into ours.
apt_install() {
    have apt-get || return 1
    say "installing $*"
    if [ -z "${apt_is_fresh:-}" ]; then
        as_root env -u TMPDIR DEBIAN_FRONTEND=noninteractive timeout 180 apt-get update -q </dev/null >/dev/null 2>&1 || true
        apt_is_fresh=1
    fi
    as_root env -u TMPDIR DEBIAN_FRONTEND=noninteractive timeout 420 \
        apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=300 "${apt_options[@]}" "$@" </dev/null 2>&1 | tail -n 3
    return "${PIPESTATUS[0]}"
}
apt_options=()

is_installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# apt_install_still PACKAGE...: as apt_install, for packages that start a service of their own on a
# well-known port; here only private servers run, so it is left stopped, and after a reboot too. The
# services of a package that was there before stay as they are.
# What starts services is hidden from the packages' scripts by a path of their own: nothing of the
# system is changed for that, so nothing stays behind when this is killed.
apt_install_still() {
    local status=0 package unit program new=() still
    for package in "$@"; do is_installed "$package" || new+=("$package"); done
    still=$(mktemp -d) || return 1
    for program in invoke-rc.d deb-systemd-invoke service; do
        printf '#!/bin/sh\nexit 0\n' >"$still/$program"
    done
    chmod -R 755 "$still"
    apt_options=(-o "DPkg::Path=$still:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    apt_install "$@" || status=$?
    apt_options=()
    rm -rf "$still"
    for package in "${new[@]}"; do
        have systemctl && is_installed "$package" || continue
        for unit in $(dpkg -L "$package" |
            sed -nE 's#^(/usr)?/lib/systemd/system/([^/@]*\.(service|socket|timer))$#\2#p; s#^/etc/init\.d/([^/]*)$#\1.service#p' | sort -u); do
            as_root systemctl --quiet disable "$unit" >/dev/null 2>&1 || true
        done
    done
    return "$status"
}

need_redis() {
    have redis-server && return 0
    apt_install_still redis-server || true
    have redis-server || die "redis-server is missing: apt-get install redis-server"
}

need_rust() {
    have cargo || die "Rust is missing: install it from https://rustup.rs, 1.95 or newer"
    local version
    version=$(rustc --version | awk '{print $2}')
    case $(printf '%s\n' 1.95.0 "$version" | sort -V | head -n 1) in
        1.95.0) ;;
        *) die "Rust $version is too old: rustup update stable (1.95 or newer is needed)" ;;
    esac
    have cc || apt_install gcc libc6-dev || die "a C compiler is missing: apt-get install gcc libc6-dev"
    have make || apt_install make || true
}

# need_venv DIR PACKAGE...: a virtual environment with these Python packages (what pip takes).
need_venv() {
    local dir=$1
    shift
    have python3 || apt_install python3 || die "python3 is missing: apt-get install python3"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' || die "Python 3.9 or newer is needed"
    if [ ! -x "$dir/bin/pip" ] || ! "$dir/bin/python" -c '' 2>/dev/null; then
        rm -rf "$dir"
        say "making a virtual environment in $dir"
        if ! python3 -m venv "$dir" >/dev/null 2>&1; then
            rm -rf "$dir"
            apt_install python3-venv || true
            python3 -m venv "$dir" || die "no virtual environment: apt-get install python3-venv"
        fi
    fi
    # Once installed from the same list it is used as it is; the client itself is installed editable.
    local stamp=$dir/.installed wanted
    wanted="$* $(cksum <"$root/pyclient/pyproject.toml")"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        say "installing into $dir: $*"
        # Its own words, shortened: without any it looks dead for a minute on a slow line.
        "$dir/bin/pip" install --disable-pip-version-check --progress-bar off "$@" \
            > >(sed -un 's/^ *\(Collecting\|Downloading\|Building\|Installing\|Successfully\) /   \1 /p') ||
            die "pip could not install $*"
        printf '%s' "$wanted" >"$stamp"
    fi
}

# need_target TRIPLE: the standard library of another target, where rustup can give it.
need_target() {
    local lib
    lib=$(rustc --print target-libdir --target "$1" 2>/dev/null)
    [ -d "$lib" ] && ls "$lib"/libstd-*.rlib >/dev/null 2>&1 && return 0
    have rustup || return 1
    say "installing the target $1"
    timeout 300 rustup target add "$1" </dev/null
}

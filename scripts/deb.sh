# shellcheck shell=bash
# Sourced after lib.sh: makes the .deb packages, looks into them, and tries them on a copy of this system.

# need_cargo_deb: the program that makes packages, in $target/tools; without optimizations, for that takes
# half the time and it has little to do.
need_cargo_deb() {
    PATH="${target:?}/tools/bin:$PATH" have cargo-deb && return 0
    say "installing cargo-deb"
    CARGO_TARGET_DIR=$target/tools/build timeout 900 cargo install -q --debug --locked --root "$target/tools" cargo-deb </dev/null || return 1
    rm -rf "$target/tools/build"
}

# deb_build TARGET PROGRAM FOLDER [ARG...]: a package of a release build, whose path is its last line.
deb_build() {
    local to=$1 program=$2 folder=$3
    shift 3
    PATH="$target/tools/bin:$PATH" cargo deb -q --locked --no-build --no-strip --target "$to" -p "$program" -o "$folder/" "$@" </dev/null
}

# deb_check FILE PROGRAM ARCHITECTURE: what the package says of itself, and what it holds.
deb_check() {
    local file=$1 program=$2 architecture=$3 held said scripts want bad=0
    held=$(dpkg-deb --fsys-tarfile "$file" | tar -tv --numeric-owner | awk '{ print $1, $2, $NF }') || return 1
    for want in "-rwxr-xr-x ./usr/bin/$program" "-rw-r--r-- ./usr/lib/systemd/system/$program.service" \
        "-rw-r--r-- ./usr/share/man/man8/$program.8.gz" \
        "-rw-r--r-- ./usr/share/doc/$program/docs/how-to/upgrade.md" "-rw-r--r-- ./usr/share/doc/$program/copyright" \
        "$([ "$program" != jsacc ] || echo "-rw-r--r-- ./etc/jsacc/jsacc.toml")"; do
        [ -z "$want" ] || grep -qxF -- "${want% *} 0/0 ${want#* }" <<<"$held" || {
            printf '%s\n' "   $file lacks: $want"
            bad=1
        }
    done
    said=$(dpkg-deb -f "$file" Package Architecture)
    [ "$said" = "Package: $program
Architecture: $architecture" ] || {
        printf '%s\n' "   $file says of itself: $said"
        bad=1
    }
    # The service is enabled with the package, and ends with it.
    scripts=$(mktemp -d) && dpkg-deb -e "$file" "$scripts/c" || return 1
    for want in "postinst:enable $program.service" "prerm:stop $program.service" "postrm:purge $program.service"; do
        grep -q "${want#*:}" "$scripts/c/${want%%:*}" || {
            printf '%s\n' "   $file: ${want%%:*} does not ${want#*:}"
            bad=1
        }
    done
    for want in "$scripts"/c/p*; do sh -n "$want" || bad=1; done
    rm -rf "$scripts"
    return "$bad"
}

# deb_can_be_tried: whether a copy of this system can be made that goes with the process.
deb_can_be_tried() {
    have dpkg && [ "$(id -u)" = 0 ] && unshare -m sh -c 'mount -t tmpfs tmpfs "$1" && mkdir "$1/u" "$1/w" "$1/m" &&
        mount -t overlay -o "lowerdir=/,upperdir=$1/u,workdir=$1/w" overlay "$1/m"' sh /mnt 2>/dev/null
}

# deb_try FILE PROGRAM: installs, upgrades, removes and purges it as a user would, on a copy of this
# system (an overlay of / in memory, seen by nobody else). No service manager runs there.
deb_try() {
    unshare -m bash -eu -c '
        mount -t tmpfs tmpfs /mnt
        mkdir /mnt/u /mnt/w /mnt/m
        mount -t overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w overlay /mnt/m
        cp "$1" /mnt/m/try.deb
        mount --rbind /proc /mnt/m/proc
        mount --rbind /dev /mnt/m/dev
        mount -t tmpfs tmpfs /mnt/m/run
        mkdir -p /mnt/m/tmp
        export -n TMPDIR
        chroot /mnt/m /bin/bash -eu -c "$3" try "$2"' deb_try "$1" "$2" "$(declare -f deb_try_inside); deb_try_inside \"\$1\""
}

# What happens on the copy: the first thing that is not as it should be ends it.
deb_try_inside() {
    local program=$1 unit=/usr/lib/systemd/system/$1.service wants=/etc/systemd/system/multi-user.target.wants/$1.service
    local state=/var/lib/$1
    # must SENTENCE COMMAND...
    must() {
        local sentence=$1
        shift
        "$@" >/try.log 2>&1 || {
            printf '%s\n' "   $program, not so: $sentence ($*)"
            cat /try.log
            exit 1
        }
    }
    is_enabled() { [ "$(readlink -f "$wants")" = "$unit" ]; }
    is_gone() { [ ! -e "$1" ] && [ ! -L "$1" ]; }
    has_left() { find /etc/systemd /var/lib/systemd -name "*$program*" | grep .; }
    not() { ! "$@"; }
    dpkg -P "$program" >/dev/null 2>&1 || true
    rm -rf "/etc/${program:?}" "$state"

    must "it can be installed" dpkg -i /try.deb
    must "its program runs" "/usr/bin/$program" --version
    must "it is enabled" is_enabled
    ! command -v systemd-analyze >/dev/null || must "systemd understands its unit" systemd-analyze verify "$unit"
    mkdir -p "$state"
    touch "$state/kept"
    if [ "$program" = jsacc ]; then
        must "it has a user" getent passwd jsacc
        must "the user has no shell" grep -q '^jsacc:.*:/usr/sbin/nologin$' /etc/passwd
        # It gets as far as its Redis, and is stopped there.
        must "its user can run it" su -s /bin/sh jsacc -c 'timeout 2 /usr/bin/jsacc -c /etc/jsacc/jsacc.toml --state-dir /tmp/s --port 0 -r 127.0.0.1:9; [ $? = 124 ] || [ $? = 0 ]'
        echo '# mine' >>/etc/jsacc/jsacc.toml
    fi
    must "an upgrade works" dpkg -i --force-confold /try.deb
    must "an upgrade keeps what it knew" test -e "$state/kept"
    [ "$program" != jsacc ] || must "an upgrade keeps its configuration" grep '^# mine' /etc/jsacc/jsacc.toml
    must "it can be removed" dpkg -r "$program"
    must "its program is gone" is_gone "/usr/bin/$program"
    must "its unit is gone" is_gone "$unit"
    must "a removal keeps what it knew" test -e "$state/kept"
    must "it can be installed again" dpkg -i --force-confold /try.deb
    must "it is enabled again" is_enabled
    must "it can be purged" dpkg -P "$program"
    must "a purge takes what it knew" is_gone "$state"
    must "a purge takes its configuration" is_gone "/etc/$program"
    must "a purge takes its user" not getent passwd "$program"
    must "a purge takes what enabled it" not has_left
}

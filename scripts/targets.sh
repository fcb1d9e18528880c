# shellcheck shell=bash
# Sourced after lib.sh: the other targets that scripts/test builds, and whether they can be built here.

musl=x86_64-unknown-linux-musl
windows=x86_64-pc-windows-gnu
# A folder of its own: the tests that run meanwhile need the lock of the other one.
windows_target=$target/windows

build_musl() { cargo build --release --locked -p jsagent -p jsacc --target "$musl"; }

# What only the tests under wine run need not be fast; it is built in half the time. The code of other
# systems is linted with the rest; that of Windows here, by clippy as the compiler: what `cargo clippy`
# does, but the libraries are built once for both.
build_windows() {
    local linter=()
    ! windows_can_be_linted || linter=(RUSTC_WORKSPACE_WRAPPER=clippy-driver RUSTFLAGS="-D warnings")
    env "${linter[@]}" CARGO_TARGET_DIR="$windows_target" cargo build --locked -p jsagent --target "$windows" \
        --config 'profile.dev.package."*".opt-level=0'
}

windows_can_be_linted() { clippy-driver --version >/dev/null 2>&1; }

musl_can_be_built() {
    [ "$(uname -m)" = x86_64 ] && { have musl-gcc || apt_install musl-tools; } && need_target "$musl"
}

windows_can_be_built() {
    [ "$(uname -m)" = x86_64 ] &&
        { have x86_64-w64-mingw32-gcc || apt_install gcc-mingw-w64-x86-64-posix; } && need_target "$windows"
}

aarch64="aarch64-unknown-linux-musl"
# Zig's C compiler, from PyPI, links for aarch64 with musl; the same tool as scripts/release.
zig=$target/tools/zig

aarch64_can_be_built() {
    need_target "$aarch64" || return 1
    [ -x "$zig/bin/cargo-zigbuild" ] || need_venv "$zig" cargo-zigbuild ziglang
}

build_aarch64() {
    PATH="$zig/bin:$PATH" cargo zigbuild --release --locked -p jsagent --target "$aarch64"
}

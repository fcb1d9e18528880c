//! Has the linker pack the relocations of the static agent: 170 KB less on disk.
//!
//! The agent of x86_64 with musl is a static program at any address, and most of its relocations only add that
//! address. In the packed form (RELR) a few bits stand for each of them; musl reads it from 1.2.4 on, and Rust
//! brings 1.2.5. GNU ld packs from 2.38 on and passes over the option before; zig's linker refuses it.

#![allow(clippy::print_stdout)] // This is how a build script speaks to cargo.

use std::env::var;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=RUSTC_LINKER");
    let is = |name: &str, wanted: &str| var(name).is_ok_and(|value| value == wanted);
    let has_gnu_linker = !var("RUSTC_LINKER").is_ok_and(|linker| linker.contains("zig"));
    if is("CARGO_CFG_TARGET_ARCH", "x86_64") && is("CARGO_CFG_TARGET_ENV", "musl") && has_gnu_linker {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

//! Why a program was not executed: what the number of the system's error leaves open.

use nix::errno::Errno;
use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes of a program's beginning that are looked at, as many as Linux looks at for an interpreter.
const HEAD_BYTES: usize = 256;
/// Most entries of an ELF header's table that are looked at.
const MAX_SEGMENTS: u64 = 64;

/// Says why the first of `programs` that exists could not be executed in `folder`; nothing where none
/// exists, or where the error says all there is.
pub(super) fn fault(programs: &[CString], folder: Option<&CStr>, errno: Errno) -> Option<String> {
    let folder = folder.map_or(Path::new(""), |folder| Path::new(OsStr::from_bytes(folder.to_bytes())));
    let path = |program: &CString| folder.join(OsStr::from_bytes(program.to_bytes()));
    let path: PathBuf = programs.iter().map(path).find(|path| fs::symlink_metadata(path).is_ok())?;
    let shown = path.display();
    let Ok(meta) = fs::metadata(&path) else {
        return (errno == Errno::ENOENT).then(|| format!("{shown} is a symbolic link to what is not there"));
    };
    if !meta.is_file() {
        let what = if meta.is_dir() { "a folder" } else { "no regular file" };
        return Some(format!("permission denied, {shown} is {what}"));
    }
    if errno == Errno::EACCES && meta.mode() & 0o111 == 0 {
        return Some(format!("permission denied, {shown} is not executable (chmod +x)"));
    }
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&path).ok()?;
    let mut head = Vec::with_capacity(HEAD_BYTES);
    (&file).take(HEAD_BYTES as u64).read_to_end(&mut head).ok()?;
    match errno {
        Errno::ENOEXEC if head.is_empty() => Some(format!("{shown} is empty")),
        Errno::ENOEXEC => Some(format!(
            "{shown} is neither a program for this machine nor a script that begins with #! and its interpreter"
        )),
        Errno::ENOENT | Errno::EACCES | Errno::ENOTDIR | Errno::ELOOP => match interpreter(&head) {
            Some(name) if name.ends_with(b"\r") => Some(format!(
                "its interpreter {:?} is not there: the first line of {shown} ends with a carriage return, as on \
                 Windows; save it with Unix line ends",
                String::from_utf8_lossy(name)
            )),
            Some(name) => needs("interpreter", name, errno),
            None => needs("dynamic loader", &loader(&file, &head)?, errno),
        },
        _ => None,
    }
}

fn needs(what: &str, name: &[u8], errno: Errno) -> Option<String> {
    let shown = String::from_utf8_lossy(name);
    match errno {
        Errno::EACCES => {
            let meta = fs::metadata(OsStr::from_bytes(name)).ok()?;
            (meta.mode() & 0o111 == 0).then(|| format!("permission denied, its {what} {shown} is not executable"))
        }
        _ => Some(format!("its {what} {shown} is not there")),
    }
}

/// The interpreter that a script's first line names.
fn interpreter(head: &[u8]) -> Option<&[u8]> {
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    line.split(|byte| matches!(byte, b' ' | b'\t' | 0)).find(|word| !word.is_empty())
}

/// The dynamic loader that a 64-bit program of this byte order names.
fn loader(file: &File, head: &[u8]) -> Option<Vec<u8>> {
    const INTERP: u32 = 3;
    if !head.starts_with(b"\x7fELF\x02") {
        return None;
    }
    let number = |bytes: &[u8], at: usize, size: usize| {
        let mut whole = [0; 8];
        let (from, to) = match cfg!(target_endian = "little") {
            true => (0, size),
            false => (8 - size, 8),
        };
        whole[from..to].copy_from_slice(bytes.get(at..at + size)?);
        Some(u64::from_ne_bytes(whole))
    };
    let (table, size, count) = (number(head, 32, 8)?, number(head, 54, 2)?, number(head, 56, 2)?);
    for index in 0..count.min(MAX_SEGMENTS) {
        let mut segment = [0; 56];
        file.read_exact_at(&mut segment, table.checked_add(index * size)?).ok()?;
        if number(&segment, 0, 4)? == u64::from(INTERP) {
            let mut name = vec![0; number(&segment, 32, 8)?.min(HEAD_BYTES as u64) as usize];
            file.read_exact_at(&mut name, number(&segment, 8, 8)?).ok()?;
            name.truncate(name.iter().position(|byte| *byte == 0)?);
            return Some(name);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[track_caller]
    fn check(content: &[u8], mode: u32, errno: Errno, want: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let folder = CString::new(dir.path().as_os_str().as_bytes()).unwrap();
        let said = fault(&[c"no".into(), c"./t".into()], Some(&folder), errno).unwrap_or_default();
        assert!(said.contains(want), "{said} does not say {want}");
    }

    #[test]
    fn the_reason_is_named() {
        check(b"#! /no/such -x\n", 0o755, Errno::ENOENT, "its interpreter /no/such is not there");
        check(b"#!/bin/sh\r\necho\r\n", 0o755, Errno::ENOENT, "carriage return");
        check(b"#!/etc/passwd\n", 0o755, Errno::EACCES, "its interpreter /etc/passwd is not executable");
        check(b"x", 0o644, Errno::EACCES, "not executable");
        check(b"", 0o755, Errno::ENOEXEC, "is empty");
        check(b"echo\n", 0o755, Errno::ENOEXEC, "neither a program");
        assert_eq!(fault(&[c"/no/such".into()], None, Errno::ENOENT), None);
        assert!(fault(&[c"/".into()], None, Errno::EACCES).unwrap().contains("a folder"));
    }

    #[test]
    fn a_dynamic_loader_that_is_not_there_is_named() {
        let mut program = vec![0; 64 + 56];
        program[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let mut put = |at: usize, number: u64, size: usize| {
            let bytes = match cfg!(target_endian = "little") {
                true => number.to_le_bytes()[..size].to_vec(),
                false => number.to_be_bytes()[8 - size..].to_vec(),
            };
            program[at..at + size].copy_from_slice(&bytes);
        };
        let name = b"/lib/ld-none.so.1\0";
        for (at, number, size) in [(32, 64, 8), (54, 56, 2), (56, 1, 2), (64, 3, 4), (72, 120, 8)] {
            put(at, number, size);
        }
        put(64 + 32, name.len() as u64, 8);
        program.extend_from_slice(name);
        check(&program, 0o755, Errno::ENOENT, "its dynamic loader /lib/ld-none.so.1 is not there");
    }
}

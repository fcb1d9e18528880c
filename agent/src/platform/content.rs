//! The new content of a file: bytes in memory, or another file.
//!
//! **Owns** how the two are compared and copied, never whole in memory. **Does not own** names, modes or owners.

use std::fs::File;
use std::io::{self, Read, Seek, Write};

/// Bytes that are compared at one time.
const BLOCK: usize = 64 << 10;

/// The new content of a file.
#[derive(Clone, Copy)]
pub(crate) enum Content<'a> {
    Bytes(&'a [u8]),
    /// All of a file that nobody writes to.
    File(&'a File),
}

impl Content<'_> {
    /// How many bytes it has.
    pub(crate) fn len(self) -> io::Result<u64> {
        match self {
            Content::Bytes(bytes) => Ok(bytes.len() as u64),
            Content::File(file) => file.metadata().map(|meta| meta.len()),
        }
    }

    /// Adds it to a file.
    pub(super) fn write_to(self, to: &File) -> io::Result<()> {
        self.blocks(&mut |block| (&*to).write_all(block).map(|()| true)).map(drop)
    }

    /// Whether a file holds just this.
    pub(super) fn is_in(self, mut held: &File) -> io::Result<bool> {
        let mut buffer = vec![0; BLOCK];
        let is_same = self.blocks(&mut |block| {
            let buffer = &mut buffer[..block.len()];
            held.read_exact(buffer)?;
            Ok(buffer == block)
        })?;
        Ok(is_same && held.read(&mut buffer)? == 0)
    }

    /// Hands it over in blocks until `take` says no; says whether it did not.
    fn blocks(self, take: &mut dyn FnMut(&[u8]) -> io::Result<bool>) -> io::Result<bool> {
        let mut file = match self {
            Content::Bytes(bytes) => return bytes.chunks(BLOCK).try_fold(true, |more, block| Ok(more && take(block)?)),
            Content::File(file) => file,
        };
        let mut buffer = vec![0; BLOCK];
        file.rewind()?;
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(true),
                length if !take(&buffer[..length])? => return Ok(false),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_content_is_found_and_copied() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            std::fs::write(dir.path().join(name), bytes).unwrap();
            File::options().read(true).write(true).open(dir.path().join(name)).unwrap()
        };
        let long: Vec<u8> = (0..200_000_u32).map(|n| (n / 100) as u8).collect();
        let mut last = long.clone();
        last[199_999] ^= 1;
        for (bytes, other) in [(&b""[..], &b"x"[..]), (b"ab", b"ac"), (&long, &last), (&long, &long[..BLOCK * 3])] {
            let source = file("source", bytes);
            for content in [Content::Bytes(bytes), Content::File(&source)] {
                assert_eq!(content.len().unwrap(), bytes.len() as u64);
                assert!(content.is_in(&file("same", bytes)).unwrap());
                assert!(!content.is_in(&file("other", other)).unwrap_or(false), "a shorter one may be an error");
                content.write_to(&file("copy", b"")).unwrap();
                assert!(std::fs::read(dir.path().join("copy")).unwrap() == bytes);
            }
        }
    }
}

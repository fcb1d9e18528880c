//! Reads files that a configuration or a person names.
//!
//! A name may lead to a pipe that nobody writes to, or to a device without an end: only regular files are read, and
//! only up to a bound.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

/// Largest file that is read whole, in bytes. The CA bundle of a system has a quarter of a MiB.
pub(crate) const MAX_FILE_BYTES: u64 = 16 << 20;

/// Reads a regular file of at most [`MAX_FILE_BYTES`].
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut options = OpenOptions::new();
    options.read(true);
    // Without it the opening of a pipe waits for a writer.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, nix::libc::O_NONBLOCK);
    let file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file (a folder, a pipe or a device): name a regular file"));
    }
    read_stream(file)
}

/// As [`read`], of a file in UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))
}

/// As [`read`], of a file that a person names on a command line: it may be a pipe, as of `<(…)`.
pub fn read_any(path: &Path) -> io::Result<Vec<u8>> {
    read_stream(File::open(path)?)
}

fn read_stream(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > MAX_FILE_BYTES {
        true => {
            Err(io::Error::other(format!("it has more than {MAX_FILE_BYTES} bytes: is it the file that was meant?")))
        }
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn regular_file_is_read_up_to_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(&path, "text").unwrap();
        assert_eq!((read(&path).unwrap(), read_text(&path).unwrap()), (b"text".to_vec(), "text".to_owned()));
        fs::write(&path, b"\xff").unwrap();
        assert_eq!(read_text(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
        File::options().write(true).open(&path).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("more than 16777216 bytes"));
    }

    #[cfg(unix)]
    #[test]
    fn pipe_device_and_folder_are_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [pipe.as_path(), dir.path(), Path::new("/dev/zero"), Path::new("/dev/full")] {
            let fault = read(path).unwrap_err().to_string();
            assert!(fault.contains("no regular file"), "{}: {fault}", path.display());
        }
        assert!(read_any(Path::new("/dev/zero")).unwrap_err().to_string().contains("more than"));
    }
}

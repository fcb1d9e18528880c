//! File systems that only one program of a test sees: mounted in a mount namespace of its own.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// A list of mounts; empty means no namespace.
#[derive(Clone, Debug, Default)]
pub struct Mounts(Vec<Arc<Mount>>);

#[derive(Debug)]
struct Mount {
    kind: CString,
    path: CString,
    data: CString,
    /// The server's side of a file system of the kind `fuse`, which nobody reads.
    _server: Option<File>,
    reader: Option<Reader>,
}

/// The thread of a server that reads requests and answers none.
#[derive(Debug)]
struct Reader {
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Reader {
    /// Closes the server's side; whatever waits for an answer has an error then.
    fn end(&self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.lock().ok().and_then(|mut thread| thread.take()) {
            let _ = thread.join();
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.end();
    }
}

impl Mounts {
    /// Adds a file system that never answers: its server reads no request. Who waits for it can be killed.
    ///
    /// Fails the test when this user may not open `/dev/fuse`.
    #[track_caller]
    pub fn silent(self, path: &Path) -> Mounts {
        let server = File::options().read(true).write(true).open("/dev/fuse");
        let server = server.expect("/dev/fuse: this test needs root and the fuse module");
        self.fuse(path, server, false)
    }

    /// Adds a file system whose server reads requests and answers none but the first. Who waits for it cannot even
    /// be killed, until [`Mounts::end_stuck`].
    ///
    /// Fails the test when this user may not open `/dev/fuse`.
    #[track_caller]
    pub fn stuck(self, path: &Path) -> Mounts {
        let nonblocking = nix::libc::O_NONBLOCK;
        let server = File::options().read(true).write(true).custom_flags(nonblocking).open("/dev/fuse");
        let server = server.expect("/dev/fuse: this test needs root and the fuse module");
        self.fuse(path, server, true)
    }

    fn fuse(self, path: &Path, server: File, reads: bool) -> Mounts {
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        if !reads {
            return self.add("fuse", path, &data, Some(server), None);
        }
        let stop = Arc::<AtomicBool>::default();
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || read_requests(&server, &stop)
        });
        self.add("fuse", path, &data, None, Some(Reader { stop, thread: Mutex::new(Some(thread)) }))
    }

    /// Ends the servers of [`Mounts::stuck`]: whatever waits for them has an error then.
    pub fn end_stuck(&self) {
        self.0.iter().filter_map(|mount| mount.reader.as_ref()).for_each(Reader::end);
    }

    /// Adds an empty file system in memory.
    #[track_caller]
    pub fn memory(self, path: &Path) -> Mounts {
        self.add("ramfs", path, "", None, None)
    }

    fn add(mut self, kind: &str, path: &Path, data: &str, server: Option<File>, reader: Option<Reader>) -> Mounts {
        let text = |bytes: &[u8]| CString::new(bytes).expect("no zero byte");
        let path = text(path.as_os_str().as_bytes());
        self.0.push(Arc::new(Mount {
            kind: text(kind.as_bytes()),
            path,
            data: text(data.as_bytes()),
            _server: server,
            reader,
        }));
        self
    }

    /// Makes `command` start with these mounts.
    #[allow(unsafe_code)] // The only way to do something in the child; it makes system calls alone.
    pub(crate) fn apply(&self, command: &mut Command) {
        let mounts = self.0.clone();
        let apply = move || -> io::Result<()> {
            if mounts.is_empty() {
                return Ok(());
            }
            unshare(CloneFlags::CLONE_NEWNS)?;
            let nothing = None::<&std::ffi::CStr>;
            mount(nothing, c"/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
            for one in &mounts {
                let (path, data) = (one.path.as_c_str(), Some(one.data.as_c_str()));
                mount(Some(c"of-a-test"), path, Some(one.kind.as_c_str()), MsFlags::empty(), data)?;
            }
            Ok(())
        };
        // SAFETY: the closure allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(apply);
        }
    }
}

/// Reads the requests of the kernel and answers the one that begins: the structures are those of
/// `linux/fuse.h`, FUSE_INIT is 26, and an answer is its length, an error, and the number of its request.
fn read_requests(mut server: &File, stop: &AtomicBool) {
    let mut request = vec![0; 128 * 1024];
    while !stop.load(Ordering::SeqCst) {
        let length = match server.read(&mut request) {
            Ok(length) => length,
            // Before the mount, and while nothing is asked.
            Err(_) => {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
        };
        if length >= 16 && request[4..8] == 26_u32.to_ne_bytes() {
            let mut answer = [0_u8; 16 + 64];
            answer[..4].copy_from_slice(&80_u32.to_ne_bytes());
            answer[8..16].copy_from_slice(&request[8..16]);
            // The version, no flags, and the longest write.
            for (at, value) in [(16, 7_u32), (20, 31), (24, 65536), (36, 65536)] {
                answer[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            }
            let _ = server.write(&answer);
        }
    }
}

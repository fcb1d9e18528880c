//! File systems that only one program of a test sees: mounted in a mount namespace of its own.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// A list of mounts; empty means no namespace.
#[derive(Clone, Debug, Default)]
pub struct Mounts(Vec<Arc<Mount>>);

#[derive(Debug)]
struct Mount {
    kind: CString,
    path: CString,
    data: CString,
    /// The server's side of a file system of the kind `fuse`.
    _server: Option<File>,
}

impl Mounts {
    /// Adds a file system that never answers: its server reads no request.
    ///
    /// Fails the test when this user may not open `/dev/fuse`.
    #[track_caller]
    pub fn silent(self, path: &Path) -> Mounts {
        let server = File::options().read(true).write(true).open("/dev/fuse");
        let server = server.expect("/dev/fuse: this test needs root and the fuse module");
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        self.add("fuse", path, &data, Some(server))
    }

    /// Adds an empty file system in memory.
    #[track_caller]
    pub fn memory(self, path: &Path) -> Mounts {
        self.add("ramfs", path, "", None)
    }

    fn add(mut self, kind: &str, path: &Path, data: &str, server: Option<File>) -> Mounts {
        let text = |bytes: &[u8]| CString::new(bytes).expect("no zero byte");
        let path = text(path.as_os_str().as_bytes());
        self.0.push(Arc::new(Mount {
            kind: text(kind.as_bytes()),
            path,
            data: text(data.as_bytes()),
            _server: server,
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

//! Linux: the mounted file systems, and how much space each one has.
//!
//! A file system whose server is gone answers no `statvfs`, for ever. So a thread asks, and the caller
//! that waits for it gives a mount up after [`DEADLINE`]. The thread is then lost until the kernel answers.
//! A file system that a lost thread asks is not asked again, and at most [`MAX_LOST`] threads are lost.

use crate::platform::{Disk, Space};
use crossbeam_channel::{Receiver, Sender, select, unbounded};
use jscommon::lock::lock;
use jscommon::worker::Worker;
use nix::sys::statvfs::statvfs;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long a file system has for its answer.
const DEADLINE: Duration = Duration::from_secs(2);
/// Threads that may wait for file systems that do not answer: so many for local ones, and for the others.
const MAX_LOST: usize = 8;
const STACK: usize = 64 * 1024;

/// Kinds that hold no files of users, and those that sysinfo leaves out on every system.
const LEFT_OUT: &[&[u8]] = &[
    b"autofs",
    b"cgroup",
    b"cgroup2",
    b"cifs",
    b"devpts",
    b"devtmpfs",
    b"hugetlbfs",
    b"iso9660",
    b"mqueue",
    b"nfs",
    b"nfs4",
    b"proc",
    b"pstore",
    b"rootfs",
    b"rpc_pipefs",
    b"squashfs",
    b"sysfs",
    b"tmpfs",
];

/// A mount, as the kernel lists it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Mount {
    /// The number of its file system: several mounts of one file system have the same.
    number: String,
    device: Vec<u8>,
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Vec<u8>,
    readonly: bool,
}

/// Returns every mount of this process, in the kernel's order.
pub(crate) fn mounts() -> Vec<Mount> {
    let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
    text.split(|byte| *byte == b'\n').filter_map(mount).collect()
}

/// Reads a line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
fn mount(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    // After the sixth field stand optional ones, and then a hyphen.
    let hyphen = 6 + fields.get(6..)?.iter().position(|field| *field == b"-")?;
    let readonly = |options: &[u8]| options.split(|byte| *byte == b',').any(|option| option == b"ro");
    Some(Mount {
        number: String::from_utf8_lossy(fields.get(2)?).into_owned(),
        path: unescape(fields.get(4)?),
        kind: unescape(fields.get(hyphen + 1)?),
        device: unescape(fields.get(hyphen + 2)?),
        readonly: readonly(fields.get(5)?) || fields.get(hyphen + 3).is_some_and(|options| readonly(options)),
    })
}

/// Takes back that the kernel writes blanks and some others as a backslash and three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let digits = after.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(|d| (b'0'..b'8').contains(d)));
        match digits {
            Some(digits) => {
                plain.push(digits.iter().fold(0_u8, |sum, digit| sum.wrapping_mul(8).wrapping_add(digit - b'0')));
                rest = &after[3..];
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
}

impl Mount {
    /// Whether a device of this machine holds it.
    fn is_local(&self) -> bool {
        self.device.starts_with(b"/dev/")
    }

    /// Whether it holds files of users, and may be asked for its space.
    fn is_listed(&self) -> bool {
        let below = |folder: &str| self.path.starts_with(folder.as_bytes());
        !LEFT_OUT.contains(&self.kind.as_slice())
            && !below("/sys")
            && !below("/proc")
            && (!below("/run") || below("/run/media"))
            && !self.device.starts_with(b"sunrpc")
    }
}

/// Returns every mounted file system that holds files, within a bounded time.
///
/// `space` is `None` for a file system that does not answer. The answer comes at once when `stop` is closed.
pub(crate) fn disks(stop: &Receiver<()>) -> Vec<Disk> {
    let mut mounts: Vec<Mount> = Vec::new();
    for mount in self::mounts().into_iter().filter(Mount::is_listed) {
        let same =
            |known: &Mount| (&known.path, &known.device, &known.kind) == (&mount.path, &mount.device, &mount.kind);
        if !mounts.iter().any(same) {
            mounts.push(mount);
        }
    }
    let removable = removable();
    let spaces = LOST.spaces(&mounts, stop, DEADLINE, space);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    mounts
        .iter()
        .zip(spaces)
        .map(|(mount, space)| Disk {
            device: text(&mount.device),
            mount: text(&mount.path),
            fstype: text(&mount.kind),
            space,
            readonly: mount.readonly,
            removable: removable.iter().any(|path| path.as_os_str().as_bytes() == mount.device),
        })
        .collect()
}

/// Returns the devices that are attached by USB.
fn removable() -> Vec<PathBuf> {
    let links = fs::read_dir("/dev/disk/by-id").into_iter().flatten().flatten();
    let usb = links.filter(|link| link.file_name().as_bytes().starts_with(b"usb-"));
    usb.filter_map(|link| link.path().canonicalize().ok()).collect()
}

/// Asks a mounted file system for its space; this may never return.
fn space(mount: &Mount) -> Option<Space> {
    let found = statvfs(OsStr::from_bytes(&mount.path)).ok()?;
    #[allow(clippy::useless_conversion, reason = "the types differ between systems")]
    let [unit, all, free] = [found.fragment_size().into(), found.blocks().into(), found.blocks_available().into()];
    let bytes = |blocks: u64| blocks.saturating_mul(unit);
    Some(Space { total: bytes(all), free: bytes(free) })
}

static LOST: Lost = Lost(Mutex::new(None));

/// By number of a file system: how many threads wait for its answer, and were given up, and whether it is local.
struct Lost(Mutex<Option<HashMap<String, (usize, bool)>>>);

/// Asks a list of mounts, one after the other.
struct Asker {
    mounts: Vec<(usize, Mount)>,
    answers: Sender<(usize, Option<Space>)>,
    /// Nobody waits for this thread any more; guarded by the lock of [`Lost`].
    given_up: Arc<AtomicBool>,
}

impl Lost {
    /// Returns the space of each of these mounts; `ask` may never return.
    fn spaces(
        &'static self,
        mounts: &[Mount],
        stop: &Receiver<()>,
        deadline: Duration,
        ask: fn(&Mount) -> Option<Space>,
    ) -> Vec<Option<Space>> {
        let mut spaces = vec![None; mounts.len()];
        let mut open: Vec<(usize, Mount)> = mounts.iter().cloned().enumerate().collect();
        // File systems of local devices come first: they answer, whatever becomes of the others.
        open.sort_by_key(|(_, mount)| !mount.is_local());
        loop {
            {
                let mut lost = lock(&self.0);
                let lost = lost.get_or_insert_default();
                // Apart: several callers that wait for the same one lose as many threads, which must hide no local one.
                let threads =
                    |is_local| lost.values().filter(|(_, local)| *local == is_local).map(|(count, _)| count).sum();
                let (local, other): (usize, usize) = (threads(true), threads(false));
                let may_ask = |mount: &Mount| if mount.is_local() { local < MAX_LOST } else { other < MAX_LOST };
                open.retain(|(_, mount)| !lost.contains_key(&mount.number) && may_ask(mount));
                if open.is_empty() {
                    return spaces;
                }
            }
            let (answers, answer) = unbounded();
            let given_up = Arc::new(AtomicBool::new(false));
            let asker = Asker { mounts: open.clone(), answers, given_up: given_up.clone() };
            match Worker::spawn("statvfs", STACK, move || self.run(asker, ask)) {
                Ok(worker) => worker.detach(),
                Err(fault) => {
                    log::warn!("no thread that asks file systems for their space: {fault}");
                    return spaces;
                }
            }
            while let Some((_, mount)) = open.first() {
                select! {
                    recv(answer) -> told => match told {
                        Ok((index, space)) => {
                            spaces[index] = space;
                            open.remove(0);
                        }
                        Err(_) => return spaces,
                    },
                    recv(stop) -> _ => return spaces,
                    default(deadline) => {
                        let mut lost = lock(&self.0);
                        // The answer may have come in this moment.
                        if answer.is_empty() {
                            given_up.store(true, Ordering::Relaxed);
                            let entry = lost.get_or_insert_default().entry(mount.number.clone());
                            entry.or_insert((0, mount.is_local())).0 += 1;
                            log::warn!("the file system at {} does not answer", String::from_utf8_lossy(&mount.path));
                            break;
                        }
                    }
                }
            }
        }
    }

    fn run(&self, asker: Asker, ask: fn(&Mount) -> Option<Space>) {
        for (index, mount) in asker.mounts {
            let space = ask(&mount);
            let mut lost = lock(&self.0);
            if asker.given_up.load(Ordering::Relaxed) {
                log::info!("the file system at {} answers again", String::from_utf8_lossy(&mount.path));
                let lost = lost.get_or_insert_default();
                match lost.get_mut(&mount.number) {
                    Some((threads, _)) if *threads > 1 => *threads -= 1,
                    _ => drop(lost.remove(&mount.number)),
                }
                return;
            }
            if asker.answers.send((index, space)).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{bounded, never};
    use std::sync::atomic::AtomicUsize;
    use std::time::Instant;

    #[test]
    fn lines_of_mountinfo_are_read_whatever_their_bytes() {
        let line =
            b"36 35 98:0 /mnt1 /mnt\\040a/caf\xe9\\134 rw,noatime master:1 shared:2 - ext3 /dev/\\011x rw,errors=c";
        let read = mount(line).unwrap();
        assert_eq!(read.path, b"/mnt a/caf\xe9\\");
        assert_eq!((read.kind.as_slice(), read.device.as_slice()), (b"ext3".as_slice(), b"/dev/\tx".as_slice()));
        assert_eq!((read.number.as_str(), read.readonly), ("98:0", false));
        assert!(mount(b"36 35 98:0 / /a ro - ext3 x rw").unwrap().readonly);
        assert!(mount(b"36 35 98:0 / /a rw - ext3 x ro,y").unwrap().readonly);
        for bad in [b"".as_slice(), b"36 35 98:0 / /a rw", b"36 35 98:0 / /a rw -", b"1 2 3 4 5 - 7 8"] {
            assert_eq!(mount(bad), None);
        }
    }

    #[test]
    fn kernel_file_systems_are_left_out() {
        let listed =
            |path: &str, kind: &str| Mount { path: path.into(), kind: kind.into(), ..Mount::default() }.is_listed();
        assert!(listed("/", "ext4") && listed("/run/media/x", "vfat") && listed("/data", "fuse.sshfs"));
        assert!(
            !listed("/x", "proc") && !listed("/sys/x", "ext4") && !listed("/run/x", "ext4") && !listed("/n", "nfs4")
        );
    }

    #[test]
    fn root_has_space() {
        let disks = disks(&never());
        assert!(disks.iter().all(|disk| disk.space.is_none_or(|space| space.free <= space.total)), "{disks:?}");
    }

    fn mount_of(number: usize) -> Mount {
        Mount { number: number.to_string(), path: format!("/{number}").into_bytes(), ..Mount::default() }
    }

    #[test]
    fn silent_file_systems_cost_a_bounded_number_of_threads_and_hide_no_other() {
        static LOST: Lost = Lost(Mutex::new(None));
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        static SILENCE: Mutex<()> = Mutex::new(());
        // Every number but the first stands for a file system that is silent.
        let ask: fn(&Mount) -> Option<Space> = |mount| {
            if mount.number != "0" {
                ASKED.fetch_add(1, Ordering::Relaxed);
                drop(SILENCE.lock());
            }
            Some(Space { total: 2, free: 1 })
        };
        let local = Mount { device: b"/dev/x".to_vec(), ..mount_of(0) };
        let mounts: Vec<Mount> = [1, 1, 2].into_iter().chain(3..20).map(mount_of).chain([local]).collect();
        let silence = SILENCE.lock().unwrap();
        for _ in 0..3 {
            let spaces = LOST.spaces(&mounts, &never(), Duration::from_millis(500), ask);
            assert_eq!(spaces.last(), Some(&Some(Space { total: 2, free: 1 })));
            assert_eq!(spaces.iter().flatten().count(), 1);
            assert_eq!(ASKED.load(Ordering::Relaxed), MAX_LOST, "one thread for each, and no more than so many");
        }
        drop(silence);
        let begin = Instant::now();
        let answered = |spaces: Vec<Option<Space>>| spaces.iter().flatten().count() == mounts.len();
        while !answered(LOST.spaces(&mounts, &never(), Duration::from_secs(20), ask)) {
            assert!(begin.elapsed() < Duration::from_secs(30), "file systems that answer again are asked again");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn callers_that_wait_for_a_silent_file_system_at_once_hide_no_local_one() {
        static LOST: Lost = Lost(Mutex::new(None));
        static SILENCE: Mutex<()> = Mutex::new(());
        let ask: fn(&Mount) -> Option<Space> = |mount| {
            if mount.number != "0" {
                drop(SILENCE.lock());
            }
            Some(Space { total: 2, free: 1 })
        };
        let mounts = [mount_of(1), Mount { device: b"/dev/x".to_vec(), ..mount_of(0) }];
        let spaces = || LOST.spaces(&mounts, &never(), Duration::from_millis(500), ask);
        let silence = SILENCE.lock().unwrap();
        std::thread::scope(|scope| (0..3 * MAX_LOST).for_each(|_| drop(scope.spawn(spaces))));
        assert_eq!(spaces(), [None, Some(Space { total: 2, free: 1 })]);
        drop(silence);
    }

    #[test]
    fn stop_ends_the_wait_for_a_silent_file_system() {
        static LOST: Lost = Lost(Mutex::new(None));
        let (stop, stopped) = bounded(0);
        drop(stop);
        let ask: fn(&Mount) -> Option<Space> = |_| {
            std::thread::sleep(Duration::from_secs(60));
            None
        };
        let begin = Instant::now();
        assert_eq!(LOST.spaces(&[mount_of(1)], &stopped, Duration::from_secs(60), ask), [None]);
        assert!(begin.elapsed() < Duration::from_secs(30));
    }
}

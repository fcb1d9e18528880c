//! What the agent keeps of itself in memory.

use nix::sys::mman::{MmapAdvise, madvise};
use std::ffi::c_void;
use std::fs;
use std::ptr::NonNull;

/// Lets go of the program's code, most of which only the start needed; what is needed comes back from
/// the file by itself, page by page. On a node where nothing happens this is a tenth of the memory.
pub fn let_go_of_start_code() {
    let (Ok(maps), Ok(program)) = (fs::read_to_string("/proc/self/maps"), fs::read_link("/proc/self/exe")) else {
        return;
    };
    let program = program.to_string_lossy();
    for line in maps.lines().filter(|line| line.contains(" r-xp ") && line.ends_with(&*program)) {
        let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
        let Some((Ok(start), Ok(end))) =
            range.map(|(start, end)| (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16)))
        else {
            continue;
        };
        drop_code(start, end);
    }
}

/// The pages of a mapping that is code of a file: never written to, so nothing of them is lost.
#[allow(unsafe_code)] // `madvise` has no safe form
fn drop_code(start: usize, end: usize) {
    let Some(address) = NonNull::new(start as *mut c_void) else { return };
    if let Err(fault) = unsafe { madvise(address, end - start, MmapAdvise::MADV_DONTNEED) } {
        log::debug!("the code of the start stays in memory: {fault}");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_program_goes_on_without_it() {
        super::let_go_of_start_code();
        assert_eq!("goes on".len(), 7);
    }
}

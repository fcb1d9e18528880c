//! The drives that sysinfo lists, and those that it leaves out: those that no volume of the volume manager
//! stands behind, as RAM disks have none, and nothing has under wine.

use crate::platform::{Disk, Space};
use crossbeam_channel::Receiver;
use sysinfo::Disks;
use windows::Win32::Storage::FileSystem::{
    GetDiskFreeSpaceExW, GetDriveTypeW, GetLogicalDrives, GetVolumeInformationW,
};
use windows::Win32::System::Diagnostics::Debug::{SEM_FAILCRITICALERRORS, SetThreadErrorMode, THREAD_ERROR_MODE};
use windows::Win32::System::SystemServices::FILE_READ_ONLY_VOLUME;
use windows::Win32::System::WindowsProgramming::{DRIVE_FIXED, DRIVE_RAMDISK, DRIVE_REMOVABLE};
use windows::core::HSTRING;

/// Asks about disks without a window that waits for somebody to put a medium in: nobody sees a service's.
/// Of this thread alone, so that no job inherits it.
#[allow(unsafe_code)] // sets a flag of this thread, and sets it back
fn without_windows<T>(ask: impl FnOnce() -> T) -> T {
    let mut before = THREAD_ERROR_MODE::default();
    let set = unsafe { SetThreadErrorMode(SEM_FAILCRITICALERRORS, Some(&raw mut before)) };
    let answer = ask();
    if set.is_ok() {
        let _ = unsafe { SetThreadErrorMode(before, None) };
    }
    answer
}

/// Returns every drive; nothing here waits for long, so `_stop` is not looked at.
pub(crate) fn disks(_stop: &Receiver<()>) -> Vec<Disk> {
    let listed = without_windows(Disks::new_with_refreshed_list).ok();
    let listed = listed.iter().flat_map(|disks| disks.iter()).map(|disk| Disk {
        device: disk.name().to_string_lossy().into_owned(),
        mount: disk.mount_point().to_string_lossy().into_owned(),
        fstype: disk.file_system().to_string_lossy().into_owned(),
        space: Some(Space { total: disk.total_space(), free: disk.available_space() }),
        readonly: disk.is_read_only(),
        removable: disk.is_removable(),
    });
    let mut disks: Vec<Disk> = listed.collect();
    for more in letters() {
        if disks.iter().all(|disk| disk.mount != more.mount) {
            disks.push(more);
        }
    }
    disks
}

/// Every drive of this machine that has a letter and a medium. Not those of others, for an answer may
/// have to wait until such a machine is found to be away.
#[allow(unsafe_code)] // asks for numbers only
fn letters() -> Vec<Disk> {
    let letters = unsafe { GetLogicalDrives() };
    let drives = ('A'..='Z').enumerate().filter(|(n, _)| letters & (1 << n) != 0);
    without_windows(|| drives.filter_map(|(_, letter)| disk(letter)).collect())
}

#[allow(unsafe_code)] // the system fills values and buffers of known sizes
fn disk(letter: char) -> Option<Disk> {
    let mount = format!("{letter}:\\");
    let root = HSTRING::from(mount.as_str());
    let kind = unsafe { GetDriveTypeW(&root) };
    if ![DRIVE_FIXED, DRIVE_REMOVABLE, DRIVE_RAMDISK].contains(&kind) {
        return None;
    }
    let (mut device, mut fstype, mut flags) = ([0; 261], [0; 32], 0);
    let (mut free, mut total) = (0, 0);
    unsafe {
        GetVolumeInformationW(&root, Some(&mut device), None, None, Some(&raw mut flags), Some(&mut fstype)).ok()?;
        GetDiskFreeSpaceExW(&root, Some(&raw mut free), Some(&raw mut total), None).ok()?;
    }
    Some(Disk {
        device: text(&device),
        mount,
        fstype: text(&fstype),
        space: Some(Space { total, free }),
        readonly: flags & FILE_READ_ONLY_VOLUME != 0,
        removable: kind == DRIVE_REMOVABLE,
    })
}

/// Returns the text before the first zero.
fn text(units: &[u16]) -> String {
    let end = units.iter().position(|unit| *unit == 0).unwrap_or(units.len());
    String::from_utf16_lossy(&units[..end])
}

//! How busy the processors are.
//!
//! sysinfo asks the performance counters (PDH), which take a second to open and are missing where
//! counters are broken or where this is no real Windows; these two calls are there always.

use std::mem::size_of;
use windows::Wdk::System::SystemInformation::{NtQuerySystemInformation, SystemProcessorPerformanceInformation};
use windows::Win32::Foundation::FILETIME;
use windows::Win32::System::Threading::GetSystemTimes;
use windows::Win32::System::WindowsProgramming::SYSTEM_PROCESSOR_PERFORMANCE_INFORMATION;

/// Times since the start of the system, in units that only their differences matter of.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Times {
    idle: u64,
    /// Idle time included.
    all: u64,
}

impl Times {
    /// The share of the time since `before` in which there was work, in percent.
    fn usage(self, before: Times) -> f64 {
        let all = self.all.saturating_sub(before.all);
        if all == 0 {
            return 0.0;
        }
        let idle = self.idle.saturating_sub(before.idle).min(all);
        100.0 * (all - idle) as f64 / all as f64
    }
}

/// The processors as they were at the last look.
#[derive(Debug)]
pub(crate) struct Processors {
    whole: Times,
    each: Vec<Times>,
}

impl Processors {
    /// A first look, which later ones are compared with.
    pub(crate) fn new() -> Option<Processors> {
        Some(Processors { whole: whole()?, each: each() })
    }

    /// Percent of the whole machine in use since the last look.
    pub(crate) fn usage(&mut self) -> f64 {
        let Some(now) = whole() else { return 0.0 };
        now.usage(std::mem::replace(&mut self.whole, now))
    }

    /// Percent of each of `count` processors in use since the last look. Where the system tells of the
    /// whole alone, each has its share.
    pub(crate) fn usages(&mut self, count: usize) -> Vec<f64> {
        let now = each();
        if now.len() == count && self.each.len() == count {
            let usages = now.iter().zip(&self.each).map(|(now, before)| now.usage(*before)).collect();
            self.each = now;
            return usages;
        }
        vec![self.usage(); count]
    }
}

#[allow(unsafe_code)] // three values are written to where the references point
fn whole() -> Option<Times> {
    let (mut idle, mut kernel, mut user) = (FILETIME::default(), FILETIME::default(), FILETIME::default());
    unsafe { GetSystemTimes(Some(&raw mut idle), Some(&raw mut kernel), Some(&raw mut user)).ok()? };
    let value = |time: FILETIME| u64::from(time.dwHighDateTime) << 32 | u64::from(time.dwLowDateTime);
    // The kernel's time has the idle time in it.
    Some(Times { idle: value(idle), all: value(kernel) + value(user) })
}

#[allow(unsafe_code)] // fills at most the entries that it is told of, and says how many
fn each() -> Vec<Times> {
    const ENTRY: usize = size_of::<SYSTEM_PROCESSOR_PERFORMANCE_INFORMATION>();
    let mut entries = vec![SYSTEM_PROCESSOR_PERFORMANCE_INFORMATION::default(); 256];
    let mut filled = 0;
    let size = (entries.len() * ENTRY) as u32;
    let status = unsafe {
        NtQuerySystemInformation(
            SystemProcessorPerformanceInformation,
            entries.as_mut_ptr().cast(),
            size,
            &raw mut filled,
        )
    };
    if status.is_err() {
        return Vec::new();
    }
    entries.truncate(filled as usize / ENTRY);
    let times = |entry: &SYSTEM_PROCESSOR_PERFORMANCE_INFORMATION| Times {
        idle: entry.IdleTime as u64,
        all: (entry.KernelTime + entry.UserTime) as u64,
    };
    entries.iter().map(times).collect()
}

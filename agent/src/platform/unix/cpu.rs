//! How busy the processors are.

use sysinfo::{CpuRefreshKind, RefreshKind, System};

/// The processors as they were at the last look.
#[derive(Debug)]
pub(crate) struct Processors(System);

impl Processors {
    /// A first look, which later ones are compared with.
    pub(crate) fn new() -> Option<Processors> {
        let usage = CpuRefreshKind::nothing().with_usage();
        System::new_with_specifics(RefreshKind::nothing().with_cpu(usage)).ok().map(Processors)
    }

    /// Percent of the whole machine in use since the last look.
    pub(crate) fn usage(&mut self) -> f64 {
        self.0.refresh_cpu_usage();
        f64::from(self.0.global_cpu_usage())
    }

    /// Percent of each processor in use since the last look; `_count` is how many there are.
    pub(crate) fn usages(&mut self, _count: usize) -> Vec<f64> {
        self.0.refresh_cpu_usage();
        self.0.cpus().iter().map(|cpu| f64::from(cpu.usage())).collect()
    }
}

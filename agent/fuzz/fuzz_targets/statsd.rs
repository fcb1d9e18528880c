//! No line harms the aggregator.
#![no_main]

use jsagent::job::JobLabel;
use jsagent::stats::Inlet;
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;

fuzz_target!(|text: &str| {
    let none = jscommon::LevelSet::NONE;
    let source = JobLabel {
        jobid: "j".into(),
        domain: "d".into(),
        name: "n".into(),
        db: none,
        ac: none,
        stats_interval: None,
    };
    Inlet::default().lines(&Arc::new(source), text);
});

//! The commands that describe the node: `get_cpu_info`, `get_mem_info`, `get_disk_info`, `get_nic_info`,
//! `get_os_info`.
//!
//! Owns the shape of the five answers, so that their keys are the same on every system; the figures come
//! from sysinfo, and from the system where that leaves something out. Each answer is taken anew, nothing is kept
//! between two of them.

use super::{Answer, Context};
use crate::config::Config;
use crate::platform;
use crossbeam_channel::never;
use jscommon::Command;
use serde_json::{Value, json};
use std::thread;
use sysinfo::{CpuRefreshKind, MINIMUM_CPU_UPDATE_INTERVAL, Networks, RefreshKind, System};

/// `{arch, brand, physical, logical, mhz, usage, load}`: the usage of each processor in percent over
/// a fifth of a second, and the load averages of 1, 5 and 15 minutes (zeros on Windows, which has none).
pub(super) fn cpu(_: &Context, _: &Command) -> Answer {
    let what = CpuRefreshKind::nothing().with_frequency();
    let system = System::new_with_specifics(RefreshKind::nothing().with_cpu(what)).map_err(unknown)?;
    let mut processors = platform::Processors::new().ok_or("the system does not tell how busy it is")?;
    // Usage is what changed between two looks.
    thread::sleep(MINIMUM_CPU_UPDATE_INTERVAL);
    let usage = processors.usages(system.cpus().len());
    let first = system.cpus().first();
    let load = System::load_average().unwrap_or_default();
    Ok(json!({
        "arch": System::cpu_arch(),
        "brand": first.map_or("", |cpu| cpu.brand().trim()),
        "physical": System::physical_core_count().unwrap_or(usage.len()),
        "logical": usage.len(),
        "mhz": first.map_or(0, sysinfo::Cpu::frequency),
        "usage": usage.into_iter().map(tenths).collect::<Vec<_>>(),
        "load": [load.one, load.five, load.fifteen],
    }))
}

/// `{total, available, used, free, swap_total, swap_used}`, in bytes.
pub(super) fn memory(_: &Context, _: &Command) -> Answer {
    let mut system = System::new().map_err(unknown)?;
    system.refresh_memory();
    Ok(json!({
        "total": system.total_memory(),
        "available": system.available_memory(),
        "used": system.used_memory(),
        "free": system.free_memory(),
        "swap_total": system.total_swap(),
        "swap_used": system.used_swap(),
    }))
}

/// A list of `{device, mount, fstype, total, used, free, readonly, removable}`, in bytes; `free` is
/// what is left for ordinary users, as `df` counts it. The three sizes of a file system that does not
/// answer are null.
pub(super) fn disks(_: &Context, _: &Command) -> Answer {
    let mut disks = platform::disks(&never());
    disks.sort_by(|a, b| a.mount.cmp(&b.mount));
    Ok(disks.iter().map(disk_entry).collect())
}

fn disk_entry(disk: &platform::Disk) -> Value {
    json!({
        "device": disk.device,
        "mount": disk.mount,
        "fstype": disk.fstype,
        "total": disk.space.map(|space| space.total),
        "used": disk.space.map(|space| space.total.saturating_sub(space.free)),
        "free": disk.space.map(|space| space.free),
        "readonly": disk.readonly,
        "removable": disk.removable,
    })
}

/// A list of `{name, mac, mtu, addrs, rx_bytes, tx_bytes, rx_errors, tx_errors}`; `addrs` are
/// written `ip/prefix`, the counters count from the start of the system.
pub(super) fn nics(_: &Context, _: &Command) -> Answer {
    let networks = Networks::new_with_refreshed_list().map_err(unknown)?;
    let known = networks.iter().map(|(name, nic)| platform::Interface {
        name: name.to_string_lossy().into_owned(),
        mac: nic.mac_address().to_string(),
        mtu: nic.mtu(),
        addrs: nic.ip_networks().iter().map(|net| format!("{}/{}", net.addr, net.prefix)).collect(),
        counters: [
            nic.total_received(),
            nic.total_transmitted(),
            nic.total_errors_on_received(),
            nic.total_errors_on_transmitted(),
        ],
    });
    let mut nics: Vec<platform::Interface> = known.collect();
    for more in platform::interfaces() {
        if nics.iter().all(|nic| nic.name != more.name) {
            nics.push(more);
        }
    }
    nics.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(nics.into_iter().map(nic_entry).collect())
}

fn nic_entry(mut nic: platform::Interface) -> Value {
    nic.addrs.sort();
    let [rx_bytes, tx_bytes, rx_errors, tx_errors] = nic.counters;
    json!({
        "name": nic.name, "mac": nic.mac, "mtu": nic.mtu, "addrs": nic.addrs,
        "rx_bytes": rx_bytes, "tx_bytes": tx_bytes, "rx_errors": rx_errors, "tx_errors": tx_errors,
    })
}

/// `{hostname, os, name, version, kernel, arch, uptime, boottime, agent}`; `uptime` in seconds,
/// `boottime` in seconds since 1970, `agent` is this program's version.
pub(super) fn system(_: &Context, _: &Command) -> Answer {
    Ok(about())
}

/// The answer of `get_os_info`, which the startup event carries too.
pub(crate) fn about() -> Value {
    json!({
        "hostname": System::host_name().unwrap_or_default(),
        "os": std::env::consts::OS,
        "name": System::name().unwrap_or_default(),
        "version": System::os_version().unwrap_or_default(),
        "kernel": System::kernel_version().unwrap_or_default(),
        "arch": System::cpu_arch(),
        "uptime": System::uptime().unwrap_or_default(),
        "boottime": System::boot_time().unwrap_or_default(),
        "agent": env!("CARGO_PKG_VERSION"),
    })
}

/// Returns the data of this agent's `startup` event.
pub(crate) fn startup(config: &Config, instance: &str) -> Value {
    json!({
        "hostname": System::host_name().unwrap_or_default(),
        "os": std::env::consts::OS,
        "version": env!("CARGO_PKG_VERSION"),
        "instance": instance,
        "roles": config.main.roles,
    })
}

fn unknown(error: sysinfo::Error) -> String {
    format!("the system does not tell: {error}")
}

fn tenths(percent: f64) -> f64 {
    (percent * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[track_caller]
    fn keys(value: &Value) -> Vec<&str> {
        value.as_object().expect("an object").keys().map(String::as_str).collect()
    }

    fn ask(function: super::super::Function) -> Value {
        let command = Command::parse(br#"{"id":"a","gid":1,"nid":1,"cmd":"x"}"#).unwrap();
        function(&Context::new(Arc::new(Config::default())), &command).unwrap()
    }

    #[test]
    fn a_processor_has_a_usage_for_each_core() {
        let cpu = ask(cpu);
        assert_eq!(keys(&cpu), ["arch", "brand", "load", "logical", "mhz", "physical", "usage"]);
        let usage = cpu["usage"].as_array().unwrap();
        assert_eq!(Some(usage.len() as u64), cpu["logical"].as_u64());
        assert!(!usage.is_empty() && usage.iter().all(|u| (0.0..=100.0).contains(&u.as_f64().unwrap())), "{usage:?}");
        assert_eq!(cpu["load"].as_array().map(Vec::len), Some(3));
    }

    #[test]
    fn memory_adds_up() {
        let memory = ask(memory);
        assert_eq!(keys(&memory), ["available", "free", "swap_total", "swap_used", "total", "used"]);
        assert!(memory["total"].as_u64() > memory["used"].as_u64());
    }

    #[test]
    fn disks_and_nics_have_their_keys() {
        for disk in ask(disks).as_array().unwrap() {
            assert_eq!(keys(disk), ["device", "free", "fstype", "mount", "readonly", "removable", "total", "used"]);
        }
        let nics = ask(nics);
        for nic in nics.as_array().unwrap() {
            assert_eq!(keys(nic), ["addrs", "mac", "mtu", "name", "rx_bytes", "rx_errors", "tx_bytes", "tx_errors"]);
        }
        if cfg!(target_os = "linux") {
            let lo = nics.as_array().unwrap().iter().find(|nic| nic["name"] == "lo").expect("a loopback interface");
            assert!(lo["addrs"].as_array().unwrap().contains(&json!("127.0.0.1/8")), "{lo}");
        }
    }

    #[test]
    fn the_system_names_itself() {
        let system = ask(system);
        assert_eq!(
            keys(&system),
            ["agent", "arch", "boottime", "hostname", "kernel", "name", "os", "uptime", "version"]
        );
        assert_eq!(system["agent"], env!("CARGO_PKG_VERSION"));
        assert!(system["boottime"].as_u64() > Some(1_000_000_000));
    }
}

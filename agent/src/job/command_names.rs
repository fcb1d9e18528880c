//! The names of the commands that the agent answers itself.

/// The built-in commands, in order.
pub(crate) const BUILTIN: [&str; 22] = [
    "attach",
    "del_msgs",
    "follow",
    "get",
    "get_cpu_info",
    "get_disk_info",
    "get_mem_info",
    "get_msgs",
    "get_nic_info",
    "get_os_info",
    "get_process_stats",
    "get_processes_stats",
    "get_schedules",
    "input",
    "kill",
    "killall",
    "ping",
    "put",
    "resize",
    "restart",
    "signal",
    "unschedule",
];

/// Returns whether this is the name of a built-in command.
pub(crate) fn is_builtin(name: &str) -> bool {
    BUILTIN.contains(&name)
}

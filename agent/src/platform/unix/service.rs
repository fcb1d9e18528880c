//! The agent as a service: a matter of its service manager's own files here.

use crate::platform::ServiceOrder;
use anyhow::{Result, bail};
use std::path::PathBuf;

const ELSEWHERE: &str = "jsagent service is for Windows; here install-agent or the package tells the service manager";

/// Where the configuration of a service lies unless it is said otherwise.
pub(crate) fn service_config() -> PathBuf {
    PathBuf::from("/etc/jsagent/agent.toml")
}

/// Refuses: units and init scripts are installed with the program.
pub(crate) fn service(_order: ServiceOrder) -> Result<String> {
    bail!(ELSEWHERE)
}

/// Refuses as well: the service manager starts `jsagent -c FILE`.
pub(crate) fn run_service(_body: impl FnOnce(&dyn Fn()) -> bool + Send + 'static) -> Result<()> {
    bail!(ELSEWHERE)
}

//! Windows.

use super::Interface;

/// None: sysinfo finds every interface here.
pub fn interfaces() -> Vec<Interface> {
    Vec::new()
}

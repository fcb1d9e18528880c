//! The last frames of a watch.
//!
//! **Owns** their bytes and their offset. **Does not own** what they say.

use jscommon::frame::{self, Kind};
use serde_json::Value;

/// The last frames of a watch.
pub(super) struct Suffix {
    pub(super) at: u64,
    pub(super) frames: Vec<u8>,
}

impl Suffix {
    pub(super) fn end(&self) -> u64 {
        self.at + self.frames.len() as u64
    }
}

/// Adds an end frame.
pub(super) fn push_end(frames: &mut Vec<u8>, mut said: Value, error: Option<&str>) {
    if let Some(error) = error {
        said["error"] = error.into();
    }
    frame::push(frames, Kind::End, said.to_string().as_bytes());
}

//! The name of a node: its grid and its number in it.

use std::fmt;
use std::str::FromStr;

/// A node: `gid` (grid id) and `nid` (node id), both 1 or more; written `gid:nid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId {
    /// Grid id, 1 or more.
    pub gid: u32,
    /// Node id, 1 or more, unique in its grid.
    pub nid: u32,
}

impl NodeId {
    /// The node `gid:nid`, or nothing when either is 0 (0 means "not named" on the wire).
    pub fn new(gid: u32, nid: u32) -> Option<NodeId> {
        (gid > 0 && nid > 0).then_some(NodeId { gid, nid })
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.gid, self.nid)
    }
}

/// Longest role or label, in bytes.
pub const MAX_ROLE: usize = 64;

/// Whether `text` can be a role or a label: characters that mean nothing to a shell or a terminal.
pub fn is_role(text: &str) -> bool {
    (1..=MAX_ROLE).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'/' | b'-'))
}

/// The text is not `gid:nid` with two whole numbers from 1 to 4294967295.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadNodeId;

impl fmt::Display for BadNodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a node is written gid:nid, two whole numbers of 1 or more")
    }
}

impl std::error::Error for BadNodeId {}

impl FromStr for NodeId {
    type Err = BadNodeId;

    fn from_str(text: &str) -> Result<NodeId, BadNodeId> {
        let (gid, nid) = text.split_once(':').ok_or(BadNodeId)?;
        // `parse` alone would take "+1" and "01", which are other spellings of the same key.
        let number = |part: &str| -> Option<u32> {
            let value: u32 = part.parse().ok()?;
            (value.to_string() == part).then_some(value)
        };
        match (number(gid), number(nid)) {
            (Some(gid), Some(nid)) => NodeId::new(gid, nid).ok_or(BadNodeId),
            _ => Err(BadNodeId),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_of_a_small_set_of_characters() {
        let longest = "x".repeat(MAX_ROLE);
        for good in ["web", "A.b_c:d/e-9", "7", "-", longest.as_str()] {
            assert!(is_role(good), "{good:?}");
        }
        let too_long = "x".repeat(MAX_ROLE + 1);
        for bad in
            ["", "*", "a b", "x;y", "$(x)", "x\ny", "x,y", "@x", "x=y", "ü", "x\u{202e}", "\\", too_long.as_str()]
        {
            assert!(!is_role(bad), "{bad:?}");
        }
    }

    #[test]
    fn node_is_read_back_from_its_text() {
        assert_eq!("1:10".parse(), Ok(NodeId { gid: 1, nid: 10 }));
        assert_eq!(NodeId { gid: 1, nid: 10 }.to_string(), "1:10");
        for bad in ["", "1", "1:", ":1", "0:1", "1:0", "+1:1", "01:1", "1:2:3", "-1:1", "1:4294967296"] {
            assert_eq!(bad.parse::<NodeId>(), Err(BadNodeId), "{bad}");
        }
    }
}

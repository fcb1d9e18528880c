//! The node secret, and the one before it.
//!
//! Owns: the file `node.secret` (a line for each secret: 64 hex digits, and for an old one until when
//! it holds, in milliseconds since 1970), and what token is good.
//! Does not own: revocation (`authenticator`).

use crate::auth::state_files::{NODE_SECRET, write_state};
use anyhow::{Context, bail};
use jscommon::token::{BadToken, Claims, NodeSecret};
use ring::rand::{SecureRandom, SystemRandom};
use std::path::Path;

/// For how long (ms) a rotated secret still holds.
pub(crate) const PREVIOUS_SECRET_TTL_MS: u64 = 86_400_000;

/// The secrets that hold.
#[derive(Clone, Debug)]
pub struct Secrets {
    /// New tokens are signed with this one.
    pub current: NodeSecret,
    /// This one holds until then (ms).
    pub(crate) previous: Option<(NodeSecret, u64)>,
    text: String,
}

/// The content of a good token, and whether the node should fetch a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    /// Its node, and when it was issued.
    pub(crate) claims: Claims,
    /// It is signed with the old secret.
    pub(crate) old: bool,
}

impl Secrets {
    /// A new secret, alone.
    pub fn generate() -> anyhow::Result<Secrets> {
        Secrets::parse(&format!("{}\n", fresh()?))
    }

    /// The file of the state directory.
    pub fn read(dir: &Path) -> anyhow::Result<Secrets> {
        let file = dir.join(NODE_SECRET);
        let text = jscommon::file::read_text(&file).with_context(|| format!("{} cannot be read", file.display()))?;
        Secrets::parse(&text).with_context(|| format!("{} is damaged", file.display()))
    }

    /// Reads the file's text.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Secrets> {
        let mut current = None;
        let mut previous = None;
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let (hex, until) = match line.trim().split_once(' ') {
                Some((hex, until)) => (hex, Some(until.trim().parse().context("a time is not a number")?)),
                None => (line.trim(), None),
            };
            let secret = NodeSecret::new(&bytes(hex)?);
            match until {
                None if current.is_none() => current = Some(secret),
                Some(until) if previous.is_none() => previous = Some((secret, until)),
                _ => bail!("more secrets than a current and a previous one"),
            }
        }
        let current = current.context("there is no current secret")?;
        Ok(Secrets { current, previous, text: text.to_owned() })
    }

    /// A new secret in the place of the current one, which holds for another day from `now` (ms).
    pub fn rotated(&self, now: u64) -> anyhow::Result<Secrets> {
        let current = self.text.lines().find(|line| !line.trim().is_empty() && !line.trim().contains(' '));
        let current = current.context("there is no current secret")?.trim();
        Secrets::parse(&format!("{}\n{current} {}\n", fresh()?, now + PREVIOUS_SECRET_TTL_MS))
    }

    /// Writes the file.
    pub(crate) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        write_state(&dir.join(NODE_SECRET), self.text.as_bytes(), 0o600)
    }

    /// Returns the content of `token` when it is signed with a secret that holds at `now` (ms).
    pub(crate) fn check(&self, token: &str, now: u64) -> Result<Checked, BadToken> {
        if let Ok(claims) = self.current.check(token) {
            return Ok(Checked { claims, old: false });
        }
        match &self.previous {
            Some((secret, until)) if now < *until => secret.check(token).map(|claims| Checked { claims, old: true }),
            _ => Err(BadToken),
        }
    }
}

fn fresh() -> anyhow::Result<String> {
    Ok(random(32)?.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// `n` random bytes.
pub(crate) fn random(n: usize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = vec![0; n];
    SystemRandom::new().fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system gives no randomness"))?;
    Ok(bytes)
}

fn bytes(hex: &str) -> anyhow::Result<Vec<u8>> {
    if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        bail!("a secret is 64 hex digits");
    }
    (0..64).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).context("a secret is 64 hex digits")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use jscommon::NodeId;

    const NODE: NodeId = NodeId { gid: 1, nid: 10 };

    #[test]
    fn a_rotated_secret_holds_for_a_day() {
        let first = Secrets::generate().unwrap();
        let token = first.current.issue(NODE, 5);
        let second = first.rotated(1000).unwrap();
        assert_ne!(first.current.fingerprint(), second.current.fingerprint());
        assert!(second.check(&token, 1000 + PREVIOUS_SECRET_TTL_MS - 1).unwrap().old);
        assert_eq!(second.check(&token, 1000 + PREVIOUS_SECRET_TTL_MS), Err(BadToken));
        assert!(!second.check(&second.current.issue(NODE, 5), 0).unwrap().old);
        let third = second.rotated(2000).unwrap();
        assert_eq!(third.check(&token, 2000), Err(BadToken), "of three only two hold");
    }

    #[test]
    fn damaged_secret_file_is_refused() {
        let line = "a".repeat(64);
        for bad in ["", "abc", &line[1..], &format!("{line}\n{line}"), &format!("{line} x"), &format!("{line} 5")] {
            assert!(Secrets::parse(bad).is_err(), "{bad}");
        }
    }
}

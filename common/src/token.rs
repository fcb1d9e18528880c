//! The node token: `<gid>.<nid>.<issued>.<mac>`.
//!
//! `issued` is in milliseconds since 1970; `mac` is the HMAC-SHA-256 (RFC 2104) of the text
//! `<gid>.<nid>.<issued>` under the node secret, in base64url without padding (RFC 4648, 5).
//! A controller checks it without a look-up, and a revocation only has to say "none issued before".

use crate::NodeId;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::{digest, hmac};
use std::fmt;

/// Longest text that is looked at as a token, in bytes.
const MAX_TOKEN: usize = 128;

/// A key for codes (HMAC-SHA-256, in base64url without padding) by which a text is known again.
#[derive(Clone)]
pub struct MacKey(hmac::Key);

impl MacKey {
    /// A key of these bytes.
    pub fn new(bytes: &[u8]) -> MacKey {
        MacKey(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// The code of `text`.
    pub fn sign(&self, text: &str) -> String {
        URL_SAFE_NO_PAD.encode(hmac::sign(&self.0, text.as_bytes()))
    }

    /// Whether `mac` is the code of `text`. Compares in constant time.
    pub fn verify(&self, text: &str, mac: &str) -> bool {
        URL_SAFE_NO_PAD.decode(mac).is_ok_and(|mac| hmac::verify(&self.0, text.as_bytes(), &mac).is_ok())
    }
}

/// The secret under which one controller family signs its node tokens.
#[derive(Clone)]
pub struct NodeSecret {
    /// Also for other kinds of token; none may begin as a node token does, with a digit.
    pub key: MacKey,
    fingerprint: String,
}

/// The content of a good token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The node whose token it is.
    pub node: NodeId,
    /// When it was issued, in milliseconds since 1970.
    pub issued: u64,
}

/// The text is no token, or its signature is not ours; which of the two is nobody's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadToken;

impl fmt::Display for BadToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the node token is not valid here")
    }
}

impl std::error::Error for BadToken {}

impl NodeSecret {
    /// A secret of these bytes (32 random ones).
    pub fn new(bytes: &[u8]) -> NodeSecret {
        NodeSecret { key: MacKey::new(bytes), fingerprint: sha256_hex(bytes) }
    }

    /// SHA-256 of the secret in hex: tells two secrets apart without telling either.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// A token for `node`, issued at `issued` (milliseconds since 1970).
    pub fn issue(&self, node: NodeId, issued: u64) -> String {
        let body = format!("{}.{}.{issued}", node.gid, node.nid);
        format!("{body}.{}", self.key.sign(&body))
    }

    /// Returns the content of `token` when it is signed with this secret. Compares in constant time.
    pub fn check(&self, token: &str) -> Result<Claims, BadToken> {
        if token.len() > MAX_TOKEN {
            return Err(BadToken);
        }
        let (body, mac) = token.rsplit_once('.').ok_or(BadToken)?;
        claims(body).filter(|_| self.key.verify(body, mac)).ok_or(BadToken)
    }
}

impl fmt::Debug for NodeSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeSecret(..)")
    }
}

/// The form of a node token, for sentences.
pub const NODE_TOKEN_FORM: &str = "GID.NID.TIME.MAC";

/// Returns what a text in the form of a node token claims; its signature is not checked.
pub fn claimed(token: &str) -> Option<Claims> {
    let (body, mac) = token.rsplit_once('.').filter(|_| token.len() <= MAX_TOKEN)?;
    URL_SAFE_NO_PAD.decode(mac).ok().filter(|mac| mac.len() == digest::SHA256_OUTPUT_LEN)?;
    claims(body)
}

fn claims(body: &str) -> Option<Claims> {
    let (node, issued) = body.rsplit_once('.')?;
    Some(Claims { node: node.replacen('.', ":", 1).parse().ok()?, issued: issued.parse().ok()? })
}

/// When a token that was checked before was issued, in milliseconds since 1970.
pub fn issued(token: &str) -> Option<u64> {
    token.rsplit_once('.')?.0.rsplit_once('.')?.1.parse().ok()
}

/// SHA-256 of `bytes`, in lower-case hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// `bytes` in lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId { gid: 1, nid: 10 };

    #[test]
    fn token_names_its_node() {
        let secret = NodeSecret::new(b"0123456789abcdef0123456789abcdef");
        let token = secret.issue(NODE, 1_766_385_000_123);
        assert!(token.starts_with("1.10.1766385000123."), "{token}");
        assert_eq!(secret.check(&token), Ok(Claims { node: NODE, issued: 1_766_385_000_123 }));
        assert_eq!(issued(&token), Some(1_766_385_000_123));
        assert_eq!(claimed(&token), Some(Claims { node: NODE, issued: 1_766_385_000_123 }));
        for text in ["", "x", "1.10.5", "1.10.5.", "1.10.5.ä", "0.10.5.abc", "jse1.id.1.99.ab"] {
            assert_eq!(claimed(text), None, "{text}");
        }
        assert_eq!((issued("x"), issued("1.10.x.y")), (None, None));
    }

    #[test]
    fn any_other_text_is_refused() {
        let secret = NodeSecret::new(b"0123456789abcdef0123456789abcdef");
        let token = secret.issue(NODE, 5);
        assert_eq!(NodeSecret::new(b"another").check(&token), Err(BadToken));
        for i in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[i] = if bytes[i] == b'1' { b'2' } else { b'1' };
            assert_eq!(secret.check(std::str::from_utf8(&bytes).unwrap()), Err(BadToken), "byte {i}");
        }
        for bad in ["", ".", "...", "1.10.5", &token[..token.len() - 1], &format!("{token}A"), &"x".repeat(1000)] {
            assert_eq!(secret.check(bad), Err(BadToken), "{bad}");
        }
    }
}

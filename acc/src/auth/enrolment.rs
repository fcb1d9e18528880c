//! Enrolment tokens: `jse1.<id>.<uses>.<expires>.<mac>.<fingerprint>`, or
//! `jse2.<id>.<uses>.<expires>.<terms>.<mac>.<fingerprint>` where it is for one node alone or grants something. Pure.
//!
//! `expires` is in milliseconds since 1970; `terms` is JSON in base64url; `fingerprint` is the SHA-256 in hex of the CA
//! certificate by which the new node knows the controller; `mac` is the HMAC-SHA-256 of everything else, under a
//! key made from the node secret, in base64url. How often one was used is counted in Redis.

use crate::auth::dates;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jscommon::NodeId;
use jscommon::token::NodeSecret;
use serde_json::{Value, json};

/// The content of an enrolment token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Enrolment {
    /// Its name, for the count.
    pub(crate) id: String,
    /// How often it may be used.
    pub(crate) uses: u64,
    /// When it ends, in milliseconds since 1970.
    pub(crate) expires: u64,
    /// SHA-256 of the CA certificate, in hex.
    pub(crate) fingerprint: String,
    /// For which node it is, and what it grants.
    pub(crate) terms: Terms,
}

/// The terms of an enrolment token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// The one node that it is for; nothing where it is for any.
    pub(crate) node: Option<NodeId>,
    /// Credentials of that node which hold are replaced.
    pub(crate) replace: bool,
    /// The granted claims: `role:web`, `label:site=ams`.
    pub(crate) named: Vec<String>,
}

impl Terms {
    fn text(&self) -> String {
        let terms =
            json!({"node": self.node.map(|node| node.to_string()), "replace": self.replace, "grant": self.named});
        URL_SAFE_NO_PAD.encode(terms.to_string())
    }

    fn parse(text: &str) -> Option<Terms> {
        let terms: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let node = match &terms["node"] {
            Value::Null => None,
            node => Some(node.as_str()?.parse().ok()?),
        };
        let named = terms["grant"].as_array()?.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        Some(Terms { node, replace: terms["replace"] == true, named })
    }
}

/// Begins an enrolment token without terms.
pub(crate) const PREFIX: &str = "jse1.";
/// Begins one with terms.
const PREFIX_TERMS: &str = "jse2.";
/// Longest token, in bytes.
const MAX_TOKEN_BYTES: usize = 4096;

impl Enrolment {
    fn body(&self) -> String {
        let Enrolment { id, uses, expires, .. } = self;
        if self.terms == Terms::default() {
            return format!("{PREFIX}{id}.{uses}.{expires}");
        }
        format!("{PREFIX_TERMS}{id}.{uses}.{expires}.{}", self.terms.text())
    }

    /// The token's text.
    pub(crate) fn sign(&self, secret: &NodeSecret) -> String {
        let body = self.body();
        let mac = secret.key.sign(&format!("{body}.{}", self.fingerprint));
        format!("{body}.{mac}.{}", self.fingerprint)
    }

    /// Whether a controller would read a token that says so much.
    pub(crate) fn check_length(&self) -> Result<(), String> {
        // A MAC and the fingerprint stand behind the body.
        if self.body().len() + 128 > MAX_TOKEN_BYTES {
            return Err("so many roles and labels do not fit into a token: name fewer, and grant the others with \
                `jsctl grant`"
                .into());
        }
        Ok(())
    }

    /// Reads a token and says what is wrong with it; `now` is in milliseconds since 1970.
    pub(crate) fn check(token: &str, secrets: &super::secrets::Secrets, now: u64) -> Result<Enrolment, String> {
        let bad = || "the enrolment token is not valid here".to_owned();
        if token.len() > MAX_TOKEN_BYTES {
            return Err(bad());
        }
        let parts: Vec<&str> = token.split('.').collect();
        let (id, uses, expires, terms, mac, fingerprint) = match parts[..] {
            ["jse1", id, uses, expires, mac, fingerprint] => (id, uses, expires, None, mac, fingerprint),
            ["jse2", id, uses, expires, terms, mac, fingerprint] => (id, uses, expires, Some(terms), mac, fingerprint),
            _ => return Err(bad()),
        };
        let body = match terms {
            None => format!("{PREFIX}{id}.{uses}.{expires}.{fingerprint}"),
            Some(terms) => format!("{PREFIX_TERMS}{id}.{uses}.{expires}.{terms}.{fingerprint}"),
        };
        let current = secrets.current.key.verify(&body, mac);
        let previous =
            || secrets.previous.as_ref().is_some_and(|(old, until)| now < *until && old.key.verify(&body, mac));
        if !current && !previous() {
            return Err(bad());
        }
        let (uses, expires) = (uses.parse().map_err(|_| bad())?, expires.parse().map_err(|_| bad())?);
        if now >= expires {
            return Err(format!(
                "the enrolment token expired at {}; the controller's clock says {}",
                dates::shown(expires),
                dates::shown(now)
            ));
        }
        let terms = match terms {
            None => Terms::default(),
            Some(terms) => Terms::parse(terms).ok_or_else(bad)?,
        };
        Ok(Enrolment { id: id.to_owned(), uses, expires, fingerprint: fingerprint.to_owned(), terms })
    }
}

#[cfg(test)]
mod tests {
    use super::super::secrets::Secrets;
    use super::*;

    #[test]
    fn enrolment_token_is_read_back_until_it_expires() {
        let secrets = Secrets::generate().unwrap();
        let node = Some(NodeId { gid: 1, nid: 10 });
        for (terms, prefix) in [
            (Terms::default(), "jse1."),
            (Terms { node, ..Terms::default() }, "jse2."),
            (Terms { node, replace: true, named: vec![] }, "jse2."),
            (Terms { named: vec!["role:a.b".into(), "label:site=ams".into()], ..Terms::default() }, "jse2."),
        ] {
            let enrolment = Enrolment { id: "ab".into(), uses: 3, expires: 1000, fingerprint: "ff".into(), terms };
            assert_eq!(enrolment.check_length(), Ok(()));
            let token = enrolment.sign(&secrets.current);
            assert!(token.starts_with(prefix), "{token}");
            assert_eq!(Enrolment::check(&token, &secrets, 999), Ok(enrolment));
            assert!(Enrolment::check(&token, &secrets, 1000).unwrap_err().contains("expired"));
            assert!(Enrolment::check(&token, &Secrets::generate().unwrap(), 0).unwrap_err().contains("not valid"));
            assert!(Enrolment::check(&token, &secrets.rotated(0).unwrap(), 0).is_ok());
            for i in 0..token.len() {
                let mut bytes = token.clone().into_bytes();
                bytes[i] = if bytes[i] == b'1' { b'2' } else { b'1' };
                assert!(Enrolment::check(std::str::from_utf8(&bytes).unwrap(), &secrets, 0).is_err(), "byte {i}");
            }
        }
        let named = (0..200).map(|i| format!("role:{i:060}")).collect();
        let terms = Terms { named, ..Terms::default() };
        let long = Enrolment { id: "ab".into(), uses: 3, expires: 1000, fingerprint: "ff".into(), terms };
        assert!(long.check_length().unwrap_err().contains("name fewer"));
    }

    #[test]
    fn node_token_is_no_enrolment_token() {
        let secrets = Secrets::generate().unwrap();
        let token = secrets.current.issue(jscommon::NodeId { gid: 1, nid: 1 }, 5);
        assert!(Enrolment::check(&token, &secrets, 0).is_err());
    }
}

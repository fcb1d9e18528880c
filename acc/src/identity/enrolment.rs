//! Enrolment tokens: `jse1.<id>.<uses>.<expires>.<mac>.<fingerprint>`. Pure.
//!
//! `expires` is in milliseconds since 1970; `fingerprint` is the SHA-256 in hex of the CA certificate by
//! which the new node knows the controller; `mac` is the HMAC-SHA-256 of everything before it, under a
//! key made from the node secret, in base64url. How often one was used is counted in Redis.

use super::dates;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jscommon::token::NodeSecret;

/// What an enrolment token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolment {
    /// Its name, for the count.
    pub id: String,
    /// How often it may be used.
    pub uses: u64,
    /// When it ends, in milliseconds since 1970.
    pub expires: u64,
    /// SHA-256 of the CA certificate, in hex.
    pub fingerprint: String,
}

/// Begins every enrolment token.
pub const PREFIX: &str = "jse1.";

impl Enrolment {
    /// The token's text.
    pub fn sign(&self, secret: &NodeSecret) -> String {
        let body = format!("{PREFIX}{}.{}.{}", self.id, self.uses, self.expires);
        let mac = URL_SAFE_NO_PAD.encode(secret.sign(format!("{body}.{}", self.fingerprint).as_bytes()));
        format!("{body}.{mac}.{}", self.fingerprint)
    }

    /// Reads a token and says what is wrong with it; `now` is in milliseconds since 1970.
    pub fn check(token: &str, secrets: &super::Secrets, now: u64) -> Result<Enrolment, String> {
        let bad = || "the enrolment token is not valid here".to_owned();
        if token.len() > 512 {
            return Err(bad());
        }
        let parts: Vec<&str> = token.split('.').collect();
        let ["jse1", id, uses, expires, mac, fingerprint] = parts[..] else { return Err(bad()) };
        let body = format!("{PREFIX}{id}.{uses}.{expires}.{fingerprint}");
        let mac = URL_SAFE_NO_PAD.decode(mac).map_err(|_| bad())?;
        let current = secrets.current.verify(body.as_bytes(), &mac);
        let previous =
            || secrets.previous.as_ref().is_some_and(|(old, until)| now < *until && old.verify(body.as_bytes(), &mac));
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
        Ok(Enrolment { id: id.to_owned(), uses, expires, fingerprint: fingerprint.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Secrets;
    use super::*;

    #[test]
    fn what_it_says_and_until_when() {
        let secrets = Secrets::generate().unwrap();
        let enrolment = Enrolment { id: "ab".into(), uses: 3, expires: 1000, fingerprint: "ff".into() };
        let token = enrolment.sign(&secrets.current);
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

    #[test]
    fn a_node_token_is_none() {
        let secrets = Secrets::generate().unwrap();
        let token = secrets.current.issue(jscommon::NodeId { gid: 1, nid: 1 }, 5);
        assert!(Enrolment::check(&token, &secrets, 0).is_err());
    }
}

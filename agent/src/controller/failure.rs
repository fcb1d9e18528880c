//! Why a request to a controller failed, and what that means for the next one. PURE.

use serde_json::Value;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A clock that differs by more than this is worth a word of its own.
const CLOCK_TOLERANCE_MS: i64 = 60_000;

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The address cannot be reached, or was silent for too long.
    Away(String),
    /// It is there and cannot take this now: later. 409 is another agent with this node's name, 429
    /// too much at once, 5xx a trouble of its own.
    Busy {
        /// Its status.
        status: u16,
        /// How long it asked to be left alone.
        wait: Option<Duration>,
        /// What it said.
        reason: String,
    },
    /// It will not take this, now or later (4xx).
    Refused {
        /// Its status.
        status: u16,
        /// What it said.
        reason: String,
        /// The ids that a list was refused for, when it named them.
        refused: Vec<String>,
    },
    /// The credentials are refused because one of the two clocks is wrong.
    Clock(String),
    /// It answered something that is no answer.
    Unusable(String),
}

impl Failure {
    /// The failure that a connection reports.
    pub(super) fn of(error: &ureq::Error) -> Failure {
        if let Some(tls) = tls_error(error) {
            return of_tls(tls);
        }
        match error {
            ureq::Error::Timeout(phase) => Failure::Away(format!("no answer in time ({phase})")),
            ureq::Error::HostNotFound => Failure::Away("its name cannot be resolved".to_owned()),
            ureq::Error::Io(error) => match error.kind() {
                std::io::ErrorKind::UnexpectedEof => Failure::Away("the connection was closed".to_owned()),
                _ => Failure::Away(error.to_string()),
            },
            other => Failure::Away(other.to_string()),
        }
    }

    /// The failure that an answer other than 200 and 204 is; `theirs` is the controller's clock (ms since 1970).
    pub(super) fn of_answer(status: u16, wait: Option<Duration>, theirs: Option<i64>, body: &[u8]) -> Failure {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as i64);
        of_answer_at(status, wait, body, theirs, now)
    }

    /// Whether another address of the same controller may do better.
    pub fn is_of_the_address(&self) -> bool {
        match self {
            Failure::Away(_) | Failure::Unusable(_) => true,
            Failure::Busy { status, .. } => !matches!(status, 409 | 429),
            Failure::Refused { .. } | Failure::Clock(_) => false,
        }
    }

    /// Whether it speaks of the node and its credentials.
    pub fn is_of_the_node(&self) -> bool {
        matches!(self, Failure::Refused { status: 401 | 403, .. })
    }

    /// Whether the very same request will be refused again, so that its content must change or go.
    pub fn is_final(&self) -> bool {
        // 401 and 403 of a whole request speak of the node, which may be enrolled again; 408 and 404
        // of a proxy in between.
        matches!(self, Failure::Refused { status: 400 | 411 | 413 | 415 | 422 | 431, .. })
    }

    /// How long the controller asked to be left alone.
    pub fn wait(&self) -> Option<Duration> {
        match self {
            Failure::Busy { wait, .. } => *wait,
            _ => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Away(reason) | Failure::Unusable(reason) => f.write_str(reason),
            Failure::Busy { status, reason, .. } => write!(f, "it is busy ({status}): {reason}"),
            Failure::Refused { status, reason, .. } => write!(f, "refused ({status}): {reason}"),
            Failure::Clock(reason) => write!(f, "clock: {reason}"),
        }
    }
}

impl std::error::Error for Failure {}

fn of_answer_at(status: u16, wait: Option<Duration>, body: &[u8], theirs: Option<i64>, now: i64) -> Failure {
    let said: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let reason = said["error"].as_str().map_or_else(|| format!("status {status}"), str::to_owned);
    let behind_ms = said["time"].as_i64().or(theirs).map_or(0, |theirs| theirs.saturating_sub(now));
    if matches!(status, 401 | 403) && behind_ms.abs() > CLOCK_TOLERANCE_MS {
        let (seconds, way) = (behind_ms.abs() / 1000, if behind_ms > 0 { "behind" } else { "ahead of" });
        return Failure::Clock(format!("this node's clock is {seconds} s {way} the controller's; set it ({reason})"));
    }
    match status {
        400..=499 if !matches!(status, 408 | 409 | 429) => {
            let ids = said["refused"].as_array().map(Vec::as_slice).unwrap_or_default();
            let refused = ids.iter().filter_map(Value::as_str).map(str::to_owned).collect();
            Failure::Refused { status, reason, refused }
        }
        408 | 409 | 429 | 500..=599 => Failure::Busy { status, wait, reason },
        _ => Failure::Unusable(format!("status {status}, which no controller sends; is the address right?")),
    }
}

fn tls_error(error: &ureq::Error) -> Option<&rustls::Error> {
    match error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => error.get_ref().and_then(|inner| inner.downcast_ref()),
        _ => None,
    }
}

fn of_tls(error: &rustls::Error) -> Failure {
    use rustls::AlertDescription as Alert;
    use rustls::CertificateError as Bad;
    match error {
        // What HTTP says by 401: the node may be enrolled again, and its files are looked at then.
        rustls::Error::AlertReceived(
            alert @ (Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::BadCertificate
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::CertificateRequired),
        ) => {
            let reason = match alert {
                Alert::CertificateExpired => {
                    "this node's certificate does not hold by the controller's clock: enrol it again".to_owned()
                }
                _ => format!("the controller does not take this node's certificate ({alert:?}): enrol it again"),
            };
            Failure::Refused { status: 401, reason, refused: Vec::new() }
        }
        rustls::Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
            Failure::Clock("the controller's certificate is not valid yet by this node's clock; set the clock".into())
        }
        rustls::Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => Failure::Clock(
            "the controller's certificate has ended by this node's clock; set the clock or renew the certificate"
                .into(),
        ),
        rustls::Error::InvalidCertificate(Bad::UnknownIssuer) => {
            Failure::Away("its certificate is not signed by the CA of this configuration (ca = …)".into())
        }
        rustls::Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            Failure::Away("its certificate is for another name than that of the url; see jsacc --host".into())
        }
        other => Failure::Away(format!("TLS: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_what_it_means() {
        let body = br#"{"error": "no", "refused": ["a", "b"]}"#;
        let failure = of_answer_at(403, None, body, None, 0);
        let want = Failure::Refused { status: 403, reason: "no".into(), refused: vec!["a".into(), "b".into()] };
        assert_eq!(failure, want);
        assert!(!failure.is_of_the_address() && !failure.is_final());
        let busy = of_answer_at(503, Some(Duration::from_secs(2)), b"<html>", None, 0);
        assert_eq!((busy.wait(), busy.is_of_the_address()), (Some(Duration::from_secs(2)), true));
        assert!(!of_answer_at(429, None, b"", None, 0).is_of_the_address());
        assert!(of_answer_at(413, None, b"", None, 0).is_final());
        assert!(matches!(of_answer_at(302, None, b"", None, 0), Failure::Unusable(_)));
    }

    #[test]
    fn a_wrong_clock_is_called_a_clock() {
        let body = br#"{"error": "the token is not valid yet"}"#;
        let failure = of_answer_at(401, None, body, Some(200_000), 0);
        assert_eq!(
            failure.to_string(),
            "clock: this node's clock is 200 s behind the controller's; set it (the token is not valid yet)"
        );
        assert!(matches!(of_answer_at(401, None, body, Some(1000), 0), Failure::Refused { .. }));
    }

    #[test]
    fn certificates_and_clocks() {
        use rustls::CertificateError as Bad;
        let said = |bad| of_tls(&rustls::Error::InvalidCertificate(bad)).to_string();
        assert!(said(Bad::NotValidYet).starts_with("clock: the controller's certificate is not valid yet"));
        assert!(said(Bad::Expired).starts_with("clock: the controller's certificate has ended"));
        assert!(said(Bad::UnknownIssuer).contains("not signed by the CA"));
        assert!(said(Bad::NotValidForName).contains("for another name"));
        for (alert, want) in [
            (rustls::AlertDescription::CertificateExpired, "does not hold by the controller's clock"),
            (rustls::AlertDescription::UnknownCA, "does not take this node's certificate (UnknownCA)"),
        ] {
            let failure = of_tls(&rustls::Error::AlertReceived(alert));
            assert!(failure.is_of_the_node() && failure.to_string().contains(want), "{failure}");
        }
    }
}

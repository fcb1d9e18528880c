//! Why a request to a controller failed, and what that means for the next one. PURE.

use crate::platform::unix_ms;
use serde_json::Value;
use std::fmt;
use std::io::{self, ErrorKind};
use std::time::Duration;

/// A clock that differs by more than this is worth a word of its own.
const CLOCK_TOLERANCE_MS: i64 = 60_000;

/// Why a request failed: the status of the answer, a sentence, and how long to wait (`Retry-After`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The address cannot be reached, or was silent for too long.
    Away(String),
    /// It is there and cannot take this now: later. 409 is another agent with this node's name, 429
    /// too much at once, 5xx a trouble of its own.
    Busy { status: u16, wait: Option<Duration>, reason: String },
    /// It will not take this, now or later (4xx), and says so itself; the ids that a list was refused for.
    Refused { status: u16, reason: String, refused: Vec<String> },
    /// The credentials are refused because one of the two clocks is wrong.
    Clock(String),
    /// Something else than the controller answered: a proxy, a captive portal, another service.
    Foreign { status: u16, wait: Option<Duration>, reason: String },
    /// This node itself is at fault: a file cannot be read or written.
    Local(String),
}

/// The parts of an answer's head that tell who answered, and for how long to wait.
#[derive(Clone, Debug, Default)]
pub(super) struct Head {
    /// The status.
    pub(super) status: u16,
    /// The `Retry-After`.
    pub(super) wait: Option<Duration>,
    /// The controller's clock, in milliseconds since 1970.
    pub(super) time: Option<i64>,
    /// The controller asked for a renewal of the credentials.
    pub(super) renew: bool,
    /// The `Content-Type`.
    pub(super) content_type: String,
    /// The `Server`, which a controller never sends.
    pub(super) server: String,
}

/// The members of a controller's error bodies.
const ERROR_MEMBERS: [&str; 3] = ["error", "time", "refused"];

impl Failure {
    /// The failure that a connection reports.
    pub(super) fn of(error: &ureq::Error) -> Failure {
        if let Some(tls) = tls_error(error) {
            return of_tls(tls);
        }
        Failure::Away(match error {
            ureq::Error::Timeout(phase) => {
                format!("no answer in time ({phase}); check host and port of the url, and firewalls in between")
            }
            ureq::Error::HostNotFound => unresolved("no address"),
            ureq::Error::Io(error) => of_io(error),
            other => other.to_string(),
        })
    }

    /// Says what to do about refused credentials, where the controller does not.
    pub(super) fn with_advice(mut self) -> Failure {
        if let Failure::Refused { status: 401, reason, .. } = &mut self
            && !reason.contains("enrol")
        {
            reason.push_str("; enrol this node, with jsagent enroll or jsacc enroll, and set token_file");
        }
        self
    }

    /// Returns the failure that an answer with another status than 200 and 204 means.
    pub(super) fn of_answer(head: &Head, body: &[u8]) -> Failure {
        let now = unix_ms();
        of_answer_at(head, body, now)
    }

    /// Returns the failure that an answer means which no controller gives; `what` says more about it.
    pub(super) fn foreign(head: &Head, what: &str) -> Failure {
        let mut reason = format!("an answer that is not the controller's: status {}", head.status);
        // These texts come from an untrusted sender.
        for (name, value, most) in
            [("", head.content_type.as_str(), 60), ("server ", &head.server, 60), ("", what, 200)]
        {
            let value: String = value.chars().filter(|c| matches!(c, ' '..='~')).take(most).collect();
            if !value.is_empty() {
                reason.push_str(&format!(", {name}{value}"));
            }
        }
        reason.push_str("; check the url, and proxies in between");
        Failure::Foreign { status: head.status, wait: head.wait, reason }
    }

    /// Whether another address of the same controller may do better.
    pub(crate) fn should_fail_over(&self) -> bool {
        match self {
            Failure::Away(_) => true,
            Failure::Foreign { status, .. } => *status != 429,
            Failure::Busy { status, .. } => !matches!(status, 409 | 429),
            Failure::Refused { .. } | Failure::Clock(_) | Failure::Local(_) => false,
        }
    }

    /// Whether it speaks of the node and its credentials.
    pub(crate) fn is_auth(&self) -> bool {
        matches!(self, Failure::Refused { status: 401 | 403, .. })
    }

    /// Whether the very same request will be refused again, so that its content must change or go.
    pub(crate) fn is_permanent(&self) -> bool {
        // 401 and 403 of a whole request speak of the node, which may be enrolled again.
        matches!(
            self,
            Failure::Refused { status: 400 | 411 | 413 | 415 | 422 | 431, .. } | Failure::Foreign { status: 413, .. }
        )
    }

    /// Whether somebody in between refuses the request, which may be for its content.
    pub(crate) fn is_filtered(&self) -> bool {
        matches!(self, Failure::Foreign { status: 400..=499, .. }) && !matches!(self.status(), 407 | 408 | 429)
    }

    /// Whether the answer says that the request was not carried out. After any other failure it may have been.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Failure::Refused { .. } | Failure::Foreign { status: ..500, .. })
    }

    /// The status of the answer; 0 where there was none.
    pub(crate) fn status(&self) -> u16 {
        match self {
            Failure::Busy { status, .. } | Failure::Refused { status, .. } | Failure::Foreign { status, .. } => *status,
            Failure::Away(_) | Failure::Clock(_) | Failure::Local(_) => 0,
        }
    }

    /// Returns the sender of the answer, for events: `controller` or `proxy`; `nobody` where there was no answer.
    pub(crate) fn by(&self) -> &'static str {
        match self {
            Failure::Busy { .. } | Failure::Refused { .. } | Failure::Clock(_) => "controller",
            Failure::Foreign { .. } => "proxy",
            Failure::Away(_) | Failure::Local(_) => "nobody",
        }
    }

    /// How long the controller asked to be left alone.
    pub(crate) fn wait(&self) -> Option<Duration> {
        match self {
            Failure::Busy { wait, .. } | Failure::Foreign { wait, .. } => *wait,
            _ => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Away(reason) | Failure::Local(reason) | Failure::Foreign { reason, .. } => f.write_str(reason),
            Failure::Busy { status, reason, .. } => write!(f, "it is busy ({status}): {reason}"),
            Failure::Refused { status, reason, .. } => write!(f, "refused ({status}): {reason}"),
            Failure::Clock(reason) => write!(f, "clock: {reason}"),
        }
    }
}

impl std::error::Error for Failure {}

/// Whether this is the body of a controller's error: `{"error": "…", "time": ms}`, or without the time.
fn is_controllers(said: &Value) -> bool {
    let Some(members) = said.as_object().filter(|_| said["error"].is_string()) else { return false };
    said["time"].is_i64() || members.keys().all(|key| ERROR_MEMBERS.contains(&key.as_str()))
}

fn of_answer_at(head: &Head, body: &[u8], now: i64) -> Failure {
    let said: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let (status, wait) = (head.status, head.wait);
    if !is_controllers(&said) || status < 400 {
        return Failure::foreign(head, "");
    }
    let reason = said["error"].as_str().unwrap_or_default().to_owned();
    let behind_ms = said["time"].as_i64().or(head.time).map_or(0, |theirs| theirs.saturating_sub(now));
    if matches!(status, 401 | 403) && behind_ms.abs() > CLOCK_TOLERANCE_MS {
        let (seconds, way) = (behind_ms.abs() / 1000, if behind_ms > 0 { "behind" } else { "ahead of" });
        return Failure::Clock(format!("this node's clock is {seconds} s {way} the controller's; set it ({reason})"));
    }
    match status {
        408 | 409 | 429 | 500.. => Failure::Busy { status, wait, reason },
        _ => {
            let ids = said["refused"].as_array().map(Vec::as_slice).unwrap_or_default();
            let refused = ids.iter().filter_map(Value::as_str).map(str::to_owned).collect();
            Failure::Refused { status, reason, refused }
        }
    }
}

/// The sentence for a name without an address.
pub(crate) fn unresolved(why: &str) -> String {
    format!("its name cannot be resolved ({why}); check the host of the url, and the DNS of this machine")
}

/// The sentence for a connection that failed below HTTP and TLS.
pub(crate) fn of_io(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::UnexpectedEof => "the connection was closed before an answer came; if that lasts, another service \
                                     may listen there: check host and port of the url"
            .to_owned(),
        ErrorKind::ConnectionRefused => {
            format!("{error}: nothing listens there; check host and port of the url, and that jsacc runs")
        }
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
            format!("{error}; check the network of this machine, and the host of the url")
        }
        _ => error.to_string(),
    }
}

fn tls_error(error: &ureq::Error) -> Option<&rustls::Error> {
    match error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => error.get_ref().and_then(|inner| inner.downcast_ref()),
        _ => None,
    }
}

/// The failure that TLS reports.
pub(crate) fn of_tls(error: &rustls::Error) -> Failure {
    use rustls::AlertDescription as Alert;
    use rustls::CertificateError as Bad;
    match error {
        // The same as status 401: the node may be enrolled again, and its files are looked at then.
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
        // CAs of two controllers have one name: then the signature does not hold.
        rustls::Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => Failure::Away(
            "the controller's certificate is not signed by this node's CA (ca); check that the url is this node's \
             controller, and enrol the node again if its CA is new"
                .into(),
        ),
        rustls::Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            Failure::Away("its certificate is for another name than that of the url; see jsacc --host".into())
        }
        rustls::Error::InvalidCertificate(other) => Failure::Away(unfit(other)),
        rustls::Error::InvalidMessage(_) => Failure::Away(
            "it does not speak TLS; check host and port of the url, or write http:// in it if the controller has \
             --insecure-http"
                .into(),
        ),
        other => Failure::Away(format!("TLS: {other}")),
    }
}

/// The sentence for a controller's certificate that is signed as it should be and unfit all the same.
fn unfit(error: &rustls::CertificateError) -> String {
    // The verifier's own errors come packed; only their text tells them apart.
    let error = format!("{error:?}");
    let what = if error.contains("CaUsedAsEndEntity") {
        "is that of a CA, not of a server".to_owned()
    } else if error.contains("UnsupportedCertVersion") {
        "is of an old version of X.509".to_owned()
    } else {
        format!("cannot be used ({error})")
    };
    format!("its certificate {what}: give the controller one that is made for a server (jsacc --tls-cert)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, wait: Option<Duration>, body: &str, time: Option<i64>) -> Failure {
        let head = Head { status, wait, time, ..Head::default() };
        of_answer_at(&head, body.as_bytes(), 0)
    }

    /// The errors that the verifier packs into an error of rustls.
    #[derive(Debug)]
    enum Packed {
        CaUsedAsEndEntity,
        UnsupportedCertVersion,
    }

    impl fmt::Display for Packed {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            fmt::Debug::fmt(self, f)
        }
    }

    impl std::error::Error for Packed {}

    #[test]
    fn an_answer_says_what_it_means() {
        let failure = of(403, None, r#"{"error": "no", "refused": ["a", "b"]}"#, None);
        let want = Failure::Refused { status: 403, reason: "no".into(), refused: vec!["a".into(), "b".into()] };
        assert_eq!(failure, want);
        assert!(!failure.should_fail_over() && !failure.is_permanent() && !failure.is_filtered());
        let busy = of(503, Some(Duration::from_secs(2)), r#"{"error": "Redis is away", "time": 5}"#, None);
        assert_eq!((busy.wait(), busy.should_fail_over()), (Some(Duration::from_secs(2)), true));
        assert!(failure.is_refusal() && !busy.is_refusal());
        assert!(!of(429, None, r#"{"error": "too much"}"#, None).should_fail_over());
        assert!(of(413, None, r#"{"error": "too large", "time": 7, "limit": 9}"#, None).is_permanent());
    }

    #[test]
    fn answer_of_a_proxy_is_foreign() {
        for (status, body) in [
            (200, "<html>"),
            (204, ""),
            (302, ""),
            (302, r#"{"error": "moved"}"#),
            (401, "<html>"),
            (403, ""),
            (403, r#"{"message": "Forbidden"}"#),
            (404, r#"{"timestamp": "2026", "status": 404, "error": "Not Found", "path": "/"}"#),
            (413, "<html>"),
            (429, ""),
            (502, "Bad Gateway"),
            (503, r#"{"error": {"code": 5}}"#),
            (503, "null"),
        ] {
            let failure = of(status, Some(Duration::from_secs(3)), body, None);
            assert!(matches!(failure, Failure::Foreign { .. }), "{status} {body}: {failure:?}");
            assert_eq!((failure.status(), failure.by()), (status, "proxy"));
            assert_eq!(failure.wait(), Some(Duration::from_secs(3)));
            assert!(!failure.is_auth(), "{status} {body}");
            assert_eq!(failure.should_fail_over(), status != 429);
            assert_eq!(failure.is_filtered(), (400..500).contains(&status) && status != 429, "{status}");
            assert_eq!((failure.is_permanent(), failure.is_refusal()), (status == 413, status < 500));
        }
    }

    #[test]
    fn text_of_another_server_is_shown_without_control_characters() {
        let head = Head {
            status: 200,
            content_type: "text/html\u{1b}[2J\u{202e}".into(),
            server: "x".repeat(1000),
            ..Head::default()
        };
        let text = Failure::foreign(&head, "").to_string();
        assert!(
            text.starts_with("an answer that is not the controller's: status 200, text/html[2J, server xxx"),
            "{text}"
        );
        assert!(text.len() < 200);
    }

    #[test]
    fn failure_says_what_to_do() {
        let io = |kind: ErrorKind| Failure::of(&ureq::Error::Io(kind.into())).to_string();
        assert!(io(ErrorKind::ConnectionRefused).ends_with("check host and port of the url, and that jsacc runs"));
        assert!(io(ErrorKind::UnexpectedEof).ends_with("check host and port of the url"));
        assert!(Failure::of(&ureq::Error::HostNotFound).to_string().contains("check the host of the url"));
        let plain = of_tls(&rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)).to_string();
        assert!(plain.contains("does not speak TLS; check host and port of the url, or write http://"), "{plain}");
        for (reason, is_added) in [("the node token is not valid here", true), ("revoked: enrol it again", false)] {
            let refused = |status| Failure::Refused { status, reason: reason.into(), refused: Vec::new() };
            assert_eq!(refused(401).with_advice().to_string().contains("with jsagent enroll"), is_added);
            assert_eq!(refused(403).with_advice(), refused(403));
        }
    }

    #[test]
    fn a_wrong_clock_is_called_a_clock() {
        let body = r#"{"error": "the token is not valid yet"}"#;
        let failure = of(401, None, body, Some(200_000));
        assert_eq!(
            failure.to_string(),
            "clock: this node's clock is 200 s behind the controller's; set it (the token is not valid yet)"
        );
        assert!(matches!(of(401, None, body, Some(1000)), Failure::Refused { .. }));
    }

    #[test]
    fn certificates_and_clocks() {
        use rustls::CertificateError as Bad;
        let said = |bad| of_tls(&rustls::Error::InvalidCertificate(bad)).to_string();
        assert!(said(Bad::NotValidYet).starts_with("clock: the controller's certificate is not valid yet"));
        assert!(said(Bad::Expired).starts_with("clock: the controller's certificate has ended"));
        assert!(said(Bad::UnknownIssuer).contains("not signed by this node's CA"));
        assert!(said(Bad::NotValidForName).contains("for another name"));
        let packed = |error| said(Bad::Other(rustls::OtherError(std::sync::Arc::new(error))));
        assert!(packed(Packed::CaUsedAsEndEntity).contains("is that of a CA, not of a server: give the controller"));
        assert!(packed(Packed::UnsupportedCertVersion).contains("old version of X.509"));
        assert!(said(Bad::BadSignature).contains("not signed by this node's CA"));
        assert!(said(Bad::BadEncoding).contains("cannot be used (BadEncoding)"));
        for (alert, want) in [
            (rustls::AlertDescription::CertificateExpired, "does not hold by the controller's clock"),
            (rustls::AlertDescription::UnknownCA, "does not take this node's certificate (UnknownCA)"),
        ] {
            let failure = of_tls(&rustls::Error::AlertReceived(alert));
            assert!(failure.is_auth() && failure.to_string().contains(want), "{failure}");
        }
    }
}

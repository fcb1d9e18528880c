//! One controller, as the agent sees it: the only file that knows its paths.
//!
//! Owns the connections (kept, with a deadline on every phase), the node's credentials and the turn
//! of the addresses (`failover`). A failure is told as a [`Failure`], and the poller,
//! the uploader and the scripts do with it what suits them.

mod connection;
mod failover;
mod joined_writes;
mod response;
#[cfg(test)]
mod tests;

use self::connection::{Link, Timeouts, with_bearer};
use self::failover::Content;
use self::response::{Answered, read};
use super::credentials::{Credentials, Enrolled};
use super::failure::Failure;
use crate::config;
use anyhow::Context;
use jscommon::NodeId;
use jscommon::blob::PIECE_BYTES;
use jscommon::lock::lock;
use rustls_pki_types::CertificateDer;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::{Duration, Instant};

/// The longest that a poll waits for a command.
pub(crate) const LONGEST_POLL: Duration = Duration::from_secs(30);

/// A batch of commands as it came.
#[derive(Debug, Deserialize)]
pub(crate) struct Taken {
    /// The batch that the next poll acknowledges; a number stands for its digits.
    #[serde(deserialize_with = "word")]
    pub(crate) batch: String,
    /// The commands, not looked at.
    pub(crate) cmds: Vec<Value>,
}

fn word<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    match Value::deserialize(from)? {
        Value::String(word) => Ok(word),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(D::Error::custom(format!("batch must be a string, not {other}"))),
    }
}

/// One controller, shared by its poller, its sender and the scripts.
pub(crate) struct Controller {
    name: String,
    node: NodeId,
    urls: Vec<String>,
    roles: String,
    instance: String,
    config: config::Controller,
    timeouts: Timeouts,
    link: RwLock<Arc<Link>>,
    /// The agent stops: no connections are made anew.
    stopped: AtomicBool,
    /// The controller asked for a renewal of the credentials.
    renew: AtomicBool,
    /// The client certificate is no good, and the renewal is to bring one.
    lacks_certificate: AtomicBool,
    /// The credentials in use are not all in their files yet.
    unfinished: AtomicBool,
    /// The credentials in use came with another enrolment, and the controller is to hear who this node is.
    is_enrolled_again: AtomicBool,
    /// Held by the poller or the uploader while it writes or reads the files of the credentials.
    files: Mutex<()>,
    /// Requests that it has taken.
    taken: AtomicU64,
    /// Those of them that carried something of this node.
    posts_taken: AtomicU64,
    /// The turn of the address that took the last of them.
    good_endpoint: AtomicUsize,
}

impl Controller {
    /// The controller `name` of this configuration; `instance` tells this start of the agent from others.
    ///
    /// Reads the credentials; the error says which file is wrong and how.
    pub(crate) fn open(config: &config::Config, name: &str, instance: &str) -> anyhow::Result<Controller> {
        Controller::open_with(config, name, instance, Timeouts::default())
    }

    fn open_with(
        config: &config::Config,
        name: &str,
        instance: &str,
        timeouts: Timeouts,
    ) -> anyhow::Result<Controller> {
        let settings = config.controllers.get(name).with_context(|| format!("there is no controller {name}"))?;
        let finished = Credentials::finish(settings);
        let credentials = Credentials::load(settings).with_context(|| format!("controller {name}"))?;
        credentials.finish_renewal(settings);
        let lacks_certificate = credentials.fault.is_some();
        Ok(Controller {
            name: name.to_owned(),
            node: config.main.node(),
            urls: settings.urls.clone(),
            roles: config.main.roles.iter().map(|role| format!("&role={}", encode(role))).collect(),
            instance: encode(instance),
            config: settings.clone(),
            timeouts,
            link: RwLock::new(Arc::new(Link::new(credentials, timeouts, &settings.urls, 0))),
            stopped: AtomicBool::new(false),
            renew: AtomicBool::new(lacks_certificate),
            lacks_certificate: AtomicBool::new(lacks_certificate),
            unfinished: AtomicBool::new(!finished),
            is_enrolled_again: AtomicBool::new(false),
            files: Mutex::new(()),
            taken: AtomicU64::new(0),
            posts_taken: AtomicU64::new(0),
            good_endpoint: AtomicUsize::new(usize::MAX),
        })
    }

    /// The node that this agent is.
    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    /// Its name in the configuration.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// How many addresses it has.
    pub(crate) fn addresses(&self) -> usize {
        self.urls.len()
    }

    /// The address whose turn it is.
    pub(crate) fn url(&self) -> &str {
        self.url_of(self.link().endpoint)
    }

    fn url_of(&self, endpoint: usize) -> &str {
        &self.urls[endpoint % self.urls.len()]
    }

    /// Counts the requests that it has taken: a change says that it is back.
    pub(crate) fn requests_taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Counts the posts that it has taken. A poll is answered without Redis, and says nothing about them.
    pub(crate) fn posts_taken(&self) -> u64 {
        self.posts_taken.load(Ordering::Relaxed)
    }

    /// Asks for commands: waits up to `wait` ([`LONGEST_POLL`] at most), acknowledges the batch `ack`.
    /// Nothing: no command came.
    pub(crate) fn poll(&self, wait: Duration, ack: Option<&str>) -> Result<Option<Taken>, Failure> {
        let ack = ack.map(|batch| format!("&ack={}", encode(batch))).unwrap_or_default();
        let query = format!("cmd?wait={}{}{ack}&instance={}", wait.as_secs(), self.roles, self.instance);
        let (link, begun) = (self.link(), Instant::now());
        let call = |url: &str| with_bearer(link.polls.get(self.path(url, &query)), link.bearer()).call();
        self.at_turn(&link, Content::Fixed, call, |answer| match answer.head.status {
            // A controller waits, unless it says why not; a captive portal answers at once.
            204 if answer.is_marked() || begun.elapsed() >= wait / 2 => Ok(None),
            204 => Err(Failure::foreign(&answer.head, "without the wait that was asked for")),
            _ => answer.json().map(Some),
        })
    }

    /// Posts `body` to `what` (`result`, `log`, `stats`, `event`); done means that Redis has it.
    pub(crate) fn post(&self, what: &str, body: &[u8]) -> Result<(), Failure> {
        jscommon::hops::mark("agent.posting");
        self.post_batch(what, body).map(drop)
    }

    /// Posts a numbered batch to `what` (`log`, `stats`). Where the controller dropped it as one that it
    /// has already, it may say the last number that it has.
    pub(crate) fn post_batch(&self, what: &str, body: &[u8]) -> Result<Option<u64>, Failure> {
        let last = self.send(what, body, Answered::receipt)?;
        self.posts_taken.fetch_add(1, Ordering::Relaxed);
        Ok(last)
    }

    /// The source of the script with this SHA-256 (lower-case hex), or nothing when the controller has none.
    pub(crate) fn script(&self, hash: &str) -> Result<Option<Vec<u8>>, Failure> {
        let query = format!("script?hash={}", encode(hash));
        self.bytes(&query, &|answer| jscommon::token::sha256_hex(&answer.body) == hash)
    }

    /// A piece of the file with this SHA-256 (lower-case hex), or nothing when the controller has none.
    pub(crate) fn blob(&self, hash: &str, piece: u32) -> Result<Option<Vec<u8>>, Failure> {
        let query = format!("blob?hash={}&piece={piece}", encode(hash));
        self.bytes(&query, &|answer| {
            answer.head.content_type == "application/octet-stream" && answer.body.len() <= PIECE_BYTES
        })
    }

    /// Asks for bytes that the controller may not have; `is_right` says whether an answer can be the controller's.
    fn bytes(&self, query: &str, is_right: &dyn Fn(&Answered) -> bool) -> Result<Option<Vec<u8>>, Failure> {
        let link = self.link();
        let call = |url: &str| with_bearer(link.posts.get(self.path(url, query)), link.bearer()).call();
        let answer = self.at_turn(&link, Content::Fixed, call, |answer| match answer.head.status {
            200 if is_right(&answer) => Ok(answer.body),
            _ => Err(Failure::foreign(&answer.head, "with other bytes than those that were asked for")),
        });
        match answer {
            Ok(source) => Ok(Some(source)),
            Err(Failure::Refused { status: 404, .. }) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Whether the controller asked for a renewal of the credentials that was not done yet.
    pub(crate) fn wants_renewal(&self) -> bool {
        self.renew.load(Ordering::Relaxed)
    }

    /// Reads the credentials anew; whether they are others than those in use, and are in use now.
    ///
    /// A node that was enrolled again gets going so without a restart.
    pub(crate) fn reload(&self) -> bool {
        let files = lock(&self.files);
        self.finish(&files);
        let Ok(credentials) = Credentials::load(&self.config) else { return false };
        if credentials.digest == self.link().digest {
            return false;
        }
        self.use_now(credentials);
        self.is_enrolled_again.store(true, Ordering::Relaxed);
        true
    }

    /// Whether credentials of another enrolment were found since this was asked last.
    pub(crate) fn take_enrolled_again(&self) -> bool {
        self.is_enrolled_again.swap(false, Ordering::Relaxed)
    }

    /// Whether the credentials in use are not all in their files yet: one is open in another program.
    pub(crate) fn is_unfinished(&self) -> bool {
        self.unfinished.load(Ordering::Relaxed)
    }

    /// Puts the credentials in use into their files as far as they are not there.
    pub(crate) fn finish_files(&self) {
        self.finish(&lock(&self.files));
    }

    fn finish(&self, _files: &MutexGuard<()>) {
        self.unfinished.store(!Credentials::finish(&self.config), Ordering::Relaxed);
    }

    fn use_now(&self, credentials: Credentials) {
        credentials.finish_renewal(&self.config);
        self.lacks_certificate.store(credentials.fault.is_some(), Ordering::Relaxed);
        let mut current = self.link.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        *current = Arc::new(Link::new(credentials, self.timeouts, &self.urls, current.endpoint));
    }

    /// Asks for new credentials and takes them into use and into their files; `false` when the controller
    /// finds that the present ones are good.
    pub(crate) fn renew(&self) -> Result<bool, Failure> {
        // A controller of 0.1.0 gives no certificate while the token is good, which is enough then.
        let lacks_certificate = self.lacks_certificate.load(Ordering::Relaxed);
        let body: &[u8] = if lacks_certificate { br#"{"certificate":true}"# } else { b"{}" };
        let issued = self.send("renew", body, |answer| match answer.head.status {
            204 => Ok(None),
            _ => {
                let issued: Enrolled = answer.json()?;
                issued.check().map_err(|error| Failure::foreign(&answer.head, &format!("{error:#}")))?;
                Ok(Some(issued))
            }
        })?;
        let Some(issued) = issued else {
            self.renew.store(false, Ordering::Relaxed);
            return Ok(false);
        };
        let local = |error: anyhow::Error| Failure::Local(format!("the new credentials: {error:#}"));
        let _files = lock(&self.files);
        let finished = issued.store(&self.config).map_err(local)?;
        self.unfinished.store(!finished, Ordering::Relaxed);
        let credentials = Credentials::load(&self.config).map_err(local)?;
        self.use_now(credentials);
        self.renew.store(false, Ordering::Relaxed);
        Ok(true)
    }

    /// Ends the poll that is under way, and every later one fails.
    pub(crate) fn stop_polls(&self) {
        self.link().polls.clone().shutdown();
    }

    /// Ends the request of the uploader that is under way, and every later one fails.
    pub(crate) fn stop_posts(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.link().posts.clone().shutdown();
    }

    /// Posts `body`; `accept` says whether an answer of 200 or 204 is the controller's, and what it says.
    fn send<T>(
        &self,
        what: &str,
        body: &[u8],
        accept: impl FnOnce(Answered) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let link = self.link();
        let call = |url: &str| {
            let request = with_bearer(link.posts.post(self.path(url, what)), link.bearer());
            request.content_type("application/json").send(body)
        };
        self.at_turn(&link, Content::Varies, call, accept)
    }

    /// Posts frames of live output. An answer of 409 with `have` is one as any other.
    pub(super) fn post_frames<T: for<'de> Deserialize<'de>>(&self, query: &str, frames: &[u8]) -> Result<T, Failure> {
        let link = self.link();
        let call = |url: &str| {
            let request = with_bearer(link.posts.post(self.path(url, query)), link.bearer());
            request.content_type("application/octet-stream").send(frames)
        };
        self.at_turn(&link, Content::Varies, call, |answer| answer.json())
    }

    fn path(&self, url: &str, rest: &str) -> String {
        format!("{url}/{}/{}/{rest}", self.node.gid, self.node.nid)
    }

    fn link(&self) -> Arc<Link> {
        self.link.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

/// Exchanges an enrolment token for the credentials of a node.
pub(crate) fn enroll(
    url: &str,
    token: &str,
    gid: u32,
    nid: u32,
    name: &str,
    trusted: &[CertificateDer],
) -> Result<Enrolled, Failure> {
    let link = Link::new(Credentials::of_enrolment(token, trusted), Timeouts::default(), &[url.to_owned()], 0);
    let request = with_bearer(link.posts.post(format!("{url}/enroll")), link.bearer());
    let body = json!({"gid": gid, "nid": nid, "request": name}).to_string();
    let answer = request.content_type("application/json").send(body).map_err(|error| Failure::of(&error));
    answer.and_then(read).and_then(|answer| answer.json()).map_err(|failure| match failure {
        // Here it is final: the node has credentials.
        Failure::Busy { status: status @ 409, reason, .. } => Failure::Refused { status, reason, refused: Vec::new() },
        failure => failure,
    })
}

/// A text as it may stand in a query (RFC 3986, 2.3).
pub(super) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

//! The life of a client's connection: for each phase the meaning of a deadline, an end, an error, a stop.
//!
//! Owns: the moves between phases. Does not own: polls, accounts and timers; the event loop does each [`Action`] that is
//! returned here (`actions`).
//!
//! ```text
//! Handshake ─▶ Idle ─▶ Head ─▶ Body ─▶ Asking ◀──▶ Parked
//!               ▲        │       │        │           │
//!               │        └───────┴──────▶ Responding ◀─┘ ──▶ Linger ─▶ (closed)
//!               └─────────────────────────────┘
//! ```

use super::budget::Limits;
use super::client::{Client, Phase};
use super::request_head::RequestHead;
use super::request_parser::Stage;
use super::response::Response;
use crate::auth::authenticate::PresentedCredentials;
use crate::http::Refusal;
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

/// The next step for a connection, which the event loop does.
pub(super) enum Action {
    /// Waits for events.
    Nothing,
    /// Sets the deadline of its phase.
    WaitUntil(Instant),
    /// Goes on to read, for so long at most.
    ReadWithin(Duration),
    /// Writes what waits to be written.
    Write,
    /// Hands its request, with this body, to its handler.
    Ask(Vec<u8>),
    /// Parks its poll, for so many seconds in all.
    Park(u32),
    /// Ends its parked poll with 204.
    Unpark,
    /// Begins to write a response.
    Respond(Response),
    /// Begins to write a response after a pause, in which nothing of this client is read.
    RespondLater(Response),
    /// Refuses the client, of which nothing more is looked at. One that sends too much is told so after a pause.
    Refuse(Refusal),
    /// Refuses a request that is with its handler.
    Fail(Refusal),
    /// Closes, and counts a refusal by its label.
    Close(Option<&'static str>),
    /// As `Close`, once the client was told.
    CloseGracefully(Option<&'static str>),
}

impl Client {
    /// The handshake is over.
    pub(super) fn handshake_completed(&mut self, limits: &Limits) -> Action {
        self.cert = self.transport.peer_cert();
        self.cert_ends = self.cert.and_then(|_| self.transport.cert_ends());
        self.phase = Phase::Idle;
        Action::WaitUntil(Instant::now() + limits.head)
    }

    /// The client speaks plain HTTP to the TLS port.
    pub(super) fn speaks_plain_http(&mut self) -> Action {
        self.transport.drop_tls();
        Action::Refuse(Refusal::new(400, "plain-http", "this port speaks HTTPS: write https:// in the address"))
    }

    /// Some of a request has come, and it is not whole yet.
    pub(super) fn await_more(&mut self, limits: &Limits) -> Action {
        let now = Instant::now();
        match (self.conn.stage(), self.phase) {
            (Stage::Head, Phase::Idle) => {
                self.phase = Phase::Head;
                // The first head of an unauthenticated client has its deadline from the handshake on.
                if self.authenticated { Action::WaitUntil(now + limits.head) } else { Action::Nothing }
            }
            (Stage::Body, Phase::Body) => Action::WaitUntil(self.hard_deadline.min(now + limits.body_pause)),
            _ => Action::Nothing,
        }
    }

    /// The response is out.
    pub(super) fn response_sent(&mut self, limits: &Limits) -> Action {
        if self.conn.finish() {
            self.phase = Phase::Idle;
            return Action::ReadWithin(if self.authenticated { limits.idle } else { limits.head });
        }
        if self.refused || self.conn.has_excess() {
            // Closing a socket that holds unread bytes resets it, and the client would never read why.
            self.phase = Phase::Linger;
            self.transport.finish();
            self.readable = true;
            return Action::ReadWithin(limits.linger);
        }
        Action::CloseGracefully(None)
    }

    /// The client sends no more.
    pub(super) fn input_ended(&mut self) -> Action {
        self.readable = false;
        match self.phase {
            Phase::Handshake | Phase::Head | Phase::Body => Action::Close(self.cut()),
            Phase::Idle | Phase::Linger => Action::CloseGracefully(None),
            // It may have closed its half alone and still read.
            Phase::Asking | Phase::Pausing | Phase::Responding | Phase::Parked => {
                self.conn.close_after();
                if self.phase == Phase::Parked { Action::Unpark } else { Action::Nothing }
            }
        }
    }

    /// The connection failed.
    pub(super) fn failed(&self, error: &io::Error) -> Action {
        log::debug!("{}: {error}", self.peer);
        Action::Close(if error.kind() == ErrorKind::InvalidData { Some("tls") } else { self.cut() })
    }

    /// The label of a connection that is cut now; nothing where that is no refusal, for nodes come and go.
    fn cut(&self) -> Option<&'static str> {
        match self.phase {
            Phase::Handshake => Some("handshake-cut"),
            Phase::Head => Some("head-cut"),
            Phase::Body => Some("body-cut"),
            Phase::Asking | Phase::Pausing | Phase::Responding => Some("answer-cut"),
            Phase::Idle | Phase::Parked | Phase::Linger => None,
        }
    }

    /// The deadline of the phase has passed.
    pub(super) fn expired(&mut self) -> Action {
        match self.phase {
            Phase::Handshake => Action::Close(Some("handshake-timeout")),
            Phase::Idle => Action::CloseGracefully((!self.authenticated).then_some("silent")),
            Phase::Head => Action::Refuse(Refusal::new(408, "head-timeout", "the head took too long")),
            Phase::Body => Action::Refuse(Refusal::new(408, "body-timeout", "the body took too long")),
            Phase::Asking => {
                Action::Fail(Refusal::new(503, "handler-timeout", "the controller took too long; try again"))
            }
            Phase::Parked => Action::Unpark,
            Phase::Pausing => self.delayed(),
            Phase::Responding => Action::Close(Some("answer-timeout")),
            Phase::Linger => Action::Close(None),
        }
    }

    /// The proxy stops: requests under way end.
    pub(super) fn stopped(&mut self) -> Action {
        match self.phase {
            Phase::Handshake | Phase::Idle | Phase::Linger => Action::CloseGracefully(None),
            Phase::Parked => Action::Unpark,
            Phase::Pausing => self.delayed(),
            Phase::Head | Phase::Body | Phase::Asking | Phase::Responding => Action::Nothing,
        }
    }

    fn delayed(&mut self) -> Action {
        self.delayed_response.take().map_or(Action::Nothing, |response| Action::Respond(*response))
    }

    /// Returns the part of a request that authentication needs.
    pub(super) fn presented<'a>(&'a self, head: &'a RequestHead) -> PresentedCredentials<'a> {
        PresentedCredentials {
            route: head.route,
            bearer: head.bearer.as_deref(),
            peer: self.peer.ip(),
            cert: self.cert.as_ref(),
        }
    }
}

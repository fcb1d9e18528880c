//! Requests with frames of live output: `POST /{gid}/{nid}/stream`.

use super::client::{Controller, encode};
use super::failure::Failure;
use crate::stream::{Post, Posted, Reply};
use serde::Deserialize;

#[derive(Deserialize)]
struct Body {
    have: u64,
    watch: u64,
    room: u64,
}

impl Post for Controller {
    fn post(&self, id: &str, offset: u64, ticket: &str, frames: &[u8]) -> Posted {
        let mut query = format!("stream?id={}&offset={offset}", encode(id));
        if !ticket.is_empty() {
            query.push_str(&format!("&ticket={}", encode(ticket)));
        }
        match self.post_frames::<Body>(&query, frames) {
            Ok(Body { have, watch, room }) => Posted::Answered(Reply { have, watch, room }),
            // The credentials of the node come back by themselves, or by another enrolment.
            Err(Failure::Refused { status: 401, reason, .. }) => Posted::Failed(reason, None),
            Err(Failure::Refused { status: 404 | 405, .. }) => Posted::Unknown,
            Err(failure @ Failure::Refused { .. }) => Posted::Refused(failure.to_string()),
            Err(failure) => Posted::Failed(failure.to_string(), failure.wait()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::uplink::test_controller::TestController;

    #[test]
    fn each_status_has_its_outcome() {
        for (status, body, want) in [
            (200, r#"{"have": 5, "watch": 20, "room": 7}"#, "Answered(Reply { have: 5, watch: 20, room: 7 })"),
            (409, r#"{"have": 1, "watch": 20, "room": 7}"#, "Answered(Reply { have: 1, watch: 20, room: 7 })"),
            (409, r#"{"error": "another agent"}"#, "Failed("),
            (403, r#"{"error": "no"}"#, "Refused("),
            (410, r#"{"error": "no watch"}"#, "Refused("),
            (404, r#"{"error": "no such path"}"#, "Unknown"),
            (405, r#"{"error": "no"}"#, "Unknown"),
            (401, r#"{"error": "no"}"#, "Failed("),
            (503, r#"{"error": "redis is away"}"#, "Failed("),
            (404, "<html>", "Failed("),
            (200, "{}", "Failed("),
            (0, "", "Failed("),
        ] {
            let fake = TestController::start(move |asked| {
                assert_eq!(asked.line, "POST /1/10/stream?id=a%3Ab&offset=3&ticket=r.x%2F");
                assert!(asked.head.contains("application/octet-stream"));
                (status, String::new(), body.to_owned())
            });
            let mut config = Config::default();
            (config.main.gid, config.main.nid) = (1, 10);
            let settings = crate::config::Controller { urls: vec![fake.url.clone()], ..Default::default() };
            config.controllers.insert("main".into(), settings);
            let controller = Controller::open(&config, "main", "i").unwrap();
            let posted = Post::post(&controller, "a:b", 3, "r.x/", b"");
            assert!(format!("{posted:?}").starts_with(want), "{status} {body}: {posted:?}");
        }
    }
}

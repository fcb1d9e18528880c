//! Responses of controllers: read whole, and told from those of others.

use crate::uplink::failure::{Failure, Head};
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;
use ureq::http;

/// An answer of 200 or 204; whether it is the controller's is not looked at yet.
pub(super) struct Answered {
    pub(super) head: Head,
    pub(super) body: Vec<u8>,
}

impl Answered {
    /// Whether a header says that it comes from a controller.
    pub(super) fn is_marked(&self) -> bool {
        self.head.renew || self.head.time.is_some()
    }

    /// Reads the answer to something posted: an object that is empty or has `last`. A controller may say
    /// more where it adds `X-JS-Time`.
    pub(super) fn receipt(self) -> Result<Option<u64>, Failure> {
        let said: Value = serde_json::from_slice(&self.body).unwrap_or(Value::Null);
        let known = |said: &serde_json::Map<String, Value>| said.keys().all(|key| key == "last");
        match said.as_object() {
            Some(said) if self.head.status == 200 && (self.is_marked() || known(said)) => {
                Ok(said.get("last").and_then(Value::as_u64))
            }
            _ => Err(Failure::foreign(&self.head, "")),
        }
    }

    /// Reads a body of JSON that has what `T` needs.
    pub(super) fn json<T: for<'de> Deserialize<'de>>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| {
            let why = format!("which is not what was asked for: {error}");
            Failure::foreign(&self.head, &why)
        })
    }
}

/// Reads an answer of 200 or 204; any other status is a failure.
pub(super) fn read(mut response: http::Response<ureq::Body>) -> Result<Answered, Failure> {
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let retry_after = header("retry-after").and_then(|seconds| seconds.trim().parse::<u64>().ok());
    let head = Head {
        status: response.status().as_u16(),
        // Whatever stands in between may have said it: no word of theirs silences a node for long.
        wait: retry_after.map(|seconds| Duration::from_secs(seconds).min(MAX_WAIT)),
        time: header("x-js-time").and_then(|ms| ms.trim().parse().ok()),
        renew: response.headers().contains_key("x-js-renew"),
        content_type: header("content-type").unwrap_or_default(),
        server: header("server").unwrap_or_default(),
    };
    let body = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
    let body = body.map_err(|error| Failure::of(&error))?;
    match head.status {
        200 | 204 => Ok(Answered { head, body }),
        // A wrong offset of live output, and the right one.
        409 if serde_json::from_slice::<Value>(&body).is_ok_and(|said| said["have"].is_u64()) => {
            Ok(Answered { head, body })
        }
        _ => Err(Failure::of_answer(&head, &body)),
    }
}

/// The longest answer that is read: a batch of commands.
pub(super) const MAX_ANSWER: u64 = 64 << 20;

/// The longest time that a controller is left alone because it asked for that.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(300);

//! Bodies of requests, and what messages call them.

use crate::storage::job_store::Unsent;
use crate::storage::upload_queue::{Batch, Kind};
use crate::uplink::failure::Failure;

/// The content of one request.
pub(super) enum Load {
    Results(Vec<Unsent>),
    Batch(Kind, Batch),
}

impl Load {
    /// How large its request is.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Load::Results(results) => results.iter().map(|result| result.json.len()).sum(),
            Load::Batch(_, batch) => batch.body.len(),
        }
    }
}

/// The event about something that is not taken.
pub(super) const REFUSAL: &str = "delivery_refused";

/// Names one entry, for operators.
pub(super) fn describe(load: &Load) -> String {
    match load {
        Load::Results(results) => {
            format!("the result of {} ({} bytes)", id_of(&results[0].json), results[0].json.len())
        }
        Load::Batch(kind, batch) => {
            let body: serde_json::Value = serde_json::from_slice(&batch.body).unwrap_or_default();
            let text = |value: &serde_json::Value| value.as_str().unwrap_or("?").chars().take(200).collect::<String>();
            let what = match kind {
                Kind::Log => format!("a record of job {}", text(&body["records"][0]["jobid"])),
                Kind::Stats => format!("the series {}", text(&body["series"][0][0])),
                Kind::Event => format!("the event {}", text(&body["name"])),
            };
            format!("{what} ({} bytes)", batch.body.len())
        }
    }
}

/// Returns the owner of the limit that caused the failure.
pub(super) fn whose(failure: &Failure) -> &'static str {
    if failure.by() == "proxy" { "a proxy before the controller" } else { "the controller" }
}

pub(super) fn id_of(result: &str) -> String {
    let result: serde_json::Value = serde_json::from_str(result).unwrap_or_default();
    result["id"].as_str().unwrap_or("?").to_owned()
}

/// Longest `tags` and `critical`, in bytes, that stay in a result which is cut short.
pub(super) const MAX_KEPT: usize = 4096;

/// The body of a request with a result that is too large, less what makes it large.
pub(super) fn shortened(result: &str) -> Option<Vec<u8>> {
    let mut value: serde_json::Value = serde_json::from_str(result).ok()?;
    let fields = value.as_object_mut()?;
    let period = fields.get("args").and_then(|args| args.get("recurring_period")).cloned();
    let was = fields.get("state").and_then(|state| state.as_str()).unwrap_or("?");
    let why = format!("the job ended {was}, and its result of {} bytes is too large for the controller", result.len());
    fields.retain(|name, value| match name.as_str() {
        "id" | "gid" | "nid" | "cmd" | "state" | "code" | "time" | "starttime" | "bytes" | "ticket" => true,
        "tags" | "critical" => value.as_str().is_some_and(|text| text.len() <= MAX_KEPT),
        _ => false,
    });
    // A failure stays what it was; a success without its data is none.
    if fields.get("state").is_some_and(|state| state == "OK") {
        fields.insert("state".into(), "ERROR".into());
    }
    fields.insert("data".into(), why.into());
    fields.insert("truncated".into(), true.into());
    fields.insert("level".into(), 0.into());
    fields.insert("streams".into(), serde_json::json!(["", ""]));
    for name in ["tags", "critical"] {
        fields.entry(name).or_insert_with(|| "".into());
    }
    // Without it the controller would take the run of a recurring job for its last.
    if let Some(period) = period {
        fields.insert("args".into(), serde_json::json!({"recurring_period": period}));
    }
    serde_json::to_vec(&[value]).ok()
}

/// The body of a request with results.
pub(super) fn list(results: &[Unsent]) -> Vec<u8> {
    let mut body = Vec::with_capacity(results.iter().map(|result| result.json.len() + 1).sum::<usize>() + 2);
    body.push(b'[');
    for (i, result) in results.iter().enumerate() {
        if i > 0 {
            body.push(b',');
        }
        body.extend_from_slice(result.json.as_bytes());
    }
    body.push(b']');
    body
}

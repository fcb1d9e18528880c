//! From the end of a run to the result that travels.
//!
//! **Owns** how an [`Outcome`] and what was captured become a [`JobResult`]. Pure: time is handed in.

use super::types::{Cause, Conclusion, Outcome};
use crate::commands::Answer;
use crate::output::Captured;
use jscommon::command::TICKET;
use jscommon::{Command, JobResult, NodeId, State};

/// The status of a process whose end nobody saw.
const LOST: i32 = 255;

/// The facts about a run that has ended.
pub(super) struct Ended {
    pub(super) conclusion: Conclusion,
    /// The captured output; empty when nothing ran.
    pub(super) captured: Captured,
    /// A task's answer.
    pub(super) answer: Option<Answer>,
    /// When it began, in milliseconds since 1970.
    pub(super) started: i64,
    /// How long it ran, in milliseconds.
    pub(super) time: u64,
}

/// The result of `command` on `node`.
pub(super) fn result(command: &Command, node: NodeId, ended: Ended) -> JobResult {
    let captured = ended.captured;
    let Conclusion { outcome, suppress_if_ok, alert } = ended.conclusion;
    let (state, code, sentence) = match outcome {
        Outcome::Exited { code: 0 } => (State::Ok, 0, None),
        Outcome::Exited { code } => (State::Error, code, None),
        Outcome::TimedOut { code } => (State::Timeout, code, Some(Cause::Timeout.sentence())),
        Outcome::Killed { code, why } => (State::Killed, code.unwrap_or(0), Some(why)),
        Outcome::Unstartable { code, why } => (State::Error, code, Some(why)),
        Outcome::Died { .. } => (State::Error, LOST, Some("the agent died while the job ran".into())),
        Outcome::Answered => match &ended.answer {
            Some(Err(why)) => (State::Error, 0, Some(why.clone())),
            Some(Ok(_)) => (State::Ok, 0, None),
            None => (State::Error, 0, Some("the command gave no answer".into())),
        },
    };
    // The process' own result goes first, except where the sentence is the news.
    let must_say = sentence.as_deref() == Some(Cause::Stop.sentence().as_str());
    let (level, data) = match (ended.answer, sentence) {
        (Some(Ok(value)), None) => (jscommon::level::RESULT_JSON, value.to_string()),
        (_, Some(sentence)) if captured.level == 0 || must_say => (0, sentence),
        _ => (captured.level, captured.data),
    };
    JobResult {
        gid: node.gid,
        nid: node.nid,
        args: jscommon::command::shown_args(&command.args),
        level,
        data,
        state: if alert.is_some() { State::Error } else { state },
        code,
        time: ended.time,
        starttime: ended.started,
        streams: captured.streams,
        bytes: captured.bytes,
        truncated: captured.truncated,
        critical: alert.unwrap_or(captured.critical),
        quiet: suppress_if_ok && state == State::Ok && captured.results == 0,
        ..JobResult::unrun(command, state, "")
    }
}

/// Adds `ticket`, where there is one, as the last field to `result`: the JSON of a result without a ticket.
pub(super) fn add_ticket(result: &mut String, ticket: &str) {
    if !ticket.is_empty() && result.pop() == Some('}') {
        *result += &format!(",\"{TICKET}\":{}}}", serde_json::Value::from(ticket));
    }
}

/// Whether the result of a run that the job store has as started, of a job that does not start again, may
/// travel before a power cut can no longer undo it (`docs/explanation/delivery.md`). After the cut the run is
/// answered as [`Outcome::Died`], and a client that has this result keeps it. Where somebody ended the run,
/// he was told so or will be, and that must stay true.
pub(super) fn may_be_late(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Exited { .. } | Outcome::TimedOut { .. } | Outcome::Answered | Outcome::Unstartable { .. } => true,
        Outcome::Killed { .. } | Outcome::Died { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ticket_is_the_last_field_of_what_travels() {
        for (ticket, want) in [("r60.\"x", json!({"id": "a", "ticket": "r60.\"x"})), ("", json!({"id": "a"}))] {
            let mut result = r#"{"id":"a"}"#.to_owned();
            add_ticket(&mut result, ticket);
            assert_eq!(result, want.to_string());
        }
    }

    fn ended(outcome: Outcome) -> Ended {
        Ended { conclusion: outcome.into(), captured: Captured::default(), answer: None, started: 5, time: 7 }
    }

    fn make(ended: Ended) -> JobResult {
        let command = json!({"id": "a", "gid": 0, "nid": 0, "roles": ["*"], "cmd": "execute", "tags": "t",
            "args": {"secret": true, "env": {"PASSWORD": "x"}}});
        result(&Command::from_value(command).unwrap(), NodeId { gid: 1, nid: 2 }, ended)
    }

    #[test]
    fn every_outcome_has_its_state() {
        let killed = |code| Outcome::Killed { code, why: "killed on request".into() };
        for (outcome, state, code, data) in [
            (Outcome::Exited { code: 0 }, State::Ok, 0, ""),
            (Outcome::Exited { code: 3 }, State::Error, 3, ""),
            (Outcome::TimedOut { code: 143 }, State::Timeout, 143, "its time was up"),
            (killed(Some(137)), State::Killed, 137, "killed on request"),
            (killed(None), State::Killed, 0, "killed on request"),
            (Outcome::Unstartable { code: 127, why: "no".into() }, State::Error, 127, "no"),
            (Outcome::Died { at: 1 }, State::Error, 255, "the agent died while the job ran"),
        ] {
            let result = make(ended(outcome));
            assert_eq!((result.state, result.code, result.data.as_str(), result.level), (state, code, data, 0));
            assert_eq!((result.gid, result.nid, result.starttime, result.time), (1, 2, 5, 7));
        }
    }

    #[test]
    fn killed_or_lost_run_may_not_be_late() {
        for (outcome, late) in [
            (Outcome::Exited { code: 0 }, true),
            (Outcome::Exited { code: 3 }, true),
            (Outcome::TimedOut { code: 143 }, true),
            (Outcome::Unstartable { code: 127, why: "no".into() }, true),
            (Outcome::Answered, true),
            (Outcome::Killed { code: Some(137), why: "killed on request".into() }, false),
            (Outcome::Killed { code: None, why: Cause::Stop.sentence() }, false),
            (Outcome::Died { at: 1 }, false),
        ] {
            assert_eq!(may_be_late(&outcome), late, "{outcome:?}");
        }
    }

    #[test]
    fn answers_are_json_or_a_sentence() {
        let good = make(Ended { answer: Some(Ok(json!("pong"))), ..ended(Outcome::Answered) });
        assert_eq!((good.state, good.level, good.data.as_str()), (State::Ok, 20, "\"pong\""));
        let bad = make(Ended { answer: Some(Err("no".into())), ..ended(Outcome::Answered) });
        assert_eq!((bad.state, bad.level, bad.data.as_str()), (State::Error, 0, "no"));
    }

    #[test]
    fn result_of_the_process_stands_except_at_a_stop() {
        let said = || Captured { level: 20, data: "1".into(), results: 1, critical: "c".into(), ..Captured::default() };
        let result = make(Ended { captured: said(), ..ended(Outcome::TimedOut { code: 143 }) });
        assert_eq!((result.level, result.data.as_str(), result.critical.as_str()), (20, "1", "c"));
        let why = Cause::Stop.sentence();
        let result = make(Ended { captured: said(), ..ended(Outcome::Killed { code: None, why: why.clone() }) });
        assert_eq!((result.level, result.data), (0, why));
    }

    #[test]
    fn byte_counts_and_truncation_are_told() {
        let captured = Captured { bytes: [1_290_000, 3], truncated: true, ..Captured::default() };
        let result = make(Ended { captured, ..ended(Outcome::Exited { code: 0 }) });
        assert_eq!((result.bytes, result.truncated), ([1_290_000, 3], true));
        let result = make(Ended { answer: Some(Ok(json!("pong"))), ..ended(Outcome::Answered) });
        assert_eq!((result.bytes, result.truncated), ([0, 0], false));
    }

    #[test]
    fn an_alert_is_an_error_and_critical() {
        let result = make(Ended {
            conclusion: Conclusion { alert: Some("enough".into()), ..Outcome::TimedOut { code: 143 }.into() },
            ..ended(Outcome::Answered)
        });
        assert_eq!((result.state, result.critical.as_str()), (State::Error, "enough"));
    }

    #[test]
    fn sparing_runs_are_quiet_without_a_result() {
        let quiet = |captured, code| {
            let conclusion = Conclusion { suppress_if_ok: true, ..Outcome::Exited { code }.into() };
            make(Ended { captured, conclusion, ..ended(Outcome::Answered) }).quiet
        };
        assert!(quiet(Captured::default(), 0));
        assert!(!quiet(Captured { results: 1, ..Captured::default() }, 0));
        assert!(!quiet(Captured::default(), 1));
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(make(ended(Outcome::Exited { code: 0 })).args["env"]["PASSWORD"], "***");
    }
}

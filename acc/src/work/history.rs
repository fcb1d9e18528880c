//! The history of commands: the audit list, rejected texts, and when each was pushed. Pure.
//!
//! Owns: the form of those entries, and that no secret gets into them. Does not own: the lists (`model::history`).

use crate::model::DAY;
use crate::model::own_results;
use jscommon::command::BadCommand;
use jscommon::{Command, NodeId};
use serde_json::{Value, json};

/// Longest text of a rejected command that is kept, in bytes.
const MAX_REJECTED_BYTES: usize = 4096;

/// Seconds that a command may wait for its node.
pub(crate) fn expires(command: &Command) -> u64 {
    if command.expires == 0 { DAY } else { command.expires }
}

/// When the client pushed the command (ms): as it says, unless that cannot be; else now.
pub(crate) fn created(command: &Command, now: u64) -> u64 {
    let said = command.extra.get("created").and_then(Value::as_u64);
    said.filter(|said| *said <= now + 1000 && *said + 10 * DAY * 1000 > now).map_or(now, |said| said.min(now))
}

/// The entry of `jsacc:rejected` for a text that is no command: the text as it came, for what is wrong
/// with it is in there, unless it speaks of a secret.
pub(crate) fn rejected(bad: &BadCommand, text: &[u8], now: u64) -> Value {
    let came = String::from_utf8_lossy(text);
    let secret = bad.partial.as_deref().filter(|command| jscommon::command::is_secret(&command.args));
    let shown = match secret {
        Some(partial) => own_results::redacted(partial),
        // A text that cannot be read may hold a secret all the same.
        None if may_speak_of_a_secret(&came) => "(withheld: it may speak of a secret)".to_owned(),
        None => came.into_owned(),
    };
    json!({"time": now, "reason": bad.reason, "id": bad.id, "command": cut(&shown, MAX_REJECTED_BYTES)})
}

/// The entry of `jsacc:rejected` for a command that is good, where a key that it needs holds something else.
pub(crate) fn spoilt(command: Option<&Command>, reason: &str, now: u64) -> Value {
    let shown = command.map(own_results::redacted).unwrap_or_default();
    json!({"time": now, "reason": reason, "id": command.map(|command| &command.id), "command": cut(&shown, MAX_REJECTED_BYTES)})
}

/// Whether a text has the word, quoted in whatever way, or may have it: of a text that is too long the arguments
/// were not kept, and only who hides something writes plain letters as `\u0073`.
fn may_speak_of_a_secret(text: &str) -> bool {
    let escaped = ["\\u004", "\\u005", "\\u006", "\\u007"];
    text.len() > jscommon::command::MAX_TEXT
        || text.contains("secret")
        || escaped.iter().any(|some| text.contains(some))
}

/// The entry of `jsacc:audit` for a command.
pub(crate) fn audit(command: &Command, targets: &[NodeId], now: u64) -> Value {
    let mut args = Value::Object(jscommon::command::shown_args(&command.args));
    let text = args.to_string();
    if text.len() > MAX_REJECTED_BYTES {
        args = Value::String(cut(&text, MAX_REJECTED_BYTES).to_owned());
    }
    let word = |name: &str| command.extra.get(name).and_then(Value::as_str).map(|word| cut(word, 128)).unwrap_or("");
    json!({
        "time": now,
        "id": command.id,
        "by": word("by"),
        "user": word("user"),
        "cmd": cut(&command.cmd, 128),
        "args": args,
        "roles": command.roles,
        "targets": targets.iter().take(100).map(NodeId::to_string).collect::<Vec<_>>(),
        "count": targets.len(),
    })
}

/// At most `most` bytes of `text`, cut at a character.
fn cut(text: &str, most: usize) -> &str {
    if text.len() <= most {
        return text;
    }
    let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_the_push_is_believed_within_reason() {
        let now = 1_780_000_000_000;
        let check = |said: Value, want: u64| {
            let value = json!({"id": "a", "cmd": "ping", "gid": 1, "nid": 1, "created": said});
            assert_eq!(created(&Command::from_value(value).unwrap(), now), want);
        };
        check(json!(now - 500), now - 500);
        check(json!(now + 500), now);
        check(json!(now + 5000), now);
        check(json!(5), now);
        check(json!("x"), now);
    }

    #[test]
    fn rejected_texts_keep_no_secret() {
        let text = br#"{"id": "a", "cmd": 5, "data": "geheim", "args": {"secret": true}, "gid": 1, "nid": 1}"#;
        let bad = Command::parse(text).unwrap_err();
        assert!(!rejected(&bad, text, 1).to_string().contains("geheim"));
        let broken = br#"{"args": {"secret": true}, "data": "geheim" "#;
        let bad = Command::parse(broken).unwrap_err();
        assert!(!rejected(&bad, broken, 1).to_string().contains("geheim"));
        let hidden = br#"{"id": "a", "cmd": 5, "data": "geheim", "args": {"\u0073ecret": true}, "gid": 1, "nid": 1}"#;
        let bad = Command::parse(hidden).unwrap_err();
        assert!(!rejected(&bad, hidden, 1).to_string().contains("geheim"));
    }

    #[test]
    fn rejected_texts_keep_no_secret_where_the_arguments_cannot_be_read() {
        let long = " ".repeat(jscommon::command::MAX_TEXT);
        for text in [
            r#"{"id":"a","cmd":"execute","gid":1,"nid":10,"args":[{"secret":true}],"data":"geheim"}"#.to_owned(),
            r#"{"id":"a","cmd":"execute","gid":1,"nid":10,"args":[{"\u0073ecret":true}],"data":"geheim"}"#.to_owned(),
            r#"{"id":"a","cmd":"execute","gid":1,"nid":10,"args":{"\u0073ecret":true},"data":"geheim"}"#.to_owned()
                + &long,
            "{'id': 'a', 'cmd': 'execute', 'args': {'secret': True}, 'data': 'geheim'}".to_owned(),
        ] {
            let bad = Command::received(text.as_bytes()).unwrap_err();
            assert!(!rejected(&bad, text.as_bytes(), 1).to_string().contains("geheim"), "{}", &text[..70]);
        }
    }

    #[test]
    fn rejected_texts_stand_as_they_came() {
        for plain in ["hello", r#"{"id": "a", "cmd": "ping", "gid": 1, "nid": 10, "expires": "soon"}"#] {
            let bad = Command::parse(plain.as_bytes()).unwrap_err();
            assert_eq!(rejected(&bad, plain.as_bytes(), 1)["command"], plain);
        }
    }

    #[test]
    fn texts_are_cut_at_characters() {
        assert_eq!(cut("héllo", 2), "h");
        assert_eq!(cut("abc", 5), "abc");
    }
}

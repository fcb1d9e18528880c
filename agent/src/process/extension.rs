//! What to start for an extension: a command of the operator's own, whose arguments a job fills in.

use super::spawn::{Places, Spec};
use crate::config::Extension;
use jscommon::Command;
use serde_json::{Map, Value};
use std::path::PathBuf;

/// The process of a command that is an extension; the error is one sentence for the job's result.
pub(super) fn extension(extension: &Extension, command: &Command, places: &Places) -> Result<Spec, String> {
    let fill = |arg: &String| fill(arg, &command.args).map(|arg| places.fill(&arg));
    let args = extension.args.iter().map(fill).collect::<Result<_, _>>();
    Ok(Spec {
        program: places.fill(&extension.binary),
        args: args.map_err(|fault| format!("{}: {fault}", command.cmd))?,
        env: extension.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        cwd: extension.cwd.as_ref().map(|cwd| PathBuf::from(places.fill(&cwd.to_string_lossy()))),
        stdin: command.data.clone().into_bytes(),
        ..Spec::default()
    })
}

/// A text with each `{key}` replaced by that argument; `{{key}}` is `{key}` itself, and every other
/// brace stays as it is, so that JSON and awk need no escapes.
fn fill(text: &str, args: &Map<String, Value>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(key) = between(rest, "{{", "}}") {
            out.push_str(&rest[1..key.len() + 3]);
            rest = &rest[key.len() + 4..];
        } else if let Some(key) = between(rest, "{", "}") {
            out.push_str(&value(key, args)?);
            rest = &rest[key.len() + 2..];
        } else {
            out.push('{');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// The key that a text begins with, between these two.
fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<&'a str> {
    let (key, _) = text.strip_prefix(open)?.split_once(close)?;
    is_key(key).then_some(key)
}

/// Whether a text between braces names an argument: letters, digits, `_`, `-` and `.`.
fn is_key(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

fn value(key: &str, args: &Map<String, Value>) -> Result<String, String> {
    match args.get(key) {
        None | Some(Value::Null) => Err(format!("the argument '{key}' is missing: give it in the command's args")),
        Some(Value::String(text)) if text.contains('\0') => Err(format!("{key} must not hold a NUL character")),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Ok(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(text: &str, want: Result<&str, &str>) {
        let args = json!({"source": "/a b", "n": 3, "flag": true, "list": [1, "x"], "none": null, "a.b-c": "{n}"});
        let got = fill(text, args.as_object().unwrap());
        match want {
            Ok(want) => assert_eq!(got.as_deref(), Ok(want), "{text}"),
            Err(key) => assert!(got.as_ref().unwrap_err().contains(&format!("'{key}' is missing")), "{text}: {got:?}"),
        }
    }

    #[test]
    fn keys_are_filled_in() {
        check("", Ok(""));
        check("-a", Ok("-a"));
        check("{source}", Ok("/a b"));
        check("--n={n}{flag}", Ok("--n=3true"));
        check("{list}", Ok(r#"[1,"x"]"#));
        // What was filled in is not looked at again.
        check("{a.b-c}", Ok("{n}"));
    }

    #[test]
    fn other_braces_stay() {
        check("{}", Ok("{}"));
        check("{ n }", Ok("{ n }"));
        check("a{", Ok("a{"));
        check("}{n", Ok("}{n"));
        check("{{n}}", Ok("{n}"));
        check("a{{{n}}}", Ok("a{{n}}"));
        check("{\"a\":{\"b\":{}}}", Ok("{\"a\":{\"b\":{}}}"));
        check("awk '{print $1}'", Ok("awk '{print $1}'"));
        check("{\"n\": {n}}", Ok("{\"n\": 3}"));
    }

    #[test]
    fn a_missing_key_is_named() {
        check("{nope}", Err("nope"));
        check("{none}", Err("none"));
        check("x{n}{later}", Err("later"));
    }

    #[test]
    fn an_extension_as_a_process() {
        let rsync = Extension {
            binary: "/usr/bin/rsync".into(),
            args: vec!["-a".into(), "{source}".into()],
            cwd: Some("/srv".into()),
            env: [("A".to_owned(), "1".to_owned())].into(),
        };
        let places = Places::new("/data".as_ref());
        let command = |args: Value| {
            let value = json!({"id": "a", "gid": 1, "nid": 1, "cmd": "backup", "args": args, "data": "in"});
            Command::from_value(value).unwrap()
        };
        let spec = extension(&rsync, &command(json!({"source": "$agentroot/x"})), &places).unwrap();
        assert_eq!((spec.program.as_str(), spec.stdin.as_slice()), ("/usr/bin/rsync", b"in".as_slice()));
        assert_eq!(spec.args, ["-a", "/data/x"]);
        assert_eq!((spec.env.len(), spec.cwd), (1, Some("/srv".into())));
        let missing = extension(&rsync, &command(json!({})), &places).unwrap_err();
        assert_eq!(missing, "backup: the argument 'source' is missing: give it in the command's args");
    }
}

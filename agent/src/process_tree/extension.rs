//! The process of an extension: a command of the operator's own, whose arguments a job fills in.

use super::{PathVars, Spec};
use crate::config::Extension;
use crate::platform::cmdline::{CommandLine, raw_value};
use jscommon::Command;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::path::PathBuf;

/// The process of a command that is an extension; the error is one sentence for the job's result.
pub(crate) fn extension(extension: &Extension, command: &Command, path_vars: &PathVars) -> Result<Spec, String> {
    let path_vars = &path_vars.of_job(&command.args);
    let program = path_vars.expand(&extension.binary);
    let is_raw = cfg!(windows) && CommandLine::of(&program) == CommandLine::Raw;
    let args = fill_all(extension, &command.args, is_raw).map_err(|fault| format!("{}: {fault}", command.cmd))?;
    Ok(Spec {
        program,
        args: args.iter().map(|arg| path_vars.expand(arg)).collect(),
        env: extension.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        cwd: extension.cwd.as_ref().map(|cwd| PathBuf::from(path_vars.expand(&cwd.to_string_lossy()))),
        stdin: command.data.clone().into_bytes(),
        is_configured: true,
        ..Spec::default()
    })
}

/// Returns the arguments with each `{key}` replaced. No value becomes an option of the program unless the
/// configuration allows it, nor, where `cmd.exe` reads them as one line (`is_raw`), more than text in it.
fn fill_all(extension: &Extension, args: &Map<String, Value>, is_raw: bool) -> Result<Vec<String>, String> {
    let (mut line, mut all) = (String::new(), Vec::with_capacity(extension.args.len()));
    let mut only_operands = false;
    for text in &extension.args {
        let filled = fill(text, |key, before| {
            let value = value(key, args)?;
            if is_option(before, &value, only_operands) && !may_be_option(extension, key) {
                return Err(format!(
                    "{key} must not begin with {}, for the program would take it for an option: put \"--\" before it in \
                     args of the extension, or name it in allow_options",
                    &value[..1]
                ));
            }
            if !is_raw {
                return Ok(value);
            }
            let is_whole = text.len() == key.len() + 2;
            raw_value(key, &value, &format!("{line}{before}"), is_whole).map(Cow::into_owned)
        })?;
        only_operands |= text == "--";
        if is_raw {
            line.push_str(&filled);
            line.push(' ');
        }
        all.push(filled);
    }
    Ok(all)
}

/// Whether a value begins an option of a program, where `before` stands before it in the same argument, and
/// `only_operands` says that an argument `--` came earlier.
fn is_option(before: &str, value: &str, only_operands: bool) -> bool {
    let begins = value.starts_with('-') && !only_operands || cfg!(windows) && value.starts_with('/');
    begins && before.bytes().all(|byte| byte == b'-')
}

fn may_be_option(extension: &Extension, key: &str) -> bool {
    extension.allow_options.iter().any(|allowed| allowed == key || allowed == "*")
}

/// A text with each `{key}` replaced by its value, which may depend on the text before it; `{{key}}` is `{key}` itself, and every other
/// brace stays as it is, so that JSON and awk need no escapes.
fn fill(text: &str, mut value: impl FnMut(&str, &str) -> Result<String, String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(key) = between(rest, "{{", "}}") {
            out.push_str(&rest[1..key.len() + 3]);
            rest = &rest[key.len() + 4..];
        } else if let Some(key) = between(rest, "{", "}") {
            out.push_str(&value(key, &out)?);
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
        let got = fill(text, |key, _| value(key, args.as_object().unwrap()));
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
        // Braces in a value that was filled in stay as they are.
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

    fn with_args(args: &[&str], allowed: &[&str]) -> Extension {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        Extension { args: owned(args), allow_options: owned(allowed), ..Extension::default() }
    }

    #[test]
    fn value_is_an_option_only_where_the_configuration_allows_it() {
        let args = json!({"evil": "--rsh=x", "short": "-x", "n": -9, "plain": "x-y", "empty": "", "path": "./-x"});
        let filled =
            |texts: &[&str], allowed: &[&str]| fill_all(&with_args(texts, allowed), args.as_object().unwrap(), false);
        for (texts, allowed) in [
            (vec!["{plain}", "{path}", "a{evil}", "--rsh={short}", "{plain}{evil}"], vec![]),
            (vec!["-a", "--", "{evil}", "{n}"], vec![]),
            (vec!["{evil}", "{short}"], vec!["evil", "short"]),
            (vec!["-{evil}{short}"], vec!["*"]),
            (vec!["{{evil}}"], vec![]),
        ] {
            assert!(filled(&texts, &allowed).is_ok(), "{texts:?}");
        }
        for (texts, allowed, key) in [
            (vec!["{evil}"], vec![], "evil"),
            (vec!["{n}"], vec![], "n"),
            // Text before a value does not keep the value from being an option.
            (vec!["{empty}{short}"], vec![], "short"),
            (vec!["-{short}"], vec![], "short"),
            (vec!["{evil}", "{short}"], vec!["evil"], "short"),
            // A value is no "--" of the configuration, and neither is what comes after the value.
            (vec!["{evil}", "--"], vec![], "evil"),
        ] {
            let fault = filled(&texts, &allowed).unwrap_err();
            assert!(fault.starts_with(&format!("{key} must not begin with -")), "{texts:?}: {fault}");
        }
    }

    #[test]
    fn values_in_a_line_of_cmd_stay_text() {
        let args = json!({"a": "x y", "b": "plain", "evil": "x&echo y", "n": 3, "empty": ""});
        let filled =
            |texts: &[&str]| fill_all(&with_args(texts, &[]), args.as_object().unwrap(), true).map(|all| all.join(" "));
        for (texts, want) in [
            (vec!["/c", "echo", "{a}", "{b}"], r#"/c echo "x y" plain"#),
            // The line's own quotes count over all arguments.
            (vec!["/c", "echo \"{a}", "{a}\"", "{a}"], r#"/c echo "x y x y" "x y""#),
            (vec!["/c", "{{a}} {a}{n}"], r#"/c {a} "x y"3"#),
            (vec!["/c", "{{a}}\"{a}\"{{"], r#"/c {a}"x y"{{"#),
            (vec!["/c", "\"{a}\"{a}", "{empty}"], r#"/c "x y""x y" """#),
        ] {
            assert_eq!(filled(&texts).as_deref(), Ok(want), "{texts:?}");
        }
        for texts in [vec!["/c", "echo {evil}"], vec!["/c", "echo \"{evil}\""]] {
            assert!(filled(&texts).unwrap_err().starts_with("evil must not hold &"), "{texts:?}");
        }
        assert!(filled(&["{none}"]).unwrap_err().contains("'none' is missing"));
    }

    #[test]
    fn an_extension_as_a_process() {
        let rsync = Extension {
            binary: "/usr/bin/rsync".into(),
            args: vec!["-a".into(), "{source}".into()],
            cwd: Some("/srv".into()),
            env: [("A".to_owned(), "1".to_owned())].into(),
            allow_options: Vec::new(),
        };
        let path_vars = PathVars::new("/data".as_ref());
        let command = |args: Value| {
            let value = json!({"id": "a", "gid": 1, "nid": 1, "cmd": "backup", "args": args, "data": "in"});
            Command::from_value(value).unwrap()
        };
        let spec = extension(&rsync, &command(json!({"source": "$agentroot/x"})), &path_vars).unwrap();
        assert_eq!((spec.program.as_str(), spec.stdin.as_slice()), ("/usr/bin/rsync", b"in".as_slice()));
        assert_eq!(spec.args, ["-a", "/data/x"]);
        assert_eq!((spec.env.len(), spec.cwd), (1, Some("/srv".into())));
        let missing = extension(&rsync, &command(json!({})), &path_vars).unwrap_err();
        assert_eq!(missing, "backup: the argument 'source' is missing: give it in the command's args");
    }
}

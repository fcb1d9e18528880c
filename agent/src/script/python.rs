//! The process of a Python script: the configured interpreter with the runner.

use super::Script;
use crate::process_tree::Spec;

/// The Python source that defines the interface of scripts. It goes to stdin, before the script's source.
pub(super) const RUNNER: &str = include_str!("runner.py");

/// The interpreter reads the runner first, and that reads the rest; `-c` keeps both out of files.
pub(super) fn spec(interpreter: &str, script: Script, words: &[String], data: &str) -> Spec {
    let size = RUNNER.len();
    let first = format!("import os\nb=b''\nwhile len(b)<{size}:b+=os.read(0,{size}-len(b))or os._exit(1)\nexec(b)");
    let mut args = vec!["-c".to_owned(), first, script.source.len().to_string(), script.path, script.folder];
    args.extend_from_slice(words);
    let stdin = [RUNNER.as_bytes(), &script.source, data.as_bytes()].concat();
    Spec { program: interpreter.to_owned(), args, stdin, is_configured: true, ..Spec::default() }
}

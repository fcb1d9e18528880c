//! The imports between the modules of `jsclient`.

use super::{Edge, files, module_of, root};
use std::{collections::BTreeSet, fs};

/// Returns the imports between the modules of `jsclient`; a module is one name, and lies in no folder.
pub(crate) fn imports() -> Vec<Edge> {
    let source = root().join("pyclient/jsclient");
    let files = files(&source, ".py");
    let modules: BTreeSet<String> = files.iter().map(|file| module_of(file, &["__init__"]).join(".")).collect();
    let mut edges = Vec::new();
    for file in &files {
        let text = fs::read_to_string(source.join(file)).unwrap();
        for (line, to) in python_imports(&text, &module_of(file, &[]), &modules) {
            let from = module_of(file, &["__init__"]).join(".");
            if from != to {
                edges.push(Edge { from: vec![from], to: vec![to], at: format!("{}:{line}", file.display()) });
            }
        }
    }
    edges
}

/// Returns what one Python file imports of `modules`, with the lines.
fn python_imports(text: &str, file: &[String], modules: &BTreeSet<String>) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, rest) in text.lines().enumerate() {
        let words: Vec<_> =
            rest.split(|c: char| c.is_whitespace() || "(),;".contains(c)).filter(|w| !w.is_empty()).collect();
        let (home, mut taken) = match words[..] {
            ["from", home, "import", ..] => {
                (home, words[3..].iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
            }
            ["import", home, ..] => (home, Vec::new()),
            _ => continue,
        };
        // Names in parentheses go on until they are closed.
        if rest.contains('(') && !rest.contains(')') {
            let more = text.lines().skip(at + 1).take_while(|line| !line.trim_start().starts_with(')'));
            taken.extend(more.map(|line| line.trim().trim_end_matches(',').to_owned()));
        }
        let dots = home.bytes().take_while(|b| *b == b'.').count();
        let mut base: Vec<&str> = match dots {
            0 if home == "jsclient" || home.starts_with("jsclient.") => Vec::new(),
            0 => continue,
            _ => file[..file.len() - dots].iter().map(String::as_str).collect(),
        };
        base.extend(home[dots..].split('.').filter(|name| !name.is_empty() && *name != "jsclient"));
        let home = base.join(".");
        let inner = taken.iter().map(|name| [&base[..], &[name.as_str()]].concat().join("."));
        let inner: Vec<_> = inner.filter(|module| modules.contains(module)).collect();
        if inner.is_empty() && modules.contains(&home) {
            found.push((at + 1, home));
        }
        found.extend(inner.into_iter().map(|module| (at + 1, module)));
    }
    found
}

#[test]
fn python_imports_are_found_in_all_their_forms() {
    let text = "import os\nfrom . import a, wire\nif TYPE_CHECKING:\n    from ..b import C\nfrom .. import (\n    d,\n    e as f,\n)\nfrom jsclient.wire import X\nimport jsclient\n";
    let modules = ["", "b", "d", "e", "wire", "cli", "cli.a", "cli.x"].map(str::to_owned).into();
    let found = python_imports(text, &["cli".to_owned(), "x".to_owned()], &modules);
    let found: Vec<_> = found.iter().map(|(line, module)| format!("{line} {module}")).collect();
    assert_eq!(found, ["2 cli.a", "4 b", "5 d", "9 wire", "10 "]);
}

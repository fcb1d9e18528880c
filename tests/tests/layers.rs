//! Checks which module imports which, from the sources alone.
//!
//! 1. Top-level modules of `agent` and `acc` stand in one order, and import only modules below them.
//! 2. The modules inside one folder import each other in no circle. A folder counts as one module, and its
//!    `mod.rs` (or the file of the same name beside it) as no member of it.
//! 3. Modules of `jsclient` import each other in no circle.
//!
//! `docs/architecture.md` shows the order; `JS_WRITE_LAYERS=1 cargo test --test layers` writes it there.

#[path = "layers/python.rs"]
mod python;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The order of the agent's modules: each may import those after it.
const AGENT: &[&str] = &[
    "app",
    "daemon",
    "enroll",
    "status",
    "trusted_paths",
    "monitor",
    "supervisor",
    "commands",
    "script",
    "uplink",
    "output",
    "stream",
    "stdin",
    "stats",
    "storage",
    "process_tree",
    "flags",
    "config",
    "diagnostics",
    "job",
    "platform",
];

/// The order of the controller's modules: each may import those after it.
const ACC: &[&str] = &[
    "app",
    "work",
    "proxy",
    "api",
    "auth",
    "model",
    "redis",
    "config",
    "critical_thread",
    "metrics",
    "http",
    "route",
    "query",
    "clock",
    "bounded_map",
];

/// One module imports another one; paths are relative to the root of the crate.
struct Edge {
    from: Vec<String>,
    to: Vec<String>,
    /// File and line.
    at: String,
}

impl Edge {
    fn new(from: &str, to: &str, at: &str) -> Self {
        Self { from: segments(from), to: segments(to), at: at.to_owned() }
    }
}

/// Imports between the members of one folder: from, to, and where.
type Graph<'a> = BTreeMap<(&'a str, &'a str), BTreeSet<&'a str>>;

/// Groups imports by the folder in which their paths part.
fn folders(edges: &[Edge]) -> BTreeMap<&[String], Graph<'_>> {
    let mut folders: BTreeMap<&[String], Graph<'_>> = BTreeMap::new();
    for Edge { from, to, at } in edges {
        let depth = from.iter().zip(to).take_while(|(a, b)| a == b).count();
        if let (Some(a), Some(b)) = (from.get(depth), to.get(depth)) {
            folders.entry(&from[..depth]).or_default().entry((a, b)).or_default().insert(at);
        }
    }
    folders
}

/// Returns the largest sets of modules that import each other in a circle.
fn circles<'a>(graph: &Graph<'a>) -> BTreeSet<BTreeSet<&'a str>> {
    let reached = |start: &'a str| {
        let (mut open, mut seen) = (vec![start], BTreeSet::new());
        while let Some(node) = open.pop() {
            let next = graph.keys().filter(|(from, _)| *from == node).map(|(_, to)| *to);
            open.extend(next.filter(|to| seen.insert(*to)));
        }
        seen
    };
    let reach: BTreeMap<_, _> = graph.keys().map(|(from, _)| (*from, reached(from))).collect();
    let circle =
        |module| reach[module].iter().copied().filter(|other| reach.get(other).is_some_and(|r| r.contains(module)));
    reach.keys().map(|module| circle(module).collect::<BTreeSet<_>>()).filter(|circle| !circle.is_empty()).collect()
}

/// Returns each fault with the places where its imports are written.
fn faults(name: &str, edges: &[Edge], order: &[&str]) -> BTreeMap<String, Vec<String>> {
    let mut faults = BTreeMap::new();
    for (folder, graph) in folders(edges) {
        if folder.is_empty() && !order.is_empty() {
            let place = |module| order.iter().position(|other| *other == module).expect(module);
            for ((from, to), at) in graph.iter().filter(|((from, to), _)| place(from) > place(to)) {
                faults.insert(format!("up: {name}: {from} -> {to}"), at.iter().map(|at| (*at).to_owned()).collect());
            }
        } else {
            for circle in circles(&graph) {
                let inside = graph.iter().filter(|((from, to), _)| circle.contains(from) && circle.contains(to));
                let at = inside.map(|((from, to), at)| {
                    format!("{from} -> {to}: {}", Vec::from_iter(at.iter().copied()).join(" "))
                });
                let folder = [&[name.to_owned()], folder].concat().join("/");
                let circle = Vec::from_iter(circle.iter().copied()).join(" ");
                faults.insert(format!("circle: {folder}: {circle}"), at.collect());
            }
        }
    }
    faults
}

fn segments(path: &str) -> Vec<String> {
    path.split("::").filter(|segment| !segment.is_empty()).map(str::to_owned).collect()
}

/// Returns the words and signs of Rust source with their lines; comments and literals are left out.
fn tokens(source: &str) -> Vec<(usize, &str)> {
    let bytes = source.as_bytes();
    let word = |i: usize| bytes.get(i).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_' || *b >= 0x80);
    let after = |i: usize, end: &str| source[i..].find(end).map_or(source.len(), |n| i + n + end.len());
    let (mut found, mut i) = (Vec::new(), 0);
    while i < source.len() {
        let rest = &source[i..];
        let end = if rest.starts_with("//") {
            after(i, "\n")
        } else if rest.starts_with("/*") {
            after(i, "*/")
        } else if rest.starts_with('"') {
            let mut end = i + 1;
            while bytes.get(end).is_some_and(|b| *b != b'"') {
                end += if bytes[end] == b'\\' { 2 } else { 1 };
            }
            end + 1
        } else if let Some(quoted) = rest.strip_prefix('\'') {
            // A character, or a lifetime.
            let length = quoted.chars().next().map_or(0, char::len_utf8);
            if quoted.starts_with('\\') {
                after(i + 3, "'")
            } else if quoted[length..].starts_with('\'') {
                i + length + 2
            } else {
                i + 1
            }
        } else if word(i) {
            let end = (i..).find(|&n| !word(n)).unwrap_or(i);
            let hashes = source[end..].bytes().take_while(|b| *b == b'#').count();
            if matches!(&source[i..end], "r" | "br" | "cr") && source[end + hashes..].starts_with('"') {
                after(end + hashes + 1, &format!("\"{}", "#".repeat(hashes)))
            } else {
                found.push((i, &source[i..end]));
                end
            }
        } else {
            let end = i + if rest.starts_with("::") { 2 } else { rest.chars().next().map_or(1, char::len_utf8) };
            if !rest.starts_with(char::is_whitespace) {
                found.push((i, &source[i..end]));
            }
            end
        };
        i = end.min(source.len());
    }
    let mut line = (0, 1);
    for (at, _) in &mut found {
        line = (*at, line.1 + source[line.0..*at].matches('\n').count());
        *at = line.1;
    }
    found
}

/// Returns the end of the item at `i`: it ends with `;`, `,` or its first closed braces.
fn item_end(tokens: &[(usize, &str)], mut i: usize) -> usize {
    let mut depth = 0;
    while let Some((_, token)) = tokens.get(i) {
        match *token {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        i += 1;
        if depth == 0 && matches!(*token, ";" | "," | "}") {
            break;
        }
    }
    i
}

/// Paths that one file names, with their lines, and the modules that it declares for tests alone.
#[derive(Default)]
struct Names {
    paths: Vec<(usize, Vec<String>)>,
    test_modules: Vec<Vec<String>>,
}

/// Reads a file that is the module `module`.
fn names(source: &str, module: &[String]) -> Names {
    let tokens = tokens(source);
    let text = |i: usize| tokens.get(i).map_or("", |(_, text)| *text);
    let (mut names, mut i) = (Names::default(), 0);
    while i < tokens.len() {
        let start = i;
        i += 1;
        if text(start) == "#" && text(i) == "[" {
            let end = (i..tokens.len()).find(|&n| text(n) == "]").unwrap_or(i) + 1;
            let attribute = (i..end).map(text).collect::<Vec<_>>();
            if attribute.contains(&"cfg") && attribute.contains(&"test") && !attribute.contains(&"not") {
                i = item_end(&tokens, end);
                if let Some(n) = (end..i).find(|&n| text(n) == "mod") {
                    names.test_modules.push([module, &[text(n + 1).to_owned()]].concat());
                }
            }
        } else if text(i) == "::" && !matches!(start.checked_sub(1).map(text), Some("::")) {
            let base = match text(start) {
                "crate" => Vec::new(),
                "self" => module.to_vec(),
                "super" => module[..module.len().saturating_sub(1)].to_vec(),
                _ => continue,
            };
            i = path(&tokens, i, base, &mut names.paths);
        }
    }
    names
}

/// Reads what follows the path `base`, adds the paths it makes, and returns its end.
fn path(tokens: &[(usize, &str)], mut i: usize, mut base: Vec<String>, found: &mut Vec<(usize, Vec<String>)>) -> usize {
    let text = |i: usize| tokens.get(i).map_or("", |(_, text)| *text);
    let line = tokens[i.min(tokens.len() - 1)].0;
    while text(i) == "::" {
        i += 1;
        if text(i) == "{" {
            i += 1;
            while !matches!(text(i), "}" | "") {
                let mut inner = base.clone();
                if !matches!(text(i), "self" | "*") {
                    inner.push(text(i).to_owned());
                }
                i = path(tokens, i + 1, inner, found);
                while !matches!(text(i), "," | "}" | "") {
                    i += 1;
                }
                i += usize::from(text(i) == ",");
            }
            return i + 1;
        }
        match text(i) {
            "super" => drop(base.pop()),
            "*" => {}
            name => base.push(name.to_owned()),
        }
        i += 1;
    }
    found.push((line, base));
    i
}

/// Returns the files below a folder whose name ends with `ending`, relative to it.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            let name = PathBuf::from(entry.file_name().unwrap());
            found.extend(files(&entry, ending).into_iter().map(|file| name.join(file)));
        } else if entry.to_string_lossy().ends_with(ending) {
            found.push(entry.file_name().unwrap().into());
        }
    }
    found.sort();
    found
}

/// Returns the module that a file is: its path without the ending, and without a last `mod` or its like.
fn module_of(file: &Path, faces: &[&str]) -> Vec<String> {
    let mut module: Vec<String> = file.with_extension("").iter().map(|name| name.to_string_lossy().into()).collect();
    module.pop_if(|name| faces.contains(&name.as_str()));
    module
}

/// Returns the root of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().into()
}

/// Returns the modules of a crate with their files, and its imports.
fn rust(name: &str) -> (BTreeMap<Vec<String>, PathBuf>, Vec<Edge>) {
    let source = root().join(name).join("src");
    let mut modules: BTreeMap<_, _> =
        files(&source, ".rs").into_iter().map(|file| (module_of(&file, &["mod", "lib", "main"]), file)).collect();
    modules.retain(|_, file| !file.to_string_lossy().ends_with("_tests.rs"));
    let read = |(module, file): (&Vec<String>, &PathBuf)| {
        (module.clone(), file.clone(), names(&fs::read_to_string(source.join(file)).unwrap(), module))
    };
    let all: Vec<_> = modules.iter().map(read).collect();
    let tests: Vec<_> = all.iter().flat_map(|(_, _, names)| names.test_modules.clone()).collect();
    modules.retain(|module, _| !tests.iter().any(|test| module.starts_with(test)));
    let mut edges = Vec::new();
    for (from, file, names) in all.iter().filter(|(module, ..)| modules.contains_key(module)) {
        for (line, path) in &names.paths {
            let to = (0..=path.len()).rev().map(|n| &path[..n]).find(|path| modules.contains_key(*path)).unwrap_or(&[]);
            let at = format!("{name}/src/{}:{line}", file.display());
            edges.push(Edge { from: from.clone(), to: to.to_vec(), at });
        }
    }
    (modules, edges)
}

/// Returns the first sentence of a module's documentation.
fn purpose(source: &str) -> String {
    let lines = source.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim);
    let text = lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    text.split_once(". ").map_or(text.as_str(), |(first, _)| first).trim_end_matches('.').to_owned()
}

/// Returns the picture of the layers for `docs/architecture.md`.
fn picture() -> String {
    let mut lines = Vec::new();
    for (name, order) in [("agent", AGENT), ("acc", ACC)] {
        let width = order.iter().map(|module| module.len()).max().unwrap();
        let (modules, _) = rust(name);
        lines.push(name.to_owned());
        for module in order {
            let file = &modules[&segments(module)];
            let purpose = purpose(&fs::read_to_string(root().join(name).join("src").join(file)).unwrap());
            lines.push(format!("    {module:width$}  {purpose}"));
        }
    }
    format!("```text\n{}\n```", lines.join("\n"))
}

#[test]
fn modules_import_only_downwards() {
    for (name, order) in [("agent", AGENT), ("acc", ACC)] {
        let there: BTreeSet<_> = rust(name).0.into_keys().filter_map(|module| module.first().cloned()).collect();
        let listed: BTreeSet<_> = order.iter().map(|module| (*module).to_owned()).collect();
        assert_eq!(there, listed, "the order of {name} in this file names other modules than there are");
    }
    let mut found = faults("jsclient", &python::imports(), &[]);
    for (name, order) in [("agent", AGENT), ("acc", ACC), ("common", &[])] {
        found.append(&mut faults(name, &rust(name).1, order));
    }
    assert!(found.is_empty(), "imports against the rules: {found:#?}");
}

#[test]
fn architecture_shows_the_layers() {
    const MARKS: (&str, &str) = ("<!-- layers: written by tests/layers -->\n", "\n<!-- end of layers -->");
    let file = root().join("docs/architecture.md");
    let text = fs::read_to_string(&file).unwrap();
    let (before, rest) = text.split_once(MARKS.0).expect("the first mark of the layers");
    let (shown, after) = rest.split_once(MARKS.1).expect("the last mark of the layers");
    let right = picture();
    if std::env::var_os("JS_WRITE_LAYERS").is_some() {
        fs::write(&file, [before, MARKS.0, &right, MARKS.1, after].concat()).unwrap();
    } else {
        assert!(
            shown == right,
            "docs/architecture.md shows other layers; run this test with JS_WRITE_LAYERS=1, or write:\n{right}"
        );
    }
}

#[test]
fn upward_and_circular_imports_are_found() {
    let edges = [
        Edge::new("a", "b", "a.rs:1"),
        Edge::new("b::x", "a", "b/x.rs:2"),
        Edge::new("b::x", "b::y::deep", "b/x.rs:3"),
        Edge::new("b::y", "b::x", "b/y.rs:4"),
        Edge::new("b::y", "b::z", "b/y.rs:5"),
        Edge::new("b::z", "b", "b/z.rs:6"),
    ];
    let found =
        |order| faults("c", &edges, order).into_iter().map(|(fault, at)| format!("{fault} ({})", at.join(", ")));
    let circle = "circle: c/b: x y (x -> y: b/x.rs:3, y -> x: b/y.rs:4)";
    assert_eq!(Vec::from_iter(found(&["a", "b"])), [circle, "up: c: b -> a (b/x.rs:2)"]);
    assert_eq!(Vec::from_iter(found(&[])), [circle, "circle: c: a b (a -> b: a.rs:1, b -> a: b/x.rs:2)"]);
}

#[test]
fn paths_are_read_without_comments_literals_and_tests() {
    let source = r###"//! crate::comment
use crate::{a, b::{C, d::*}, e as f};
pub(crate) fn g<'a>(x: &'a str) -> super::h::I { self::j::k("crate::text", r#"" crate::raw"#, '"'); crate::l::m() }
#[cfg(test)]
mod fake;
#[cfg(all(test, unix))]
mod tests { use crate::inner; }
/* crate::block */ use super::super::o;
"###;
    let names = names(source, &segments("p::q"));
    let paths: Vec<_> = names.paths.iter().map(|(line, path)| format!("{line} {}", path.join("::"))).collect();
    let expected = ["2 a", "2 b::C", "2 b::d", "2 e", "3 p::h::I", "3 p::q::j::k", "3 l::m", "8 o"];
    assert_eq!(paths, expected);
    assert_eq!(names.test_modules, [segments("p::q::fake"), segments("p::q::tests")]);
}

//! The documents against the repository.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository").to_owned()
}

/// The text of a file, or of all files of a folder.
fn source(path: &Path) -> String {
    match fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| source(&entry.path())).collect(),
        Err(_) => fs::read_to_string(path).unwrap_or_default(),
    }
}

#[test]
fn every_claim_names_a_test_that_is_there() {
    let text = fs::read_to_string(root().join("docs/explanation/security.md")).expect("docs/explanation/security.md");
    let (mut place, mut here, mut count) = (String::new(), String::new(), 0);
    let mut faults = Vec::new();
    // Between backquotes stand a file, then its tests, then the next file.
    for word in text.split('`').skip(1).step_by(2) {
        let is_name = word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if let Some(module) = word.strip_prefix("it/").filter(|module| !module.is_empty()) {
            (place, here) = (word.to_owned(), source(&root().join(format!("tests/tests/it/{module}.rs"))));
        } else if ["acc/", "agent/", "common/", "pyclient/", "tests/"].iter().any(|start| word.starts_with(start)) {
            (place, here) = (word.to_owned(), source(&root().join(word)));
        } else if is_name && word.matches('_').count() >= 2 {
            count += 1;
            if !here.contains(&format!("fn {word}(")) && !here.contains(&format!("def {word}(")) {
                faults.push(format!("{place}: {word}"));
            }
        }
    }
    assert!(count > 50, "only {count} tests are named");
    assert!(faults.is_empty(), "named in docs/explanation/security.md and not there:\n{}", faults.join("\n"));
}

/// Every Markdown file of the repository that people read.
fn pages() -> Vec<PathBuf> {
    fn collect(dir: &Path, pages: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).expect("a folder").flatten() {
            match entry.path() {
                path if path.is_dir() => collect(&path, pages),
                path if path.extension().is_some_and(|extension| extension == "md") => pages.push(path),
                _ => {}
            }
        }
    }
    let top = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"];
    let mut pages: Vec<_> = top.iter().map(|name| root().join(name)).collect();
    collect(&root().join("docs"), &mut pages);
    pages
}

/// The text of a page without its blocks of code.
fn prose(page: &Path) -> String {
    let text = fs::read_to_string(page).unwrap_or_else(|e| panic!("{}: {e}", page.display()));
    let mut is_code = false;
    let lines = text.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The anchors of the headings of a page, as GitHub makes them.
fn anchors(page: &Path) -> Vec<String> {
    let text = prose(page);
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

#[test]
fn links_of_all_pages_resolve() {
    let mut count = 0;
    let mut faults = Vec::new();
    for page in pages() {
        for link in prose(&page).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            count += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.parent().expect("a folder").join(file) };
            if !target.exists() || !(anchor.is_empty() || anchors(&target).iter().any(|known| known == anchor)) {
                faults.push(format!("{}: {link}", page.strip_prefix(root()).expect("in the repository").display()));
            }
        }
    }
    assert!(count > 100, "only {count} links");
    assert!(faults.is_empty(), "links that lead nowhere:\n{}", faults.join("\n"));
}

#[test]
fn index_of_the_documentation_names_every_page() {
    let index = fs::read_to_string(root().join("docs/README.md")).expect("docs/README.md");
    let docs = root().join("docs");
    let missing: Vec<_> = pages()
        .iter()
        .filter_map(|page| Some(page.strip_prefix(&docs).ok()?.to_str()?.to_owned()))
        .filter(|page| page != "README.md" && !index.contains(&format!("]({page})")))
        .collect();
    assert!(missing.is_empty(), "docs/README.md does not name {missing:?}");
}

#[test]
fn files_that_pages_name_are_there() {
    let folders = ["acc/", "agent/", "common/", "docs/", "pyclient/", "scripts/", "tests/"];
    let mut count = 0;
    let mut faults = Vec::new();
    // The changelog names files of its time.
    for page in pages().into_iter().filter(|page| !page.ends_with("CHANGELOG.md")) {
        let text = prose(&page);
        let names = text.split('`').skip(1).step_by(2).filter_map(|code| code.split_whitespace().next());
        for name in names.filter(|name| folders.iter().any(|folder| name.starts_with(folder) && !name.contains("::"))) {
            count += 1;
            if !root().join(name).exists() {
                faults.push(format!("{}: {name}", page.strip_prefix(root()).expect("in the repository").display()));
            }
        }
    }
    assert!(count > 50, "only {count} files are named");
    assert!(faults.is_empty(), "files that are named and not there:\n{}", faults.join("\n"));
}

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
        } else if ["acc/", "agent/", "common/", "pyclient/"].iter().any(|start| word.starts_with(start)) {
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

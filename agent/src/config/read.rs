//! Reading the TOML of a configuration, every fault of it at once.
//!
//! Owns the walk over the document and the checks of single values; [`super::parse`] says which keys
//! there are. Opens no file and prints nothing.

use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;
use toml::de::{DeTable, DeValue};

/// The fault of an escape that TOML does not know.
const BAD_ESCAPE: &str = "in \"…\" a backslash begins an escape, and this is none: write a path in single quotes, \
                          for example 'C:\\new\\temp'";

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The line in the file, counted from 1; 0 when it is no line's fault (a flag, say).
    pub(crate) line: usize,
    /// One sentence that says what is wrong and what to do.
    pub(crate) message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.message),
            line => write!(f, "line {line}: {}", self.message),
        }
    }
}

/// The document's text and what was found wrong with it so far.
pub(super) struct Reader<'t> {
    text: &'t str,
    faults: Vec<Fault>,
    /// The first line that is no TOML: what seems wrong after it may only follow from it.
    broken: Option<usize>,
    /// The lines of sections whose names were most likely meant otherwise.
    misspelled: Vec<usize>,
}

/// One value with its place in the text.
pub(super) struct Spot<T> {
    pub(super) value: T,
    pub(super) at: usize,
}

/// A table of the document; keys are taken out of it, and what is left at its end is unknown.
pub(super) struct Section<'t> {
    /// `main`, `controllers.main`; empty for the document itself.
    pub(super) name: String,
    /// Where it begins.
    pub(super) at: usize,
    entries: BTreeMap<String, Entry<'t>>,
    known: Vec<&'static str>,
    given: Vec<&'static str>,
}

struct Entry<'t> {
    key_at: usize,
    at: usize,
    value: DeValue<'t>,
}

impl<'t> Reader<'t> {
    /// Reads the document; what is no TOML becomes faults, the rest is there to be walked.
    pub(super) fn open(text: &'t str) -> (Reader<'t>, Section<'t>) {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut reader = Reader { text, faults: Vec::new(), broken: None, misspelled: Vec::new() };
        for error in errors {
            let at = error.span().map_or(0, |span| span.start);
            // Of several faults of one line the later ones follow from the first.
            if reader.faults.last().is_some_and(|fault| fault.line == reader.line(at)) {
                continue;
            }
            let message = match error.message().lines().next().unwrap_or("it cannot be read") {
                escape if escape.contains("escape") || escape.contains("unicode") => BAD_ESCAPE,
                other => other,
            };
            reader.fault(at, format!("not TOML: {message}"));
        }
        reader.broken = reader.faults.iter().map(|fault| fault.line).min();
        let section = Section::new(String::new(), 0, table.into_inner());
        (reader, section)
    }

    /// Returns the line of byte `at`, counted from 1.
    fn line(&self, at: usize) -> usize {
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }

    /// Notes a path with a control character: most often a backslash in `"…"`, as in `"C:\new"`.
    pub(super) fn check_path(&mut self, at: usize, key: &str, path: &str) {
        if path.contains(char::is_control) {
            let shown = path.escape_debug();
            self.fault(
                at,
                format!(
                    "{key} holds a control character (\"{shown}\"): in \"…\" a backslash begins an escape; \
                     write the path in single quotes, for example 'C:\\new\\temp'"
                ),
            );
        }
    }

    /// Notes that something is wrong at byte `at`.
    pub(super) fn fault(&mut self, at: usize, message: impl Into<String>) {
        let line = self.line(at);
        if self.broken.is_none_or(|broken| line < broken) {
            self.faults.push(Fault { line, message: message.into() });
        }
    }

    /// Notes that the value at byte `at` is wrong, which gives none.
    fn refuse<T>(&mut self, at: usize, message: String) -> Option<T> {
        self.fault(at, message);
        None
    }

    /// Notes that something is missing; a text that is no TOML may well have held it.
    pub(super) fn missing(&mut self, at: usize, message: impl Into<String>) {
        if self.broken.is_none() {
            self.fault(at, message);
        }
    }

    /// Notes what is no line's fault.
    pub(super) fn fault_of_flag(&mut self, message: impl Into<String>) {
        self.faults.push(Fault { line: 0, message: message.into() });
    }

    /// Everything that is wrong, in the order of the lines. A misspelled section comes first, for what is missing may
    /// stand in it.
    pub(super) fn faults(mut self) -> Vec<Fault> {
        self.faults.sort_by_key(|fault| (!self.misspelled.contains(&fault.line), fault.line));
        self.faults
    }
}

impl<'t> Section<'t> {
    fn new(name: String, at: usize, table: DeTable<'t>) -> Section<'t> {
        let entry = |(key, value): (toml::Spanned<_>, toml::Spanned<_>)| {
            let (key_at, at) = (key.span().start, value.span().start);
            let key: toml::de::DeString<'t> = key.into_inner();
            (key.into_owned(), Entry { key_at, at, value: value.into_inner() })
        };
        Section { name, at, entries: table.into_iter().map(entry).collect(), known: Vec::new(), given: Vec::new() }
    }

    /// The key as it stands in a sentence.
    pub(super) fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    fn take(&mut self, key: &'static str) -> Option<Entry<'t>> {
        self.known.push(key);
        let entry = self.entries.remove(key);
        if entry.is_some() {
            self.given.push(key);
        }
        entry
    }

    /// Whether `key` stood there, good or bad, and was taken already.
    pub(super) fn had(&self, key: &str) -> bool {
        self.given.contains(&key)
    }

    /// Notes a value of another type, which gives none.
    fn wrong<T>(&self, reader: &mut Reader, key: &str, entry_at: usize, want: &str, found: &DeValue) -> Option<T> {
        reader.fault(entry_at, format!("{} must be {want}, not {}", self.path(key), a_kind(found)));
        None
    }

    /// The table `key`; an empty one when it is not there.
    pub(super) fn table(&mut self, reader: &mut Reader, key: &'static str) -> Section<'t> {
        let name = self.path(key);
        match self.take(key) {
            None => Section::new(name, self.at, DeTable::new()),
            Some(Entry { at, value: DeValue::Table(table), .. }) => Section::new(name, at, table),
            Some(entry) => {
                self.wrong::<()>(reader, key, entry.at, "a table", &entry.value);
                Section::new(name, entry.at, DeTable::new())
            }
        }
    }

    /// Every table in this one, by name: `[controllers.NAME]`.
    pub(super) fn tables(mut self, reader: &mut Reader) -> Vec<(String, Section<'t>)> {
        let mut all = Vec::new();
        for (key, entry) in std::mem::take(&mut self.entries) {
            let name = self.path(&key);
            match entry.value {
                DeValue::Table(table) => all.push((key, Section::new(name, entry.key_at, table))),
                other => drop(self.wrong::<()>(reader, &key, entry.at, "a table", &other)),
            }
        }
        all
    }

    /// The string `key`.
    pub(super) fn string(&mut self, reader: &mut Reader, key: &'static str) -> Option<Spot<String>> {
        match self.take(key)? {
            Entry { at, value: DeValue::String(text), .. } => Some(Spot { value: text.into_owned(), at }),
            entry => self.wrong(reader, key, entry.at, "a string", &entry.value),
        }
    }

    /// The path `key`, absolute; an empty string is none.
    pub(super) fn path_value(&mut self, reader: &mut Reader, key: &'static str) -> Option<PathBuf> {
        let text = self.string(reader, key)?;
        if text.value.is_empty() {
            return None;
        }
        reader.check_path(text.at, &self.path(key), &text.value);
        match std::path::absolute(&text.value) {
            Ok(path) => Some(path),
            Err(error) => reader.refuse(text.at, format!("{} is no path: {error}", self.path(key))),
        }
    }

    /// Whether `key` is set.
    pub(super) fn truth(&mut self, reader: &mut Reader, key: &'static str) -> Option<bool> {
        match self.take(key)? {
            Entry { value: DeValue::Boolean(truth), .. } => Some(truth),
            entry => self.wrong(reader, key, entry.at, "true or false", &entry.value),
        }
    }

    /// The whole number `key`, from `least` to `most`.
    pub(super) fn number(&mut self, reader: &mut Reader, key: &'static str, least: u64, most: u64) -> Option<u64> {
        let entry = self.take(key)?;
        let number = match &entry.value {
            DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix()).ok(),
            other => return self.wrong(reader, key, entry.at, "a whole number", other),
        };
        match number.and_then(|number| u64::try_from(number).ok()).filter(|n| (least..=most).contains(n)) {
            Some(number) => Some(number),
            None => reader.refuse(entry.at, format!("{} must be from {least} to {most}", self.path(key))),
        }
    }

    /// The time `key`, in seconds, whole or not, from `least` to a day.
    pub(super) fn seconds(&mut self, reader: &mut Reader, key: &'static str, least: f64) -> Option<Duration> {
        let entry = self.take(key)?;
        let seconds = match &entry.value {
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok().map(|n| n as f64),
            DeValue::Float(number) => number.as_str().parse().ok(),
            other => return self.wrong(reader, key, entry.at, "a number of seconds", other),
        };
        match seconds.filter(|seconds| (least..=86400.0).contains(seconds)) {
            Some(seconds) => Some(Duration::from_secs_f64(seconds)),
            None => reader.refuse(entry.at, format!("{} must be from {least} to 86400 seconds", self.path(key))),
        }
    }

    /// The list of strings `key`.
    pub(super) fn strings(&mut self, reader: &mut Reader, key: &'static str) -> Option<Spot<Vec<String>>> {
        let entry = self.take(key)?;
        self.list(reader, key, entry, "a list of strings")
    }

    /// The string `key`, or a list of them.
    pub(super) fn one_or_more(&mut self, reader: &mut Reader, key: &'static str) -> Option<Spot<Vec<String>>> {
        let entry = self.take(key)?;
        if let DeValue::String(text) = &entry.value {
            return Some(Spot { value: vec![text.clone().into_owned()], at: entry.at });
        }
        self.list(reader, key, entry, "a string or a list of strings")
    }

    /// The strings of a list, which `want` describes. Each item that is no string is a fault of its own.
    fn list(&self, reader: &mut Reader, key: &str, entry: Entry, want: &str) -> Option<Spot<Vec<String>>> {
        let DeValue::Array(items) = &entry.value else {
            return self.wrong(reader, key, entry.at, want, &entry.value);
        };
        let mut list = Vec::new();
        for item in items.iter() {
            match item.get_ref() {
                DeValue::String(text) => list.push(text.clone().into_owned()),
                other => reader.fault(
                    item.span().start,
                    format!("{} must be a list of strings, and this is {}", self.path(key), a_kind(other)),
                ),
            }
        }
        Some(Spot { value: list, at: entry.at })
    }

    /// The table of strings `key`.
    pub(super) fn string_map(&mut self, reader: &mut Reader, key: &'static str) -> BTreeMap<String, String> {
        let section = self.table(reader, key);
        let mut map = BTreeMap::new();
        let name = section.name.clone();
        for (key, entry) in section.entries {
            match entry.value {
                DeValue::String(text) => drop(map.insert(key, text.into_owned())),
                other => reader.fault(entry.at, format!("{name}.{key} must be a string, not {}", a_kind(&other))),
            }
        }
        map
    }

    /// The value `key`, of whatever type, as JSON.
    pub(super) fn value(&mut self, reader: &mut Reader, key: &'static str) -> Option<Spot<Value>> {
        let entry = self.take(key)?;
        match to_json(&entry.value) {
            Ok(value) => Some(Spot { value, at: entry.at }),
            Err(reason) => reader.refuse(entry.at, format!("{}: {reason}", self.path(key))),
        }
    }

    /// The table `key` as JSON.
    pub(super) fn json(&mut self, reader: &mut Reader, key: &'static str) -> Spot<Map<String, Value>> {
        let section = self.table(reader, key);
        let (name, at) = (section.name.clone(), section.at);
        let mut map = Map::new();
        for (key, entry) in section.entries {
            match to_json(&entry.value) {
                Ok(value) => drop(map.insert(key, value)),
                Err(reason) => reader.fault(entry.at, format!("{name}.{key}: {reason}")),
            }
        }
        Spot { value: map, at }
    }

    /// Ends the section: every key that nobody took is unknown.
    pub(super) fn end(self, reader: &mut Reader) {
        for (key, entry) in &self.entries {
            let (is_section, path) = (matches!(entry.value, DeValue::Table(_)), self.path(key));
            let near = closest(key, &self.known);
            let hint = match near {
                Some(near) if is_section => format!("did you mean [{}]?", self.path(near)),
                Some(near) => format!("did you mean {near}?"),
                None => format!("known here: {}", self.known.join(", ")),
            };
            if is_section && near.is_some() {
                reader.misspelled.push(reader.line(entry.key_at));
            }
            reader
                .fault(entry.key_at, format!("unknown {} {path}; {hint}", if is_section { "section" } else { "key" }));
        }
    }
}

fn a_kind(value: &DeValue) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn to_json(value: &DeValue) -> Result<Value, String> {
    match value {
        DeValue::String(text) => Ok(Value::from(text.as_ref())),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map(Value::from)
            .map_err(|_| "the number does not fit 64 bits".to_owned()),
        DeValue::Float(number) => {
            let float: Option<f64> = number.as_str().parse().ok().filter(|float: &f64| float.is_finite());
            float.map(Value::from).ok_or_else(|| "JSON knows no such number".to_owned())
        }
        DeValue::Boolean(truth) => Ok(Value::from(*truth)),
        DeValue::Datetime(date) => Ok(Value::from(date.to_string())),
        DeValue::Array(items) => {
            items.iter().map(|item| to_json(item.get_ref())).collect::<Result<_, _>>().map(Value::Array)
        }
        DeValue::Table(table) => table
            .iter()
            .map(|(key, value)| Ok((key.get_ref().to_string(), to_json(value.get_ref())?)))
            .collect::<Result<_, _>>()
            .map(Value::Object),
    }
}

/// The known key that was most likely meant: the same letters but for two.
fn closest(key: &str, known: &[&'static str]) -> Option<&'static str> {
    known
        .iter()
        .map(|name| (distance(key, name), *name))
        .filter(|(distance, name)| *distance <= 2 && *distance < name.len())
        .min()
        .map(|(_, name)| name)
}

/// How many letters must be changed, added or taken away to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

//! The fields of a JSON object that people have written: each wrong one has a sentence that says so.

use jscommon::command::{shorten, whole};
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// Reads fields and gathers their faults. A field that is null counts as missing.
pub(crate) struct Fields<'a> {
    map: &'a Map<String, Value>,
    faults: Vec<String>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(map: &'a Map<String, Value>) -> Fields<'a> {
        Fields { map, faults: Vec::new() }
    }

    /// Notes a fault.
    pub(crate) fn fault(&mut self, why: impl Into<String>) {
        self.faults.push(why.into());
    }

    /// Returns `value`, or all faults in one text.
    pub(crate) fn finish<T>(self, value: T) -> Result<T, String> {
        if self.faults.is_empty() { Ok(value) } else { Err(self.faults.join("; ")) }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Reads a field by a function, of which an error is the whole sentence.
    pub(crate) fn read<T>(&mut self, name: &str, read: impl FnOnce(&'a Value) -> Result<T, String>) -> Option<T> {
        read(self.get(name)?).map_err(|why| self.fault(why)).ok()
    }

    pub(crate) fn text(&mut self, name: &str) -> Option<&'a str> {
        self.read(name, |value| match value {
            Value::String(text) if text.contains('\0') => Err(format!("{name} must not hold a NUL character")),
            Value::String(text) => Ok(text.as_str()),
            other => Err(format!("{name} must be a string, not {}", shorten(other))),
        })
    }

    pub(crate) fn flag(&mut self, name: &str) -> bool {
        let flag = self.read(name, |value| {
            value.as_bool().ok_or_else(|| format!("{name} must be true or false, not {}", shorten(value)))
        });
        flag.unwrap_or(false)
    }

    pub(crate) fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Option<f64> {
        self.read(name, |value| {
            value.as_f64().filter(|number| range.contains(number)).ok_or_else(|| {
                format!("{name} must be a number from {} to {}, not {}", range.start(), range.end(), shorten(value))
            })
        })
    }

    pub(crate) fn whole(&mut self, name: &str, range: RangeInclusive<i64>) -> Option<i64> {
        self.read(name, |value| {
            whole(value).filter(|number| range.contains(number)).ok_or_else(|| {
                let (least, most) = (range.start(), range.end());
                format!("{name} must be a whole number from {least} to {most}, not {}", shorten(value))
            })
        })
    }

    /// Reads a list of texts; numbers and truth values stand for theirs.
    pub(crate) fn words(&mut self, name: &str) -> Option<Vec<String>> {
        self.read(name, |value| match value {
            Value::Array(list) => list.iter().map(|item| scalar(name, item)).collect(),
            other => Err(format!("{name} must be a list of strings, not {}", shorten(other))),
        })
    }

    /// Reads an object.
    pub(crate) fn object(&mut self, name: &str) -> Option<&'a Map<String, Value>> {
        self.read(name, |value| {
            value.as_object().ok_or_else(|| format!("{name} must be an object, not {}", shorten(value)))
        })
    }
}

/// Reads the data of a command that takes an object; no data is an empty one.
pub(crate) fn object(data: &str) -> Result<Map<String, Value>, String> {
    match data.trim() {
        "" => Ok(Map::new()),
        text => match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => Ok(fields),
            // Not the value: the data of a command may be secret.
            Ok(other) => Err(format!("data must be a JSON object, not {}", kind(&other))),
            Err(fault) => Err(format!("data is not JSON: {fault}")),
        },
    }
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Reads a text, or the number or truth value that stands for it.
pub(crate) fn scalar(name: &str, value: &Value) -> Result<String, String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        other => return Err(format!("{name} must hold strings, not {}", shorten(other))),
    };
    match text.contains('\0') {
        true => Err(format!("{name} must not hold a NUL character")),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn several_wrong_fields_are_all_told() {
        let given = json!({"a": 1, "b": "x", "c": 300, "d": null, "e": ["f", 1]});
        let mut fields = Fields::new(given.as_object().unwrap());
        assert_eq!((fields.text("a"), fields.flag("b"), fields.whole("c", 0..=9)), (None, false, None));
        assert_eq!((fields.text("d"), fields.words("e")), (None, Some(vec!["f".into(), "1".into()])));
        let faults = fields.finish(()).unwrap_err();
        let expected = "a must be a string, not 1; b must be true or false, not \"x\"; c must be a whole number from 0 to 9, not 300";
        assert_eq!(faults, expected);
    }

    #[test]
    fn data_is_an_object_or_nothing() {
        assert_eq!(object(" "), Ok(Map::new()));
        assert_eq!(object("{\"a\":1}").unwrap()["a"], 1);
        assert!(object("[]").unwrap_err().contains("JSON object") && object("x").unwrap_err().contains("not JSON"));
    }

    #[test]
    fn data_that_is_no_object_is_not_repeated_in_the_fault() {
        for data in ["\"pa55word\"", "[\"pa55word\"]", "\"pa55word", "pa55word", "{\"pa55word\"}", "55"] {
            let fault = object(data).unwrap_err();
            assert!(!fault.contains("55"), "{fault}");
        }
    }
}

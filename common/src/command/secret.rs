//! Arguments that are marked as secret, and the form in which they may be shown.

use serde_json::{Map, Value};

/// Whether `args` mark the command's `env` and `data` as secret: whatever is not plainly false does.
///
/// The agent refuses a value that is no boolean. Until then the command is shown in places that others read.
pub fn is_secret(args: &Map<String, Value>) -> bool {
    match args.get("secret") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(secret)) => *secret,
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(Value::String(text)) => !matches!(text.as_str(), "" | "false"),
        Some(Value::Array(_) | Value::Object(_)) => true,
    }
}

/// The arguments as they may be shown: where they are marked as secret, without what `env` holds.
pub fn shown_args(args: &Map<String, Value>) -> Map<String, Value> {
    let mut shown = args.clone();
    hide_secrets(&mut shown);
    shown
}

/// Takes out of arguments what may not be shown, see [`shown_args`].
pub fn hide_secrets(args: &mut Map<String, Value>) {
    if is_secret(args) {
        match args.get_mut("env") {
            Some(Value::Object(env)) => env.values_mut().for_each(|value| *value = "***".into()),
            Some(other) => *other = "***".into(),
            None => {}
        }
    }
}

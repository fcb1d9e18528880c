//! Tells how programs of Windows read their command line, and quotes for them.
//!
//! Pure: text in, text out, so that every system can test it.

use std::borrow::Cow;

/// How a program of Windows reads its command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommandLine {
    /// As programs in C do: quotes and backslashes.
    Quoted,
    /// As a batch file does: `cmd.exe` reads the line first.
    Batch,
    /// As `cmd.exe` itself does: the line is taken as it stands.
    Raw,
}

impl CommandLine {
    /// Returns how the program of this name or path reads its line.
    pub(crate) fn of(program: &str) -> CommandLine {
        let name = program.rsplit(['\\', '/', ':']).next().unwrap_or(program);
        // The system drops them from a file's name.
        let name = name.trim_end_matches(['.', ' ']).to_ascii_lowercase();
        match name.as_str() {
            "cmd" | "cmd.exe" => CommandLine::Raw,
            _ if name.ends_with(".bat") || name.ends_with(".cmd") => CommandLine::Batch,
            _ => CommandLine::Quoted,
        }
    }
}

/// Returns an argument as it stands in the line of `cmd.exe`: an empty one would be none.
#[cfg(any(windows, test))]
pub(crate) fn raw_argument(arg: &str) -> &str {
    if arg.is_empty() { "\"\"" } else { arg }
}

/// Refuses an argument that no quoting brings into a batch file unchanged.
#[cfg(any(windows, test))]
pub(crate) fn check_batch_argument(arg: &str) -> Result<(), String> {
    match arg.contains(['\r', '\n', '\0']) {
        true => Err("an argument of a batch file cannot hold a line end or a NUL character: give it on stdin".into()),
        false => Ok(()),
    }
}

/// Returns a value as it is filled into a line of `cmd.exe`.
///
/// `line` is the line before the value, `is_whole` tells whether the value is an argument by itself. A
/// character that `cmd.exe` can take for its own syntax even between quotes is refused.
pub(crate) fn raw_value<'a>(key: &str, value: &'a str, line: &str, is_whole: bool) -> Result<Cow<'a, str>, String> {
    // `cmd /c` may take the line's outer quotes away, so that quotes do not protect `&` and its like.
    let special = |c: char| matches!(c, '"' | '%' | '!' | '&' | '|' | '<' | '>' | '^') || c.is_control();
    if let Some(bad) = value.chars().find(|c| special(*c)) {
        let shown = bad.escape_default();
        return Err(format!("{key} must not hold {shown}, which cmd.exe takes for its own: give it on stdin"));
    }
    let is_quoted = line.matches('"').count() % 2 == 1;
    let parts = |c: char| c.is_whitespace() || matches!(c, ',' | ';' | '=' | '(' | ')' | '@');
    if is_quoted || !(value.contains(parts) || value.is_empty() && is_whole) {
        return Ok(value.into());
    }
    // A backslash before a quote would make it a part of the text.
    let backslashes = value.len() - value.trim_end_matches('\\').len();
    Ok(format!("\"{value}{}\"", "\\".repeat(backslashes)).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_is_known_by_its_file_name() {
        for (program, want) in [
            ("cmd", CommandLine::Raw),
            ("CMD.exe", CommandLine::Raw),
            (r"C:\Windows\System32\cmd.exe", CommandLine::Raw),
            ("c:/windows/system32/cmd", CommandLine::Raw),
            ("C:cmd.exe", CommandLine::Raw),
            ("cmd.exe. .", CommandLine::Raw),
            (r"C:\jobs\cmd.bat", CommandLine::Batch),
            (r"C:\jobs\cmd.cmd", CommandLine::Batch),
            ("x.BAT", CommandLine::Batch),
            ("x.bat .", CommandLine::Batch),
            (r"C:\cmd\tool.exe", CommandLine::Quoted),
            (r"C:\cmd.exe\tool", CommandLine::Quoted),
            ("cmd.com", CommandLine::Quoted),
            ("cmd.exe.txt", CommandLine::Quoted),
            ("xcmd.exe", CommandLine::Quoted),
            ("", CommandLine::Quoted),
        ] {
            assert_eq!(CommandLine::of(program), want, "{program}");
        }
    }

    #[test]
    fn empty_raw_argument_is_kept() {
        assert_eq!((raw_argument(""), raw_argument("/c"), raw_argument("a b")), ("\"\"", "/c", "a b"));
    }

    #[test]
    fn batch_argument_with_a_line_end_is_refused() {
        for bad in ["a\nb", "\r", "a\0"] {
            assert!(check_batch_argument(bad).unwrap_err().contains("batch file"), "{bad:?}");
        }
        for good in ["", "x&echo y", "a \"b\" %PATH%"] {
            assert_eq!(check_batch_argument(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn value_is_quoted_where_the_line_does_not_quote_it() {
        for (line, value, is_whole, want) in [
            ("/c dir ", r"C:\x", true, r"C:\x"),
            ("/c dir ", r"C:\Program Files (x86)", true, r#""C:\Program Files (x86)""#),
            ("/c dir \"", r"C:\Program Files (x86)", false, r"C:\Program Files (x86)"),
            ("/c dir \"a\" ", "b c", true, "\"b c\""),
            ("/c dir --at=", "a;b", false, "\"a;b\""),
            ("/c dir ", r"C:\a b\", true, r#""C:\a b\\""#),
            ("/c tool ", "", true, "\"\""),
            ("/c tool --at=", "", false, ""),
            ("/c tool \"", "", false, ""),
            ("/c tool ", "é", true, "é"),
        ] {
            assert_eq!(raw_value("k", value, line, is_whole).as_deref(), Ok(want), "{line}{value}");
        }
    }

    #[test]
    fn value_with_syntax_of_cmd_is_refused() {
        for bad in ["x&echo y", "a|b", "<f", ">f", "^", "%PATH%", "!x!", "a\"b", "a\nb", "\r", "\t", "\u{1a}"] {
            for line in ["/c echo ", "/c echo \""] {
                let fault = raw_value("k", bad, line, false).unwrap_err();
                assert!(fault.starts_with("k must not hold ") && !fault.contains(['\n', '\r']), "{fault}");
            }
        }
    }
}

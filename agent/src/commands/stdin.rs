//! `input` and `resize`: the reading of their data.
//!
//! **Does not own** the jobs, which are the supervisor's, or what becomes of a piece ([`crate::stdin`]).

use crate::job::args::terminal_size;
use crate::job::fields::{Fields, object};
use crate::platform::TerminalSize;
use crate::stdin::Piece;
use jscommon::Command;
use jscommon::base64_text;

/// Bytes of one piece.
const MAX_PIECE_BYTES: usize = 256 << 10;

/// Whether this `input` says where its piece stands.
pub(super) fn has_offset(command: &Command) -> bool {
    object(&command.data).is_ok_and(|data| data.get("offset").is_some_and(|offset| !offset.is_null()))
}

/// The piece of `input`: `{"offset", "data": base64, "eof"}`.
pub(crate) fn piece(data: &mut Fields) -> Piece {
    let bytes = data.read("data", |value| {
        let bytes = value.as_str().and_then(base64_text::decode).ok_or("data must be base64, with its padding")?;
        match bytes.len() <= MAX_PIECE_BYTES {
            true => Ok(bytes),
            false => Err(format!("data has {} bytes, and a piece has at most {MAX_PIECE_BYTES}", bytes.len())),
        }
    });
    let offset = data.whole("offset", 0..=i64::MAX).map(|offset| offset as u64);
    Piece { offset, bytes: bytes.unwrap_or_default(), eof: data.flag("eof") }
}

/// The size of `resize`: `{"rows", "cols"}`.
pub(crate) fn size(data: &mut Fields) -> TerminalSize {
    if data.get("rows").is_none() || data.get("cols").is_none() {
        data.fault("data has no rows or no cols, as in {\"id\": \"…\", \"rows\": 24, \"cols\": 80}");
    }
    terminal_size(data, TerminalSize { rows: 1, columns: 1 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn data_of_a_piece_is_checked() {
        let read = |data: Value| {
            let data = data.as_object().unwrap().clone();
            let mut fields = Fields::new(&data);
            let piece = piece(&mut fields);
            fields.finish(piece)
        };
        assert_eq!(
            read(json!({"data": "YWI=", "offset": 3})),
            Ok(Piece { offset: Some(3), bytes: b"ab".into(), eof: false })
        );
        assert_eq!(read(json!({"eof": true})), Ok(Piece { offset: None, bytes: vec![], eof: true }));
        assert_eq!(
            read(json!({"data": base64_text::encode(&[7; MAX_PIECE_BYTES])})).unwrap().bytes.len(),
            MAX_PIECE_BYTES
        );
        for (data, reason) in [
            (json!({"data": "YWI"}), "base64"),
            (json!({"data": 1}), "base64"),
            (json!({"data": base64_text::encode(&[7; MAX_PIECE_BYTES + 1])}), "at most 262144"),
            (json!({"offset": -1}), "offset must be"),
            (json!({"eof": 1}), "eof must be"),
        ] {
            let fault = read(data).unwrap_err();
            assert!(fault.contains(reason), "{fault}");
        }
    }
}

//! Text in the code page of old programs.

use crate::platform::Decode;
use std::borrow::Cow;
use windows::Win32::Globalization::{GetOEMCP, MULTI_BYTE_TO_WIDE_CHAR_FLAGS, MultiByteToWideChar};

/// Decodes output that is no UTF-8: console programs write in the system's OEM code page.
pub(crate) const DECODE: Option<Decode> = Some(decode);

#[allow(unsafe_code)] // both calls read `bytes` and fill `wide`, whose lengths they are given
fn decode(bytes: &[u8]) -> Cow<'_, str> {
    let page = unsafe { GetOEMCP() };
    // A page has at most one UTF-16 unit for a byte.
    let mut wide = vec![0; bytes.len()];
    let length = unsafe { MultiByteToWideChar(page, MULTI_BYTE_TO_WIDE_CHAR_FLAGS(0), bytes, Some(&mut wide)) };
    match usize::try_from(length) {
        Ok(length @ 1..) => String::from_utf16_lossy(&wide[..length.min(wide.len())]).into(),
        _ => String::from_utf8_lossy(bytes),
    }
}

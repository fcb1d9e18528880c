//! The little HTTP that a node of the swarm speaks. Pure.

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) retry_after: Option<u64>,
    pub(crate) closes: bool,
    pub(crate) body: Vec<u8>,
}

/// A request's bytes.
pub(crate) fn request(method: &str, path: &str, token: Option<&str>, body: Option<&[u8]>) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: swarm\r\n");
    if let Some(token) = token {
        head.push_str(&format!("Authorization: Bearer {token}\r\n"));
    }
    if let Some(body) = body {
        head.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body.unwrap_or_default());
    bytes
}

/// Takes a whole answer from the front of `bytes`; nothing while some of it is missing.
pub(crate) fn take(bytes: &mut Vec<u8>) -> Option<Answer> {
    take_as(bytes, false)
}

/// The same; the answer to a HEAD is `bodiless`, whatever length it tells.
pub(crate) fn take_as(bytes: &mut Vec<u8>, bodiless: bool) -> Option<Answer> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).unwrap_or_default();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let field = |name: &str| {
        let line =
            head.lines().find(|line| line.len() > name.len() && line[..name.len()].eq_ignore_ascii_case(name))?;
        line[name.len()..].strip_prefix(':').map(str::trim)
    };
    let length: usize = field("content-length").filter(|_| !bodiless).and_then(|text| text.parse().ok()).unwrap_or(0);
    if bytes.len() < end + length {
        return None;
    }
    let retry_after = field("retry-after").and_then(|text| text.parse().ok());
    let closes = field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let body = bytes[end..end + length].to_vec();
    bytes.drain(..end + length);
    if bytes.is_empty() {
        *bytes = Vec::new();
    }
    Some(Answer { status, retry_after, closes, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_whole() {
        let text = b"HTTP/1.1 503 Busy\r\nretry-after: 3\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}";
        for end in 0..text.len() {
            assert_eq!(take(&mut text[..end].to_vec()), None);
        }
        let mut two = [&text[..], b"HTTP/1.1 204 No Content\r\n\r\n"].concat();
        let answer = Answer { status: 503, retry_after: Some(3), closes: true, body: b"{}".to_vec() };
        assert_eq!(take(&mut two), Some(answer));
        assert_eq!(take(&mut two).map(|answer| (answer.status, answer.closes)), Some((204, false)));
        assert!(two.is_empty());
    }
}

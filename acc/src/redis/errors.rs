//! Errors of Redis: what each means for the caller, and the sentence for people. Pure.
//!
//! Owns: the codes of errors that are made here and that no server answers with.

use redis::{ErrorKind, RedisError, ServerErrorKind};

/// The code of the error for an older one; no server answers with it.
pub(crate) const TOO_OLD: &str = "TOOOLD";
/// The code of the error for a read that a signal has interrupted: nothing is wrong with the server, and only the
/// connection is of no more use. No server answers with it.
pub(crate) const INTERRUPTED: &str = "INTERRUPTED";
/// The code of an error that a key is at fault for, which is named; no server answers with it.
pub(crate) const SPOILT: &str = "SPOILT";
/// The code of the error of a call whose server does not answer; no server answers with it.
pub(crate) const SERVER_AWAY: &str = "SERVERAWAY";
/// Longest part of an answer that is logged, in bytes.
const MAX_LOGGED_BYTES: usize = 300;

/// Whether a signal has interrupted the call. It may have been done; Redis is there.
pub(crate) fn is_interrupted(error: &RedisError) -> bool {
    error.code() == Some(INTERRUPTED)
}

/// Whether the connection is of no more use after this error.
pub(crate) fn is_broken(error: &RedisError) -> bool {
    if is_moving(error) {
        return false;
    }
    if is_interrupted(error) {
        return true;
    }
    // Another server of the cluster may know more.
    matches!(error.kind(), ErrorKind::Server(ServerErrorKind::ClusterDown))
        || !matches!(
            error.kind(),
            ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::UnexpectedReturnType | ErrorKind::Parse
        )
        || error.code() == Some("NOAUTH")
        || error.code() == Some("READONLY")
        || error.code() == Some("LOADING")
}

/// Whether a cluster says that the keys are on their way from one server to another. That may last, and is
/// nothing against the connection, nor against calls for other keys.
pub(crate) fn is_moving(error: &RedisError) -> bool {
    use ServerErrorKind::{Ask, Moved, TryAgain};
    matches!(error.kind(), ErrorKind::Server(Moved | Ask | TryAgain))
}

/// Whether a server of a cluster does not answer that has the key of this call. It may have done the call, and is
/// nothing against the connection, nor against calls for other keys.
pub(crate) fn is_away(error: &RedisError) -> bool {
    error.code() == Some(SERVER_AWAY)
}

/// Whether a key is of another type than the call needs, also where a script has met it.
pub(crate) fn is_wrong_type(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE")
        || error.detail().is_some_and(|detail| detail.contains("WRONGTYPE"))
        || (error.code() == Some(SPOILT) && error.detail().is_some_and(|detail| detail.contains(" and must be a ")))
}

/// Whether the error comes of what lies in a key: its type is another one, or a script cannot read it.
pub(crate) fn is_spoilt(error: &RedisError) -> bool {
    let of_script = |detail: &str| detail.contains("user_script");
    error.code() == Some(SPOILT)
        || is_wrong_type(error)
        || matches!(error.kind(), ErrorKind::UnexpectedReturnType | ErrorKind::Parse)
        || (error.code() == Some("ERR") && error.detail().is_some_and(of_script))
}

/// Whether the error concerns some keys alone: their slot is being moved, their server is away, or they hold something
/// else than they should. Calls for other keys go on.
pub(crate) fn is_partial(error: &RedisError) -> bool {
    is_away(error) || is_moving(error) || is_spoilt(error)
}

/// The error as a sentence for people: what is wrong, and what to do where that is known. An answer that is not known
/// is given in the server's own words.
pub(crate) fn describe(error: &RedisError) -> String {
    let detail = error.detail().unwrap_or_default();
    match error.code() {
        Some(TOO_OLD | INTERRUPTED | SERVER_AWAY | SPOILT) => detail.to_owned(),
        Some("NOAUTH") => "it asks for a password: give -r redis://user:password@host:port".into(),
        Some("WRONGPASS") => format!("it refuses the password: {}", words(error)),
        Some("OOM") => "it is full (maxmemory is reached): free memory or raise the limit".into(),
        Some("READONLY") => "it is a read-only replica: give the address of the master".into(),
        Some("MISCONF") => "it cannot save to its disk and takes no writes".into(),
        Some("LOADING") => "it is still loading its data".into(),
        _ if is_moving(error) => {
            "a slot of the cluster is being moved; what lies in it waits until that is done".into()
        }
        _ if detail.contains("SELECT is not allowed in cluster mode") => {
            "it is one server of a cluster, which has no numbered databases: leave the number out of -r".into()
        }
        Some(_) => words(error),
        None if error.kind() == ErrorKind::AuthenticationFailed => "it refuses the password".into(),
        // Without the library's name of its kind.
        None => error.to_string().replacen(&format!(" - {:?}", error.kind()), "", 1),
    }
}

/// Returns the error text of a server without control characters, shortened when it is long.
fn words(error: &RedisError) -> String {
    let said = format!("{} {}", error.code().unwrap_or_default(), error.detail().unwrap_or_default());
    let said: String = said.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if said.len() <= MAX_LOGGED_BYTES {
        return said;
    }
    let end = (0..=MAX_LOGGED_BYTES).rev().find(|at| said.is_char_boundary(*at)).unwrap_or(0);
    // At the end of a sentence, where there is one.
    match said[..end].rfind(". ") {
        Some(dot) => said[..=dot].to_owned(),
        None => format!("{}...", &said[..end]),
    }
}

/// Whether the server is of a version that is too old.
pub(crate) fn is_too_old(error: &RedisError) -> bool {
    error.code() == Some(TOO_OLD)
}

/// The error for an answer of another form than it must have.
pub(crate) fn unfit(error: &RedisError, keys: &[String]) -> RedisError {
    let what = format!("what the key {} holds cannot be read: {}", keys.join(" or "), describe(error));
    redis::make_extension_error(SPOILT.into(), Some(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_made_anew_where_that_helps() {
        let broken = |answer: &str| {
            let value = redis::parse_redis_value(format!("-{answer}\r\n").as_bytes()).unwrap();
            is_broken(&value.extract_error().unwrap_err())
        };
        // A slot that stays open is nothing against the connection.
        for answer in ["MOVED 3999 127.0.0.1:6381", "ASK 3999 127.0.0.1:6381", "TRYAGAIN keys move"] {
            assert!(!broken(answer), "{answer}");
        }
        for answer in ["CLUSTERDOWN", "READONLY a replica", "LOADING the dataset", "NOAUTH Authentication required."] {
            assert!(broken(answer), "{answer}");
        }
        for answer in ["ERR syntax error", "WRONGTYPE no list", "NOSCRIPT unknown", "OOM full", "NOPERM no"] {
            assert!(!broken(answer), "{answer}");
        }
        for (answer, is) in [
            ("WRONGTYPE Operation against a key holding the wrong kind of value", true),
            ("WRONGTYPE Operation against a key script: 1234, on @user_script:6.", true),
            ("ERR Error running script (call to f_12): @user_script:6: WRONGTYPE Operation against a key", true),
            ("OOM full", false),
        ] {
            let value = redis::parse_redis_value(format!("-{answer}\r\n").as_bytes()).unwrap();
            assert_eq!(is_wrong_type(&value.extract_error().unwrap_err()), is, "{answer}");
        }
        assert!(is_broken(&RedisError::from((ErrorKind::Io, "cut"))));
        assert!(!is_broken(&RedisError::from((ErrorKind::UnexpectedReturnType, "a list"))));
        // A value that is no number, say.
        assert!(!is_broken(&RedisError::from((ErrorKind::Parse, "a value"))));
    }

    #[test]
    fn an_unknown_answer_stands_in_the_servers_own_words() {
        let said = |answer: &str| {
            let value = redis::parse_redis_value(format!("-{answer}\r\n").as_bytes()).unwrap();
            describe(&value.extract_error().unwrap_err())
        };
        assert_eq!(said("ERR max number of clients reached"), "ERR max number of clients reached");
        let refused = said("WRONGPASS invalid username-password pair or user is disabled.");
        assert!(refused.contains("refuses the password: WRONGPASS invalid username-password pair"), "{refused}");
        let long =
            format!("DENIED Redis is in protected mode. Only loopback may connect. If you want {}", "x ".repeat(200));
        assert_eq!(said(&long), "DENIED Redis is in protected mode. Only loopback may connect.");
        assert!(said("ERR SELECT is not allowed in cluster mode").contains("leave the number out"));
    }
}

//! Answers that the dispatcher gives itself.

use super::item::{Failure, Item, failure};
use crate::metrics::Metrics;
use crate::model::answer::{self, Answer};
use crate::redis::Conn;
use redis::RedisResult;

/// Delivers answers; what cannot be answered now is held. Each goes with the index of its item.
pub(super) fn give(
    metrics: &Metrics,
    conn: &mut Conn,
    items: &mut [Item],
    answers: Vec<(usize, Answer)>,
) -> RedisResult<()> {
    let (owners, answers): (Vec<usize>, Vec<Answer>) = answers.into_iter().unzip();
    match answer::give(metrics, conn, &answers) {
        Err(e) => drop(failure(e)?),
        Ok(()) => return Ok(()),
    }
    for (i, answer) in owners.into_iter().zip(&answers) {
        let Err(e) = answer::give(metrics, conn, std::slice::from_ref(answer)) else { continue };
        let mut against = failure(e)?;
        if let Failure::Spoilt(sentence) = &against {
            items[i].note(sentence.clone());
            // Perhaps only the job's hash is spoilt, and a waiting client can still get its answer.
            match answer::push_alone(metrics, conn, answer) {
                Ok(()) => continue,
                Err(e) => against = failure(e)?,
            }
        }
        match against {
            Failure::Later => items[i].deferred.get_or_insert_default().extend(answer.target),
            Failure::Spoilt(sentence) => items[i].note(sentence),
        }
    }
    Ok(())
}

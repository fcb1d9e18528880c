//! Results that the dispatcher makes itself.

use super::item::{Failure, Item, failure};
use crate::model::own_results::{Deliverer, OwnResult};
use crate::redis::Conn;
use redis::RedisResult;

/// Delivers results; what cannot be answered now is held. Each goes with the index of its item.
pub(super) fn deliver_or_defer(
    deliverer: Deliverer<'_>,
    conn: &mut Conn,
    items: &mut [Item],
    answers: Vec<(usize, OwnResult)>,
) -> RedisResult<()> {
    let (owners, answers): (Vec<usize>, Vec<OwnResult>) = answers.into_iter().unzip();
    match deliverer.deliver(conn, &answers) {
        Err(e) => drop(failure(e)?),
        Ok(()) => return Ok(()),
    }
    for (i, answer) in owners.into_iter().zip(&answers) {
        let Err(e) = deliverer.deliver(conn, std::slice::from_ref(answer)) else { continue };
        let mut against = failure(e)?;
        if let Failure::Spoilt(sentence) = &against {
            items[i].note(sentence.clone());
            // Perhaps only the job's hash is spoilt, and a waiting client can still get its answer.
            match deliverer.deliver_alone(conn, answer) {
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

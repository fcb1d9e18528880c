//! Numbers out of repeated measurements. Pure but for the clock.

use std::time::{Duration, Instant};

/// The `q`-quantile (0 to 1) of some numbers, by the nearest rank; 0 of none.
pub(crate) fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = ((sorted.len() as f64 * q).ceil() as usize).clamp(1, sorted.len().max(1));
    sorted.get(rank - 1).copied().unwrap_or(0.0)
}

/// The median.
pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// How long `work` takes, in milliseconds.
#[allow(dead_code)] // A tool for benches that time single steps.
pub(crate) fn millis<T>(work: impl FnOnce() -> T) -> f64 {
    let start = Instant::now();
    let _ = work();
    ms(start.elapsed())
}

/// A duration in milliseconds.
pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// One thing that is measured: its name, and what gives one round's figures.
pub(crate) struct Case<'a> {
    name: String,
    round: Box<dyn FnMut() -> anyhow::Result<Vec<f64>> + 'a>,
}

impl<'a> Case<'a> {
    /// A case whose rounds give a list of figures each, always in the same order.
    pub(crate) fn new(name: &str, round: impl FnMut() -> anyhow::Result<Vec<f64>> + 'a) -> Case<'a> {
        Case { name: name.to_owned(), round: Box::new(round) }
    }
}

/// Runs all cases `rounds` times, interleaved, and gives for each case the medians of its figures.
///
/// One round more goes first and is thrown away: it warms caches and connections.
pub(crate) fn interleaved(rounds: usize, cases: &mut [Case<'_>]) -> anyhow::Result<Vec<Vec<f64>>> {
    let mut figures: Vec<Vec<Vec<f64>>> = vec![Vec::new(); cases.len()];
    for round in 0..=rounds {
        for (case, all) in cases.iter_mut().zip(&mut figures) {
            eprint!("\r\x1b[Kround {round} of {rounds}: {}", case.name);
            let measured = (case.round)()?;
            if round > 0 {
                all.push(measured);
            }
        }
    }
    eprintln!("\r\x1b[K{rounds} rounds, interleaved; medians of the rounds:");
    let columns = |all: &Vec<Vec<f64>>| all.first().map_or(0, Vec::len);
    let medians = |all: &Vec<Vec<f64>>| {
        (0..columns(all)).map(|i| median(&all.iter().map(|round| round[i]).collect::<Vec<f64>>())).collect()
    };
    Ok(figures.iter().map(medians).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_ranks() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!((quantile(&values, 0.0), median(&values), quantile(&values, 0.99)), (1.0, 3.0, 5.0));
        assert_eq!(quantile(&[], 0.5), 0.0);
    }

    #[test]
    fn the_first_round_is_thrown_away() {
        let mut n = 0.0;
        let mut cases = [Case::new("n", || {
            n += 1.0;
            Ok(vec![n, -n])
        })];
        assert_eq!(interleaved(3, &mut cases).unwrap(), [[3.0, -3.0]]);
    }
}

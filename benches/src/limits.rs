//! From measurements to numbers: medians, limits, a table and JSON.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

/// A promise, and what was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Limit {
    /// What is limited.
    pub name: &'static str,
    /// Of both numbers.
    pub unit: &'static str,
    /// The most that it may be, or the least.
    pub limit: f64,
    /// What it is.
    pub actual: f64,
    /// Whether the promise is kept.
    pub pass: bool,
}

/// At most so much.
pub fn limit(name: &'static str, unit: &'static str, limit: f64, actual: f64) -> Limit {
    Limit { name, unit, limit, actual, pass: actual <= limit }
}

/// At least so much.
pub fn at_least(name: &'static str, unit: &'static str, limit: f64, actual: f64) -> Limit {
    Limit { name, unit, limit, actual, pass: actual >= limit }
}

/// The median and the minimum, in milliseconds.
///
/// # Errors
/// If nothing was measured.
pub fn milliseconds(times: &[Duration]) -> anyhow::Result<(f64, f64)> {
    median_and_minimum(times.iter().map(|time| time.as_secs_f64() * 1000.0).collect())
}

/// A MB is 10⁶ bytes.
pub fn megabytes(bytes: u64) -> f64 {
    rounded(bytes as f64 / 1e6)
}

/// To a tenth.
pub fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Of an even number of values, the median is the mean of the two in the middle.
///
/// # Errors
/// If there are no values.
pub fn median_and_minimum(mut values: Vec<f64>) -> anyhow::Result<(f64, f64)> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = values.get(middle).context("nothing was measured")?;
    let lower = if values.len().is_multiple_of(2) { values.get(middle - 1).unwrap_or(upper) } else { upper };
    let minimum = values.first().unwrap_or(lower);
    Ok((rounded(f64::midpoint(*lower, *upper)), rounded(*minimum)))
}

/// What a person reads of the limits.
pub fn table(limits: &[Limit]) -> String {
    let mut text = format!("\n{:38}{:>10}{:>10}\n", "limits", "limit", "actual");
    for Limit { name, unit, limit, actual, pass } in limits {
        let word = if *pass { "pass" } else { "FAIL" };
        text.push_str(&format!("{name:38}{limit:>10.1}{actual:>10.1} {unit}  {word}\n"));
    }
    text
}

/// Writes a report as JSON, for which the folder is made.
///
/// # Errors
/// If that cannot be done.
pub fn write(report: &impl Serialize, path: &Path) -> anyhow::Result<()> {
    let write = || -> anyhow::Result<()> {
        std::fs::create_dir_all(path.parent().context("it has no folder")?)?;
        Ok(std::fs::write(path, serde_json::to_string_pretty(report)? + "\n")?)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_and_one_slow_run_does_not_move_it() {
        for (values, expected) in [
            (vec![3.0, 1.0, 2.0], (2.0, 1.0)),
            (vec![900.0, 1.0, 2.0], (2.0, 1.0)),
            (vec![4.0, 2.0], (3.0, 2.0)),
            (vec![7.04], (7.0, 7.0)),
        ] {
            assert_eq!(median_and_minimum(values).unwrap(), expected);
        }
        median_and_minimum(Vec::new()).unwrap_err();
    }

    #[test]
    fn a_limit_counts_on_its_own_side() {
        assert!(limit("memory", "MB", 12.0, 12.0).pass && !limit("memory", "MB", 12.0, 12.1).pass);
        assert!(at_least("output", "MB/s", 15.0, 15.0).pass && !at_least("output", "MB/s", 15.0, 14.9).pass);
    }
}

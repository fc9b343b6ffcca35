//! How often something may happen: a bucket that fills again over time.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

const SECONDS_A_MINUTE: f64 = 60.0;

/// At most so many a minute, all at once if need be.
pub(crate) struct Rate {
    per_minute: f64,
    bucket: Mutex<Bucket>,
}

struct Bucket {
    left: f64,
    filled: Instant,
}

impl Rate {
    pub(crate) fn per_minute(limit: u32) -> Self {
        Self::starting_at(limit, Instant::now())
    }

    fn starting_at(limit: u32, now: Instant) -> Self {
        let per_minute = f64::from(limit);
        Self { per_minute, bucket: Mutex::new(Bucket { left: per_minute, filled: now }) }
    }

    /// Whether it may happen now; then it counts.
    pub(crate) fn take(&self) -> bool {
        self.take_at(Instant::now())
    }

    fn take_at(&self, now: Instant) -> bool {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let more = now.saturating_duration_since(bucket.filled).as_secs_f64() * self.per_minute;
        bucket.left = (bucket.left + more / SECONDS_A_MINUTE).min(self.per_minute);
        bucket.filled = now;
        let enough = bucket.left >= 1.0;
        if enough {
            bucket.left -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_was_taken_comes_back_with_time_and_no_more_than_that() {
        let start = Instant::now();
        let rate = Rate::starting_at(30, start);
        let taken =
            |now: Instant| std::iter::repeat_with(|| rate.take_at(now)).take_while(|taken| *taken).count();
        assert_eq!(taken(start), 30);
        assert_eq!(taken(start + Duration::from_secs(1)), 0);
        assert_eq!(taken(start + Duration::from_secs(4)), 2);
        assert_eq!(taken(start + Duration::from_secs(3600)), 30);
        // A clock that stands still gives nothing.
        assert_eq!(taken(start), 0);
    }
}

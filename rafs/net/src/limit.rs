//! How much at once, and how fast.

use rafs::store::Priority;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// Lets a number of requests run. Prefetch may use a quarter of them, so that demand always finds room.
#[derive(Debug)]
pub(crate) struct Gate {
    all: Semaphore,
    prefetch: Semaphore,
}

/// Keeps a request's place.
pub(crate) struct Pass<'a> {
    _all: Option<SemaphorePermit<'a>>,
    _prefetch: Option<SemaphorePermit<'a>>,
}

impl Gate {
    pub fn new(max: usize) -> Self {
        let max = max.clamp(1, Semaphore::MAX_PERMITS);
        Self { all: Semaphore::new(max), prefetch: Semaphore::new((max / 4).max(1)) }
    }

    pub async fn pass(&self, priority: Priority) -> Pass<'_> {
        // Neither semaphore is ever closed.
        let prefetch = match priority {
            Priority::Prefetch => self.prefetch.acquire().await.ok(),
            Priority::Demand => None,
        };
        Pass { _all: self.all.acquire().await.ok(), _prefetch: prefetch }
    }
}

/// How far bytes may run ahead of the rate.
const BURST: Duration = Duration::from_millis(100);

/// Bytes a second, over all requests.
#[derive(Debug)]
pub(crate) struct RateLimit {
    bytes_per_second: u64,
    /// When all that was received so far will be paid for.
    paid: Mutex<Instant>,
}

impl RateLimit {
    pub fn new(bytes_per_second: u64) -> Option<Self> {
        (bytes_per_second > 0).then(|| Self { bytes_per_second, paid: Mutex::new(Instant::now()) })
    }

    /// How long to wait now that `bytes` were received.
    pub fn charge(&self, bytes: usize) -> Duration {
        let now = Instant::now();
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        *paid = (*paid).max(now).checked_add(cost).unwrap_or(now);
        paid.saturating_duration_since(now).saturating_sub(BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_held() {
        assert!(RateLimit::new(0).is_none());
        let limit = RateLimit::new(1000).unwrap();
        assert_eq!(limit.charge(50), Duration::ZERO, "a burst is free");
        let wait = limit.charge(1000);
        assert!(wait > Duration::from_millis(900) && wait <= Duration::from_millis(960), "{wait:?}");
    }

    #[tokio::test]
    async fn demand_finds_room_beside_prefetch() {
        let gate = Gate::new(4);
        let _one = gate.pass(Priority::Prefetch).await;
        let second = tokio::time::timeout(Duration::from_millis(20), gate.pass(Priority::Prefetch)).await;
        assert!(second.is_err(), "prefetch has one place of four");
        for _ in 0..3 {
            std::mem::forget(gate.pass(Priority::Demand).await);
        }
        assert!(tokio::time::timeout(Duration::from_millis(20), gate.pass(Priority::Demand)).await.is_err());
    }
}

//! Which source is asked: mirrors in their order as long as they are well, the store itself last.

use crate::endpoint::Endpoint;
use crate::proxy::ping;
use crate::{MirrorOptions, NetError};
use reqwest::{Client, Url};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// A place to ask, and how it fares.
#[derive(Debug)]
pub(crate) struct Source {
    pub endpoint: Box<dyn Endpoint>,
    /// `None`: the store itself, which is always asked.
    pub health: Option<Arc<Health>>,
}

impl Source {
    pub fn succeeded(&self) {
        if let Some(health) = &self.health {
            health.succeeded();
        }
    }

    pub fn failed(&self, reason: &str) {
        if let Some(health) = &self.health {
            health.failed(reason);
        }
    }
}

/// Whose turn it is: each source once, in order, those that are not well left out; then the next round.
#[derive(Debug)]
pub(crate) struct Turns<'a> {
    sources: &'a [Source],
    had: Vec<usize>,
}

impl<'a> Turns<'a> {
    /// The first round leaves out so many sources as there were attempts before.
    pub fn new(sources: &'a [Source], attempt: u32) -> Self {
        let mut turns = Self { sources, had: Vec::new() };
        let skip = usize::try_from(attempt).unwrap_or(0) % turns.well().count().max(1);
        turns.had = turns.well().map(|(index, _)| index).take(skip).collect();
        turns
    }

    fn well(&self) -> impl Iterator<Item = (usize, &'a Source)> + use<'a> {
        self.sources.iter().enumerate().filter(|(_, s)| s.health.as_ref().is_none_or(|h| h.is_well()))
    }

    /// The next one. There always is one: the store itself is always well.
    pub fn next(&mut self) -> Option<&'a Source> {
        let found = self.well().find(|(index, _)| !self.had.contains(index)).or_else(|| {
            self.had.clear();
            self.well().next()
        });
        let (index, source) = found?;
        self.had.push(index);
        Some(source)
    }

    /// Whether another source has its turn before the round is over.
    pub fn others_left(&self) -> bool {
        self.well().any(|(index, _)| !self.had.contains(&index))
    }

    /// How many there are to choose from.
    pub fn count(&self) -> usize {
        self.well().count().max(1)
    }
}

/// How a mirror fares.
#[derive(Debug)]
pub(crate) struct Health {
    host: String,
    limit: u32,
    interval: Duration,
    ping_url: Option<Url>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// Rests until then; with a ping URL, until that answers.
    rests_until: Option<Instant>,
}

impl Health {
    pub fn new(options: &MirrorOptions) -> Result<Self, NetError> {
        let ping_url = match options.ping_url.as_deref().filter(|url| !url.is_empty()) {
            Some(url) => Some(
                Url::parse(url)
                    .map_err(|e| NetError::Config(format!("mirror's ping_url {url:?} is no URL: {e}")))?,
            ),
            None => None,
        };
        Ok(Self {
            host: options.host.clone(),
            limit: options.failure_limit.max(1),
            interval: options.health_check_interval.max(Duration::from_millis(10)),
            ping_url,
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_well(&self) -> bool {
        let state = self.state();
        match state.rests_until {
            None => true,
            Some(until) => self.ping_url.is_none() && Instant::now() >= until,
        }
    }

    fn succeeded(&self) {
        let was = std::mem::take(&mut *self.state());
        if was.rests_until.is_some() {
            tracing::info!(host = self.host, "mirror is back");
        }
    }

    fn failed(&self, reason: &str) {
        let mut state = self.state();
        state.failures = state.failures.saturating_add(1);
        if state.failures >= self.limit {
            if state.rests_until.is_none() {
                tracing::warn!(host = self.host, reason, "mirror is left out for a while");
            }
            state.rests_until = Instant::now().checked_add(self.interval);
        }
    }

    /// Whether and how often it is asked for its health.
    pub fn pings(&self) -> Option<Duration> {
        self.ping_url.as_ref().map(|_| self.interval)
    }
}

/// Asks a mirror for its health until it is gone.
pub(crate) async fn keep_pinging(health: Weak<Health>, client: Client, timeout: Duration) {
    while let Some(health) = health.upgrade() {
        let (Some(url), interval) = (&health.ping_url, health.interval) else { return };
        if ping(&client, url, timeout).await {
            let resting = health.state().rests_until.is_some();
            if resting {
                health.succeeded();
            }
        } else {
            health.failed("it does not answer its health check");
        }
        drop(health);
        tokio::time::sleep(interval).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_rests_after_failures_and_returns() {
        let options = MirrorOptions {
            failure_limit: 2,
            health_check_interval: Duration::from_millis(30),
            ..MirrorOptions::at("http://m")
        };
        let health = Health::new(&options).unwrap();
        health.failed("x");
        assert!(health.is_well());
        health.succeeded();
        health.failed("x");
        health.failed("x");
        assert!(!health.is_well());
        std::thread::sleep(Duration::from_millis(40));
        assert!(health.is_well(), "tried again after a while");
        health.failed("x");
        assert!(!health.is_well(), "one more failure and it rests again");
        health.succeeded();
        assert!(health.is_well());
    }
}

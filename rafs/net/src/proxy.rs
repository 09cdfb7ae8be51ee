//! What is known of the proxy: whether it answers its health check, and whether it failed just now.

use crate::failure::Failure;
use crate::{HttpOptions, NetError, NetRuntime, ProxyOptions, client};
use reqwest::{Client, Url};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// A proxy and its state.
#[derive(Debug)]
pub(crate) struct Proxied {
    pub client: Client,
    pub fallback: bool,
    pub use_http: bool,
    /// For the health check, which does not go through the proxy.
    direct: Client,
    ping_url: Option<Url>,
    ping_timeout: Duration,
    check_interval: Duration,
    check_pause: Duration,
    healthy: AtomicBool,
    times: Mutex<Times>,
}

#[derive(Debug)]
struct Times {
    /// Last request.
    used: Instant,
    /// It could not be reached; not asked again before this.
    rests_until: Option<Instant>,
}

impl Proxied {
    pub fn new(http: &HttpOptions, options: &ProxyOptions, direct: Client) -> Result<Self, NetError> {
        let ping_url = match &options.ping_url {
            Some(url) => Some(
                Url::parse(url)
                    .map_err(|e| NetError::Config(format!("proxy.ping_url {url:?} is no URL: {e}")))?,
            ),
            None => None,
        };
        Ok(Self {
            client: client::proxied(http, options.url.expose())?,
            fallback: options.fallback,
            use_http: options.use_http,
            direct,
            ping_url,
            ping_timeout: http.connect_timeout.unwrap_or(Duration::from_secs(5)),
            check_interval: options.check_interval.max(Duration::from_millis(10)),
            check_pause: options.check_pause_elapsed,
            healthy: AtomicBool::new(true),
            times: Mutex::new(Times { used: Instant::now(), rests_until: None }),
        })
    }

    fn times(&self) -> std::sync::MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody wants something: health checks go on.
    pub fn touch(&self) {
        self.times().used = Instant::now();
    }

    /// Whether to ask it now.
    pub fn usable(&self) -> Result<(), &'static str> {
        if !self.healthy.load(Ordering::Relaxed) {
            return Err("the proxy does not answer its health check, and `fallback` is off");
        }
        // Without another way to go, asking is the only way to find out.
        let rests = self.fallback && self.times().rests_until.is_some_and(|until| Instant::now() < until);
        if rests { Err("the proxy could not be reached just now") } else { Ok(()) }
    }

    /// It answered.
    pub fn works(&self) {
        self.times().rests_until = None;
    }

    /// It did not.
    pub fn failed(&self, failure: &Failure) {
        let mut times = self.times();
        if times.rests_until.is_none() {
            tracing::warn!(reason = failure.reason, "the proxy failed");
        }
        times.rests_until = Instant::now().checked_add(self.check_interval);
    }

    /// Starts health checks, if there is something to ask. They end with the proxy's last user.
    pub fn watch(self: &Arc<Self>, runtime: &NetRuntime) {
        if self.ping_url.is_some() {
            runtime.spawn(keep_pinging(Arc::downgrade(self), self.check_interval));
        }
    }

    async fn ping(&self) {
        let Some(url) = &self.ping_url else { return };
        if self.times().used.elapsed() > self.check_pause {
            return;
        }
        let healthy = ping(&self.direct, url, self.ping_timeout).await;
        if self.healthy.swap(healthy, Ordering::Relaxed) != healthy {
            tracing::warn!(healthy, "the proxy's health changed");
        }
        if healthy {
            self.works();
        }
    }
}

async fn keep_pinging(proxied: Weak<Proxied>, interval: Duration) {
    while let Some(proxied) = proxied.upgrade() {
        proxied.ping().await;
        drop(proxied);
        tokio::time::sleep(interval).await;
    }
}

/// Whether `url` answers with 2xx or 3xx in time.
pub(crate) async fn ping(client: &Client, url: &Url, timeout: Duration) -> bool {
    let answer = tokio::time::timeout(timeout, client.get(url.clone()).send()).await;
    matches!(answer, Ok(Ok(response)) if response.status().is_success() || response.status().is_redirection())
}

//! A store over a network: tries, pauses, sources and deadlines around one kind of endpoint.

use crate::answer::{self, Ranges};
use crate::endpoint::{Endpoint, Want};
use crate::failure::{Failure, Kind};
use crate::limit::{Gate, RateLimit};
use crate::link::{Link, Route};
use crate::metrics::{Metrics, NetCounters};
use crate::mirror::{Health, Source, Turns, keep_pinging};
use crate::registry::Authenticator;
use crate::{HttpOptions, NetError, NetRuntime, ProxyOptions, Secret};
use rafs::store::{
    ErrorClass, FetchDone, FetchRequest, FetchSink, Priority, SizeDone, Store, StoreError,
    is_safe_object_name,
};
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// Times that every source may say "not there", "not allowed" or nonsense before it is believed: a server behind a
/// failing balancer says so for a while, and a rolled token takes a moment to arrive everywhere.
const ROUNDS_OF_REFUSALS: u32 = 4;
/// First pause between rounds over all sources; doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest pause, also when a server asks for a longer one.
const PAUSE_MAX: Duration = Duration::from_secs(3);
/// Tries for prefetch after the first: demand asks again if it matters.
const PREFETCH_RETRIES: u32 = 2;

/// A store that is reached over a network. Requests are answered from threads of its [`NetRuntime`].
#[derive(Debug)]
pub struct NetStore {
    shared: Arc<Shared>,
    runtime: Arc<NetRuntime>,
    identity: String,
}

/// What stores with the same options have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    inner: Arc<Inner>,
    /// Those of a registry and its mirrors.
    accounts: Vec<Arc<Authenticator>>,
}

#[derive(Debug)]
struct Inner {
    sources: Vec<Source>,
    /// Exchanged when another proxy is to be used.
    link: RwLock<Arc<Link>>,
    ranges: Ranges,
    options: HttpOptions,
    gate: Gate,
    rate: Option<RateLimit>,
    metrics: Metrics,
}

/// What a kind of store is made of.
pub(crate) struct Parts {
    /// The store itself.
    pub origin: Box<dyn Endpoint>,
    /// One for each mirror in the options, in order.
    pub mirrors: Vec<Box<dyn Endpoint>>,
    pub link: Arc<Link>,
    pub ranges: Ranges,
    /// Who asks a registry and its mirrors.
    pub accounts: Vec<Arc<Authenticator>>,
}

impl NetStore {
    pub(crate) fn new(
        runtime: &Arc<NetRuntime>,
        options: &HttpOptions,
        parts: Parts,
        identity: String,
    ) -> Result<Self, NetError> {
        let make = || {
            let Parts { origin, mirrors, link, ranges, accounts } = parts;
            let mut sources = Vec::new();
            for (endpoint, mirror) in mirrors.into_iter().zip(&options.mirrors) {
                let health = Arc::new(Health::new(mirror)?);
                if health.pings().is_some() {
                    let timeout = options.connect_timeout.unwrap_or(Duration::from_secs(5));
                    runtime.spawn(keep_pinging(Arc::downgrade(&health), link.direct().clone(), timeout));
                }
                sources.push(Source { endpoint, health: Some(health) });
            }
            sources.push(Source { endpoint: origin, health: None });
            let inner = Inner {
                sources,
                link: RwLock::new(link),
                ranges,
                options: options.clone(),
                gate: Gate::new(options.requests_max),
                rate: RateLimit::new(options.rate_limit),
                metrics: Metrics::default(),
            };
            Ok(Shared { inner: Arc::new(inner), accounts })
        };
        let shared = runtime.store(&identity, make)?;
        Ok(Self { shared, runtime: Arc::clone(runtime), identity })
    }

    /// Who asks a registry and its mirrors.
    pub(crate) fn accounts(&self) -> &[Arc<Authenticator>] {
        &self.shared.accounts
    }

    /// Another proxy from now on, or none, also for other stores of this runtime that were made with the same options. What
    /// else the options say of proxies stays; requests under way end as they began.
    ///
    /// # Errors
    /// It is no URL, or the store is behind a unix socket, where there is no room for a proxy.
    pub fn set_proxy_url(&self, url: Option<Secret>) -> Result<(), NetError> {
        let inner = &self.shared.inner;
        if inner.link().is_on_socket() {
            return if url.is_none() {
                Ok(())
            } else {
                Err(NetError::Config("what is behind a unix socket is reached without a proxy".into()))
            };
        }
        let proxy = url.map(|url| match inner.options.proxy.clone() {
            Some(proxy) => ProxyOptions { url, ..proxy },
            None => ProxyOptions::at(url),
        });
        let link = self.runtime.link(&HttpOptions { proxy, ..inner.options.clone() }, None)?;
        *inner.link.write().unwrap_or_else(PoisonError::into_inner) = link;
        Ok(())
    }

    /// What it and other stores of its runtime with the same options did so far.
    #[must_use]
    pub fn counters(&self) -> NetCounters {
        self.shared.inner.metrics.counters()
    }
}

impl Store for NetStore {
    fn identity(&self) -> Option<String> {
        Some(self.identity.clone())
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn fetch(&self, request: FetchRequest, done: FetchDone) {
        self.fetch_streamed(request, Box::new(AtTheEnd(done)));
    }

    fn fetch_streamed(&self, request: FetchRequest, sink: Box<dyn FetchSink>) {
        let inner = Arc::clone(&self.shared.inner);
        let ending =
            Ending { sink: Some(sink), object: Arc::clone(&request.object), range: request.range.clone() };
        self.runtime.spawn(async move { inner.fetch(request, ending).await });
    }

    fn size(&self, object: &str, done: SizeDone) {
        let inner = Arc::clone(&self.shared.inner);
        let object = object.to_owned();
        self.runtime.spawn(async move {
            let size = inner.size(&object).await;
            done(size);
        });
    }
}

/// For those who want all at once.
struct AtTheEnd(FetchDone);

impl FetchSink for AtTheEnd {
    fn arrived(&mut self, _: &[u8]) {}
    fn finish(self: Box<Self>, result: Result<Vec<u8>, StoreError>) {
        (self.0)(result);
    }
}

/// A sink that hears of the end even when its task goes away with the runtime.
struct Ending {
    sink: Option<Box<dyn FetchSink>>,
    object: Arc<str>,
    range: Range<u64>,
}

impl Ending {
    fn finish(&mut self, result: Result<Vec<u8>, StoreError>) {
        if let Some(sink) = self.sink.take() {
            sink.finish(result);
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let error = StoreError {
            class: ErrorClass::Transient,
            object: self.object.to_string(),
            range: Some(self.range.clone()),
            reason: "the store was closed".into(),
        };
        self.finish(Err(error));
    }
}

/// Where a sequence of tries is.
struct Tries {
    made: u32,
    /// Rounds over all sources.
    rounds: u32,
    /// Answers that no waiting will change, if they are meant.
    refusals: u32,
    limit: Option<u32>,
    deadline: Instant,
}

/// What to do after a failed try.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    GiveUp,
    After(Duration),
}

impl Tries {
    fn new(options: &HttpOptions, priority: Priority) -> Self {
        let configured = (options.retry_limit > 0).then(|| u32::from(options.retry_limit));
        let limit = match priority {
            Priority::Demand => configured,
            Priority::Prefetch => Some(configured.unwrap_or(PREFETCH_RETRIES).min(PREFETCH_RETRIES)),
        };
        let now = Instant::now();
        Self {
            made: 0,
            rounds: 0,
            refusals: 0,
            limit,
            deadline: now.checked_add(options.deadline).unwrap_or(now),
        }
    }

    /// `progress`: the try brought some of the bytes.
    fn next(&mut self, failure: &Failure, turns: &Turns<'_>, progress: bool) -> Next {
        self.after(failure, turns.count(), turns.others_left(), progress)
    }

    fn after(&mut self, failure: &Failure, sources: usize, others_left: bool, progress: bool) -> Next {
        self.made = self.made.saturating_add(1);
        if failure.kind == Kind::Final || self.limit.is_some_and(|limit| self.made > limit) {
            return Next::GiveUp;
        }
        if failure.kind != Kind::Transient {
            self.refusals = self.refusals.saturating_add(1);
            if self.refusals >= ROUNDS_OF_REFUSALS.saturating_mul(u32::try_from(sources).unwrap_or(u32::MAX))
            {
                return Next::GiveUp;
            }
        }
        let pause = if others_left || progress {
            Duration::ZERO
        } else {
            let most = PAUSE_MIN.saturating_mul(1 << self.rounds.min(16)).min(PAUSE_MAX);
            self.rounds = self.rounds.saturating_add(1);
            // Between half and all of it: many requests fail together, and should not come back together.
            most.mul_f64(0.5 + 0.5 * fastrand::f64())
                .max(failure.retry_after.unwrap_or_default().min(PAUSE_MAX))
        };
        match Instant::now().checked_add(pause) {
            Some(at) if at < self.deadline => Next::After(pause),
            _ => Next::GiveUp,
        }
    }
}

impl Inner {
    /// The way to servers as it is now.
    fn link(&self) -> Arc<Link> {
        Arc::clone(&self.link.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn fetch(&self, request: FetchRequest, mut ending: Ending) {
        let FetchRequest { object, range, buffer: mut have, attempt, priority } = request;
        have.clear();
        self.metrics.fetch();
        let begun = Instant::now();
        let mut tries = Tries::new(&self.options, priority);
        // A second attempt begins where the first did not: it may have been damaged there.
        let mut turns = Turns::new(&self.sources, attempt);
        let mut last = None;
        let result = loop {
            let Some(source) = turns.next() else {
                break Err((Failure::transient("no source is left"), object.to_string()));
            };
            let route = if attempt > 0 || tries.rounds >= 2 { Route::Direct } else { Route::Proxy };
            let before = have.len();
            let receiving = self.receive(source, &object, &range, route, priority, &mut have, &mut ending);
            let outcome =
                timeout_at(tries.deadline, receiving).await.unwrap_or_else(|_| Err(out_of_time(last.take())));
            let Err(failure) = outcome else {
                source.succeeded();
                break Ok(());
            };
            self.metrics.try_failed(&failure);
            source.failed(&failure.reason);
            let next = tries.next(&failure, &turns, have.len() > before);
            tracing::debug!(object = %object, ?range, reason = failure.reason, ?next, "a try failed");
            match next {
                Next::GiveUp => break Err((failure, source.endpoint.location(&object))),
                Next::After(pause) => {
                    last = Some(failure);
                    sleep(pause).await;
                }
            }
        };
        match result {
            Ok(()) => {
                self.metrics.delivered(begun.elapsed());
                ending.finish(Ok(have));
            }
            Err((failure, location)) => {
                ending.finish(Err(error(&failure, location, Some(range), tries.made)))
            }
        }
    }

    /// One try for what is missing of a range.
    #[allow(clippy::too_many_arguments, reason = "the state of one fetch, used in one place")]
    async fn receive(
        &self,
        source: &Source,
        object: &str,
        range: &Range<u64>,
        route: Route,
        priority: Priority,
        have: &mut Vec<u8>,
        ending: &mut Ending,
    ) -> Result<(), Failure> {
        check_name(source, object)?;
        let _pass = self.gate.pass(priority).await;
        let total = usize::try_from(range.end.saturating_sub(range.start))
            .map_err(|_| Failure::new(Kind::Wrong, "the range is too large for this machine"))?;
        let link = self.link();
        while have.len() < total {
            let done = u64::try_from(have.len()).unwrap_or(u64::MAX);
            let rest = range.start.saturating_add(done)..range.end;
            self.metrics.try_made();
            let mut exchange = source.endpoint.ask(&link, object, Want::range(&rest), route).await?;
            let body = answer::check(&exchange, &rest, self.ranges)?;
            // Bounded by what was asked for; the answer's lengths were checked against that.
            let len = usize::try_from(body.len).unwrap_or(usize::MAX).min(total - have.len());
            have.try_reserve_exact(total - have.len())
                .map_err(|_| Failure::transient("no memory for the answer"))?;
            let (mut skip, mut left) = (usize::try_from(body.skip).unwrap_or(usize::MAX), len);
            while left > 0 {
                let Some(chunk) = exchange.chunk().await? else {
                    return Err(Failure::transient(format!("the body ended {left} bytes too early")));
                };
                self.metrics.received(chunk.len());
                let skipped = skip.min(chunk.len());
                skip -= skipped;
                let bytes = chunk.get(skipped..).unwrap_or_default();
                let bytes = bytes.get(..left.min(bytes.len())).unwrap_or_default();
                have.extend_from_slice(bytes);
                left -= bytes.len();
                if !bytes.is_empty()
                    && have.len() < total
                    && let Some(sink) = &mut ending.sink
                {
                    sink.arrived(have);
                }
                self.pace(&mut exchange.until, chunk.len()).await;
            }
            if body.skip == 0 && have.len() == total {
                // To its end if that is here, so that the connection can be used again.
                drop(tokio::time::timeout(Duration::ZERO, exchange.chunk()).await);
            }
        }
        Ok(())
    }

    /// Holds the rate; the time that takes is not the server's.
    async fn pace(&self, until: &mut Option<Instant>, bytes: usize) {
        let Some(rate) = &self.rate else { return };
        let wait = rate.charge(bytes);
        if !wait.is_zero() {
            *until = until.and_then(|until| until.checked_add(wait));
            sleep(wait).await;
        }
    }

    async fn size(&self, object: &str) -> Result<u64, StoreError> {
        let mut tries = Tries::new(&self.options, Priority::Demand);
        let mut turns = Turns::new(&self.sources, 0);
        loop {
            let Some(source) = turns.next() else {
                return Err(error(&Failure::transient("no source is left"), object.to_owned(), None, 0));
            };
            let outcome = timeout_at(tries.deadline, self.size_once(source, object))
                .await
                .unwrap_or_else(|_| Err(out_of_time(None)));
            let failure = match outcome {
                Ok(size) => {
                    source.succeeded();
                    return Ok(size);
                }
                Err(failure) => failure,
            };
            self.metrics.try_failed(&failure);
            source.failed(&failure.reason);
            match tries.next(&failure, &turns, false) {
                Next::GiveUp => {
                    return Err(error(&failure, source.endpoint.location(object), None, tries.made));
                }
                Next::After(pause) => sleep(pause).await,
            }
        }
    }

    async fn size_once(&self, source: &Source, object: &str) -> Result<u64, Failure> {
        check_name(source, object)?;
        let _pass = self.gate.pass(Priority::Demand).await;
        self.metrics.try_made();
        let link = self.link();
        let head = source.endpoint.ask(&link, object, Want::Head, Route::Proxy).await?;
        let status = head.status().as_u16();
        match answer::size_from_head(&head) {
            Ok(Some(size)) => return Ok(size),
            // Signed redirects are good for one method, and some servers have no HEAD.
            Ok(None) => {}
            Err(_) if matches!(status, 400 | 403 | 405 | 501) => {}
            Err(failure) => return Err(failure),
        }
        let first = source.endpoint.ask(&link, object, Want::Range(0, 1), Route::Proxy).await?;
        answer::size_from_range(&first)
    }
}

/// The deadline came during a try; the one before says more about the reason.
fn out_of_time(last: Option<Failure>) -> Failure {
    match last {
        Some(last) => {
            Failure { reason: format!("the deadline has passed; before that: {}", last.reason), ..last }
        }
        None => Failure::transient("the deadline has passed without an answer"),
    }
}

fn check_name(source: &Source, object: &str) -> Result<(), Failure> {
    if !is_safe_object_name(object) {
        return Err(Failure::new(Kind::Final, "the image names a blob that is no plain name; refused"));
    }
    if !source.endpoint.may_have(object) {
        return Err(Failure::new(Kind::Missing, "this kind of store has no such objects"));
    }
    Ok(())
}

fn error(failure: &Failure, object: String, range: Option<Range<u64>>, tries: u32) -> StoreError {
    let tried = if tries > 1 { format!(" (tried {tries} times)") } else { String::new() };
    StoreError { class: failure.class(), object, range, reason: format!("{}{tried}", failure.reason) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tries(options: &HttpOptions, priority: Priority) -> Tries {
        Tries::new(options, priority)
    }

    #[tokio::test]
    async fn pauses_grow_and_end_at_the_deadline() {
        let options = HttpOptions { deadline: Duration::from_secs(60), ..HttpOptions::default() };
        let mut t = tries(&options, Priority::Demand);
        let failure = Failure::transient("x");
        let mut last = Duration::ZERO;
        for n in 0..8 {
            let Next::After(pause) = t.after(&failure, 1, false, false) else { panic!("gave up after {n}") };
            let most = PAUSE_MIN.saturating_mul(1 << n).min(PAUSE_MAX);
            assert!(pause >= most / 2 && pause <= most, "{n}: {pause:?}");
            last = pause;
        }
        assert!(last >= PAUSE_MAX / 2);
        assert_eq!(
            t.after(&failure, 1, false, true),
            Next::After(Duration::ZERO),
            "bytes came: go on at once"
        );
        t.deadline = Instant::now();
        assert_eq!(t.after(&failure, 1, false, false), Next::GiveUp);
    }

    #[tokio::test]
    async fn another_source_is_tried_at_once_and_refusals_are_believed_in_the_end() {
        let mut t = tries(&HttpOptions::default(), Priority::Demand);
        let missing = Failure::new(Kind::Missing, "404");
        assert_eq!(t.after(&missing, 2, true, false), Next::After(Duration::ZERO));
        let Next::After(pause) = t.after(&missing, 2, false, false) else { panic!() };
        assert!(!pause.is_zero());
        let more = (0..100).take_while(|_| t.after(&missing, 2, false, false) != Next::GiveUp).count();
        assert_eq!(more, 5, "eight in all with two sources");
        assert_eq!(t.after(&Failure::new(Kind::Final, "no"), 2, false, false), Next::GiveUp);
    }

    #[tokio::test]
    async fn limits_of_tries() {
        let options = HttpOptions { retry_limit: 1, ..HttpOptions::default() };
        let failure = Failure { retry_after: Some(Duration::from_secs(1000)), ..Failure::transient("429") };
        let mut t = tries(&options, Priority::Demand);
        assert_eq!(
            t.after(&failure, 1, false, false),
            Next::After(PAUSE_MAX),
            "as the server asks, within reason"
        );
        assert_eq!(t.after(&failure, 1, false, false), Next::GiveUp);
        let mut t = tries(&HttpOptions::default(), Priority::Prefetch);
        let pauses = (0..100)
            .take_while(|_| t.after(&Failure::transient("x"), 1, false, true) != Next::GiveUp)
            .count();
        assert_eq!(pauses, 2);
    }
}

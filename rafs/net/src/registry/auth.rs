//! Who we are to one registry: tokens are fetched once however many requests want one, renewed before they end, and
//! sent to nobody else. Nothing here logs a header.

use super::challenge::{self, Challenge, TokenService};
use super::docker_config::{self, Credentials};
use super::token;
use crate::Secret;
use crate::failure::{Failure, Kind};
use crate::link::Link;
use reqwest::header::{HeaderMap, HeaderValue};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Life of a token whose service does not say, by the registries' specification. Many live longer: one like that is
/// renewed in time, but used until then or until it is refused.
const LIFE_UNSAID: Duration = Duration::from_secs(60);
/// Renewal begins so long before a token ends, and up to a tenth of its life earlier.
const RENEW_BEFORE: Duration = Duration::from_secs(20);
/// Most that chance adds to that.
const RENEW_SPREAD_MAX: Duration = Duration::from_secs(300);
/// Pause after a failed renewal; doubles up to [`RENEW_PAUSE_MAX`].
const RENEW_PAUSE_MIN: Duration = Duration::from_secs(5);
const RENEW_PAUSE_MAX: Duration = Duration::from_secs(600);
/// A refusal is good for all requests that were under way when it came.
const REFUSAL_STANDS: Duration = Duration::from_millis(500);

/// What is known of one registry's wishes.
#[derive(Debug)]
pub(crate) struct Authenticator {
    host: String,
    docker_config: Option<PathBuf>,
    /// Passwords go to token services by https only.
    secure: bool,
    state: Mutex<State>,
    /// Held while a token is fetched; others wait for it rather than fetch their own.
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    given: Option<Secret>,
    grant: Option<Grant>,
    /// Grants so far.
    generation: u64,
    /// Counts credentials that were given.
    epoch: u64,
    service: Option<TokenService>,
    post_fails: bool,
    refusal: Option<(Instant, Failure)>,
    renew_pause: Duration,
}

/// A header that a registry has asked for.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub header: HeaderValue,
    pub generation: u64,
    renew_at: Option<Instant>,
    ends: Option<Instant>,
}

impl Authenticator {
    /// `given`: base64 of `user:password`; `token`: a Bearer token to begin with.
    pub fn new(
        host: &str,
        given: Option<Secret>,
        token: Option<&Secret>,
        docker_config: Option<PathBuf>,
        secure: bool,
    ) -> Result<Self, Failure> {
        let grant = match token {
            Some(token) => Some(Grant { header: bearer(token)?, generation: 1, renew_at: None, ends: None }),
            None => None,
        };
        Ok(Self {
            host: host.to_owned(),
            docker_config,
            secure,
            state: Mutex::new(State {
                given,
                grant,
                generation: 1,
                epoch: 0,
                service: None,
                post_fails: false,
                refusal: None,
                renew_pause: RENEW_PAUSE_MIN,
            }),
            fetching: tokio::sync::Mutex::new(()),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Other credentials from now on.
    pub fn set_given(&self, given: Option<Secret>) {
        let mut state = self.state();
        state.epoch = state.epoch.wrapping_add(1);
        state.given = given;
        state.grant = None;
        state.refusal = None;
    }

    /// The header to send, if one is known. A token that is about to end is renewed meanwhile; one that has ended is
    /// replaced first.
    pub async fn ready(self: &Arc<Self>, link: &Link) -> Option<Grant> {
        let now = Instant::now();
        let (grant, service) = {
            let mut state = self.state();
            let grant = state.grant.clone()?;
            let pause = state.renew_pause;
            let due = grant.renew_at.is_some_and(|at| now >= at);
            if due && let Some(kept) = &mut state.grant {
                // The next one to try is not before this one has failed.
                kept.renew_at = now.checked_add(pause);
            }
            (grant, state.service.clone().filter(|_| due))
        };
        let ended = grant.ends.is_some_and(|at| now >= at);
        match service {
            Some(service) if ended => {
                let _alone = self.fetching.lock().await;
                let newer = self.newer_than(grant.generation);
                if newer.is_some() {
                    return newer;
                }
                self.fetch(link, &service).await.ok()
            }
            None if ended => None,
            Some(service) => {
                let (this, link) = (Arc::clone(self), link.clone());
                drop(tokio::spawn(async move { this.renew(&link, &service, grant.generation).await }));
                self.state().grant.clone()
            }
            None => Some(grant),
        }
    }

    async fn renew(&self, link: &Link, service: &TokenService, old: u64) {
        let _alone = self.fetching.lock().await;
        if self.newer_than(old).is_some() {
            return;
        }
        if let Err(failure) = self.fetch(link, service).await {
            tracing::warn!(
                host = self.host,
                reason = failure.reason,
                "the registry's token could not be renewed"
            );
            let mut state = self.state();
            state.renew_pause = state.renew_pause.saturating_mul(2).min(RENEW_PAUSE_MAX);
        }
    }

    /// The registry has answered 401 to a request with the header of `used`. What to repeat it with: `None`, without
    /// any header, to be told what is wanted.
    pub async fn answer(
        self: &Arc<Self>,
        link: &Link,
        used: Option<&Grant>,
        headers: &HeaderMap,
    ) -> Result<Option<Grant>, Failure> {
        let Some(challenge) = challenge::find(headers) else {
            if let Some(used) = used {
                self.forget(used);
                return Ok(None);
            }
            let reason =
                "the registry answers 401 without a challenge that this program knows (Basic, Bearer)";
            return Err(Failure::new(Kind::Denied, reason));
        };
        let _alone = self.fetching.lock().await;
        let known = self.newer_than(used.map_or(0, |g| g.generation));
        if known.is_some() {
            return Ok(known);
        }
        if let Some((_, failure)) =
            self.state().refusal.as_ref().filter(|(at, _)| at.elapsed() < REFUSAL_STANDS)
        {
            return Err(failure.clone());
        }
        let epoch = self.state().epoch;
        let result = match challenge {
            Challenge::Basic => self.basic().await,
            Challenge::Bearer(service) => self.fetch(link, &service).await,
        };
        match result {
            Ok(grant) => Ok(Some(grant)),
            Err(failure) => {
                let mut state = self.state();
                // What was said of other credentials says nothing of those that came meanwhile.
                if state.epoch == epoch {
                    state.refusal = Some((Instant::now(), failure.clone()));
                }
                Err(failure)
            }
        }
    }

    /// A grant did not help.
    pub fn forget(&self, grant: &Grant) {
        let mut state = self.state();
        if state.grant.as_ref().is_some_and(|g| g.generation == grant.generation) {
            state.grant = None;
        }
    }

    /// A grant did not help although it was new: those who wait for another need not try, unless it is known no longer.
    pub fn refused(&self, grant: &Grant, failure: &Failure) {
        let mut state = self.state();
        if state.grant.as_ref().is_some_and(|g| g.generation == grant.generation) {
            state.grant = None;
            state.refusal = Some((Instant::now(), failure.clone()));
        }
    }

    fn newer_than(&self, generation: u64) -> Option<Grant> {
        let now = Instant::now();
        let good = |g: &Grant| g.generation > generation && g.ends.is_none_or(|ends| now < ends);
        self.state().grant.clone().filter(good)
    }

    async fn credentials(&self) -> Option<Credentials> {
        if let Some(given) = self.state().given.clone() {
            return Some(Credentials::Basic(given));
        }
        let (dir, host) = (self.docker_config.clone()?, self.host.clone());
        tokio::task::spawn_blocking(move || docker_config::lookup(&dir, &host)).await.ok()?
    }

    async fn basic(&self) -> Result<Grant, Failure> {
        let Some(Credentials::Basic(auth)) = self.credentials().await else {
            let reason = "the registry wants a user and a password: set `auth` or IMAGE_PULL_AUTH, or log in with docker";
            return Err(Failure::new(Kind::Denied, reason));
        };
        Ok(self.grant(token::basic(&auth)?, None, None))
    }

    /// A new token; the caller holds `fetching`.
    async fn fetch(&self, link: &Link, service: &TokenService) -> Result<Grant, Failure> {
        let credentials = self.credentials().await;
        let post_fails = self.state().post_fails;
        let asking =
            token::Asking { service, credentials: credentials.as_ref(), secure: self.secure, post_fails };
        let token = token::fetch(link, asking).await?;
        let header = bearer(&token.secret)?;
        {
            let mut state = self.state();
            state.service = Some(service.clone());
            state.post_fails = token.post_fails;
            state.renew_pause = RENEW_PAUSE_MIN;
        }
        Ok(self.grant(header, Some(token.life.unwrap_or(LIFE_UNSAID)), token.life))
    }

    /// Keeps a header that is to be renewed within `fresh` and is of no use after `life`.
    fn grant(&self, header: HeaderValue, fresh: Option<Duration>, life: Option<Duration>) -> Grant {
        let now = Instant::now();
        let mut state = self.state();
        state.generation = state.generation.saturating_add(1);
        let renew_after = fresh.map(|fresh| {
            let spread = (fresh / 10).min(RENEW_SPREAD_MAX).mul_f64(fastrand::f64());
            fresh.saturating_sub(RENEW_BEFORE + spread).max(fresh / 2)
        });
        let grant = Grant {
            header,
            generation: state.generation,
            renew_at: renew_after.and_then(|after| now.checked_add(after)),
            ends: life.and_then(|life| now.checked_add(life)),
        };
        state.grant = Some(grant.clone());
        state.refusal = None;
        grant
    }
}

fn bearer(token: &Secret) -> Result<HeaderValue, Failure> {
    token::header("Bearer", token.expose())
}

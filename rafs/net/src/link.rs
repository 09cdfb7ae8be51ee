//! One exchange with a server: directly, or through the proxy as its state and the configuration allow.

use crate::failure::{Failure, Kind, retry_after};
use crate::proxy::Proxied;
use crate::{HttpOptions, NetError, client};
use reqwest::header::HeaderMap;
use reqwest::{Client, Method, Response, StatusCode, Url};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Dragonfly's peer says with this header that an answer is its own and not the server's.
const DRAGONFLY_ERROR_TYPE: &str = "x-dragonfly-error-type";

/// Which way a request may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Through the proxy, if there is one.
    Proxy,
    /// Past the proxy, unless nothing may go past it.
    Direct,
    /// Never through the proxy: token requests.
    NoProxy,
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Option<String>,
}

impl Outgoing {
    pub fn get(url: Url) -> Self {
        Self { method: Method::GET, url, headers: HeaderMap::new(), body: None }
    }
}

/// A response whose body has not been read.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub response: Response,
    /// When the exchange must be over.
    pub until: Option<Instant>,
}

impl Exchange {
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The failure that an unsuccessful status is.
    pub fn failure(&self) -> Failure {
        Failure::from_status(self.status(), retry_after(self.response.headers()))
    }

    /// The next piece of the body, `None` at its end.
    pub async fn chunk(&mut self) -> Result<Option<bytes::Bytes>, Failure> {
        let read = self.response.chunk();
        let result = match self.until {
            Some(until) => tokio::time::timeout_at(until, read)
                .await
                .map_err(|_| Failure::transient("the body did not arrive within the timeout"))?,
            None => read.await,
        };
        result.map_err(|e| Failure::from_client("receiving the body", e))
    }

    /// A small body as a whole.
    pub async fn small_body(mut self, limit: usize) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if body.len().saturating_add(chunk.len()) > limit {
                return Err(Failure::wrong(format!("the answer has more than {limit} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

/// The way to servers. Clones share connections.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    direct: Client,
    proxied: Option<Arc<Proxied>>,
    timeout: Option<Duration>,
    on_socket: bool,
}

impl Link {
    pub fn new(options: &HttpOptions) -> Result<Self, NetError> {
        let direct = client::direct(options)?;
        let proxied = match &options.proxy {
            Some(proxy) => Some(Arc::new(Proxied::new(options, proxy, direct.clone())?)),
            None => None,
        };
        Ok(Self { direct, proxied, timeout: options.timeout, on_socket: false })
    }

    /// Every request goes to this socket.
    pub fn on_socket(options: &HttpOptions, socket: &std::path::Path) -> Result<Self, NetError> {
        let direct = client::on_socket(options, socket)?;
        Ok(Self { direct, proxied: None, timeout: options.timeout, on_socket: true })
    }

    /// Whether every request goes to a socket.
    pub fn is_on_socket(&self) -> bool {
        self.on_socket
    }

    /// The proxy, if there is one.
    pub fn proxied(&self) -> Option<&Arc<Proxied>> {
        self.proxied.as_ref()
    }

    /// The client for health checks of mirrors.
    pub fn direct(&self) -> &Client {
        &self.direct
    }

    /// Sends, and waits for the head of the response.
    pub async fn send(&self, outgoing: Outgoing, route: Route) -> Result<Exchange, Failure> {
        let proxied = match (&self.proxied, route) {
            (Some(proxied), Route::Proxy) => proxied,
            (Some(proxied), Route::Direct) if !proxied.fallback => proxied,
            _ => return self.exchange(&self.direct, outgoing).await,
        };
        proxied.touch();
        if let Err(why) = proxied.usable() {
            if proxied.fallback {
                return self.exchange(&self.direct, outgoing).await;
            }
            return Err(Failure::transient(why));
        }
        let mut through = outgoing.clone();
        if proxied.use_http && through.url.scheme() == "https" {
            // A URL with a host can change between these two.
            let port = through.url.port();
            let _ = through.url.set_scheme("http");
            let _ = through.url.set_port(port);
        }
        let failure = match self.exchange(&proxied.client, through).await {
            Ok(exchange) => {
                let status = exchange.status().as_u16();
                let own = exchange
                    .response
                    .headers()
                    .get(DRAGONFLY_ERROR_TYPE)
                    .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"proxy"));
                match status {
                    403 if own => {
                        return Err(Failure::new(
                            Kind::Final,
                            "the proxy refuses this request (403); ask its operator",
                        ));
                    }
                    429 if own && proxied.fallback => exchange.failure(),
                    500..=599 if proxied.fallback => exchange.failure(),
                    _ => {
                        proxied.works();
                        return Ok(exchange);
                    }
                }
            }
            Err(failure) => {
                proxied.failed(&failure);
                if !proxied.fallback {
                    return Err(Failure {
                        reason: format!("through the proxy: {}", failure.reason),
                        ..failure
                    });
                }
                failure
            }
        };
        tracing::debug!(reason = failure.reason, "past the proxy");
        self.exchange(&self.direct, outgoing).await
    }

    async fn exchange(&self, client: &Client, outgoing: Outgoing) -> Result<Exchange, Failure> {
        let until = self.timeout.and_then(|t| Instant::now().checked_add(t));
        let mut request = client.request(outgoing.method, outgoing.url).headers(outgoing.headers);
        if let Some(body) = outgoing.body {
            request = request.body(body);
        }
        let sending = request.send();
        let result = match until {
            Some(until) => tokio::time::timeout_at(until, sending)
                .await
                .map_err(|_| Failure::transient("no answer within the timeout"))?,
            None => sending.await,
        };
        let response = result.map_err(|e| Failure::from_client("asking", e))?;
        Ok(Exchange { response, until })
    }
}

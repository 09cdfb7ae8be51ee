//! The server: HTTP/1.1 on a unix socket.
//!
//! Owns: the socket and its file, connections, limits. One thread reads and writes all connections, and gives way to those
//! that serve guests; what may wait for storage runs on threads of its own ([`super::porter`]), so that questions are
//! answered meanwhile, and other mounts made. Connections that say nothing stay open for ever: clients take a hang-up for
//! the daemon's death. Does not own: what requests mean.

use super::answer::Answer;
use super::call::Request;
use super::porter::{Job, Porter};
use super::routes::{App, Work};
use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Either, Empty, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, SERVER};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use rustix::net::{RecvFlags, recv};
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};

/// Largest request body, bytes: as large as a configuration file may be, and JSON around it.
pub const BODY_MAX: usize = 2 << 20;
/// Bodies up to this size are read whenever they come, bytes.
const BODY_SMALL: usize = 16 << 10;
/// Bytes that larger bodies may have together, so that no number of clients takes all memory.
const BODIES_MAX: usize = 64 << 20;
/// Connections at a time, if there are descriptors for them.
const CONNECTIONS_MAX: u64 = 4096;
/// Requests at a time that may wait for storage.
const SLOW_MAX: usize = 32;
/// Requests at a time that end the daemon, whatever hangs.
const EXITS_MAX: usize = 2;
/// What the API's thread leaves to others, as nice(1) counts.
const NICE: i32 = 10;
/// How long connections have to finish what they say when the daemon ends.
const FAREWELL: Duration = Duration::from_millis(200);

type Body = Either<Full<Bytes>, Empty<Bytes>>;

/// A server that runs. [`ApiServer::stop`] ends it and removes its socket.
#[derive(Debug)]
pub struct ApiServer {
    path: PathBuf,
    file: Option<(u64, u64)>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Listens on `path`. A socket or an empty file that is there is replaced.
    ///
    /// # Errors
    ///
    /// The path cannot be listened on, or no thread can be had.
    pub fn start(path: &Path, app: Arc<App>) -> anyhow::Result<Self> {
        // A socket, or nothing's: what has content may be there by a slip of the pen.
        let ours = |meta: std::fs::Metadata| {
            meta.file_type().is_socket() || (meta.file_type().is_file() && meta.len() == 0)
        };
        if std::fs::symlink_metadata(path).is_ok_and(|meta| !ours(meta)) {
            anyhow::bail!(
                "{} exists and is no socket; choose another --apisock or remove it",
                path.display()
            );
        }
        let _ = std::fs::remove_file(path);
        let listener = std::os::unix::net::UnixListener::bind(path)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .with_context(|| {
                let path = path.display();
                format!("cannot listen on {path}; the directory must exist and be writable, and the path at most 107 bytes long")
            })?;
        let file = identity(path);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .context("cannot start the API's event loop")?;
        let porter = Porter::start().context("cannot start the API's threads")?;
        let (stop, stopped) = watch::channel(false);
        let thread = std::thread::Builder::new()
            .name("api".to_owned())
            .spawn(move || {
                give_way();
                runtime.block_on(serve(listener, app, porter, stopped));
            })
            .context("cannot start the API's thread")?;
        Ok(Self { path: path.to_owned(), file, stop, thread: Some(thread) })
    }

    /// Closes all connections and removes the socket.
    pub fn stop(&mut self) {
        if identity(&self.path).is_some_and(|id| self.file == Some(id)) {
            let _ = std::fs::remove_file(&self.path);
        }
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the API's thread ended by a panic");
        }
    }
}

/// Guests come first when there is not enough processor for all.
fn give_way() {
    let own = rustix::thread::gettid();
    if let Err(error) = rustix::process::setpriority_process(Some(own), NICE) {
        tracing::debug!("the API's thread keeps its priority: {error}");
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Half of the descriptors that there may be, the rest is for images and guests.
fn connections_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let half = limit.map_or(CONNECTIONS_MAX, |limit| limit / 2);
    usize::try_from(half.clamp(16, CONNECTIONS_MAX)).unwrap_or(16)
}

/// What all connections share.
struct Shared {
    app: Arc<App>,
    /// Work that holds a permit may wait for storage, whether or not its client still waits for the answer.
    slow: Arc<Semaphore>,
    /// The same for ending the daemon.
    exits: Arc<Semaphore>,
    porter: Porter,
    /// Bytes that large bodies may still have.
    bodies: Semaphore,
}

async fn serve(
    listener: std::os::unix::net::UnixListener,
    app: Arc<App>,
    porter: Porter,
    mut stopped: watch::Receiver<bool>,
) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!("the API cannot wait for connections: {error}");
            return;
        }
    };
    let shared = Arc::new(Shared {
        app,
        slow: Arc::new(Semaphore::new(SLOW_MAX)),
        exits: Arc::new(Semaphore::new(EXITS_MAX)),
        porter,
        bodies: Semaphore::new(BODIES_MAX),
    });
    let room = Arc::new(Semaphore::new(connections_max()));
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.changed() => break,
        };
        let stream = match stream {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("the API cannot accept a connection: {error}");
                // Running out of descriptors passes; spinning on it would not help.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match Arc::clone(&room).try_acquire_owned() {
            Err(_) => {
                tokio::spawn(turn_away(stream));
            }
            Ok(permit) => {
                let (shared, stopped) = (Arc::clone(&shared), stopped.clone());
                tokio::spawn(async move {
                    shared.app.count_connection(true);
                    connection(stream, Arc::clone(&shared), stopped).await;
                    shared.app.count_connection(false);
                    drop(permit);
                });
            }
        }
    }
    drop(listener);
    // Answers under way go out.
    for _ in 0..20 {
        if shared.app.connections() == 0 {
            return;
        }
        tokio::time::sleep(FAREWELL / 20).await;
    }
}

/// Says that there are too many.
async fn turn_away(mut stream: UnixStream) {
    let body = r#"{"code":"UNDEFINED","message":"too many connections"}"#;
    let head = format!(
        "HTTP/1.1 503 \r\nServer: Nydus API\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.write_all(body.as_bytes()).await;
    let _ = stream.shutdown().await;
}

async fn connection(stream: UnixStream, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    // Whoever only listens for our end costs hardly anything.
    tokio::select! {
        () = first_byte(&stream) => {}
        _ = stopped.changed() => return,
    }
    on_the_heap(stream, shared, stopped).await;
}

/// Waits until there is something to read, the end included.
async fn first_byte(stream: &UnixStream) {
    let look = || match recv(stream, &mut [0; 1], RecvFlags::PEEK) {
        Ok(_) => Ok(()),
        Err(errno) => Err(io::Error::from(errno)),
    };
    // Readiness is a guess until somebody has looked.
    while stream.readable().await.is_ok() {
        match stream.try_io(Interest::READABLE, look) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

/// [`talk`] in a box that is made here: the caller's own state would keep room for it.
fn on_the_heap(
    stream: UnixStream,
    shared: Arc<Shared>,
    stopped: watch::Receiver<bool>,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(talk(stream, shared, stopped))
}

/// Requests and answers, until one side ends.
async fn talk(stream: UnixStream, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(respond(&shared, request).await) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    // No time limit of any kind; header names as clients are used to see them.
    builder.header_read_timeout(None).keep_alive(true).title_case_headers(true).max_buf_size(64 << 10);
    // Who has said all there is to say still wants to hear the answer.
    builder.half_close(true);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!("an API connection ended: {error}");
            }
        }
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(FAREWELL, connection).await;
        }
    }
}

async fn respond(shared: &Arc<Shared>, request: hyper::Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let stays = stays_open(&head);
    tracing::debug!("<--- {} {}", head.method, head.uri.path());
    let answer = match whole_body(shared, body).await {
        Ok(body) => {
            let request = Request {
                method: head.method.as_str().to_owned(),
                // Absolute-form targets have their path all the same.
                path: head.uri.path().to_owned(),
                query: head.uri.query().unwrap_or_default().to_owned(),
                body,
            };
            run(shared, &request).await
        }
        Err(answer) => answer,
    };
    tracing::debug!("---> {}", answer.status);
    wire(answer, stays)
}

/// Whether the connection stays after this request, which the answer says.
fn stays_open(head: &Parts) -> bool {
    let said = |word: &str| {
        let values = head.headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(word))
    };
    if head.version == Version::HTTP_11 { !said("close") } else { said("keep-alive") }
}

/// A request's body, or the answer to one that is too large.
async fn whole_body(shared: &Shared, body: Incoming) -> Result<Vec<u8>, Answer> {
    let hint = body.size_hint();
    // One that says beforehand that it is too large need not be waited for.
    if hint.lower() > BODY_MAX as u64 {
        return Err(too_large(&hint.lower().to_string()));
    }
    let most = hint.upper().and_then(|n| usize::try_from(n).ok()).map_or(BODY_MAX, |n| n.min(BODY_MAX));
    let _room = if most > BODY_SMALL {
        let room = u32::try_from(most).ok().and_then(|n| shared.bodies.try_acquire_many(n).ok());
        Some(room.ok_or_else(|| Answer::error(503, "too many large requests at a time; try again"))?)
    } else {
        None
    };
    match Limited::new(body, BODY_MAX).collect().await {
        Ok(body) => Ok(body.to_bytes().to_vec()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => Err(too_large("unknown")),
        Err(_) => Err(Answer::bad_request()),
    }
}

fn too_large(size: &str) -> Answer {
    let text = format!(
        "{{ \"error\": \"Request payload with size {size} is larger than the limit of {BODY_MAX} allowed by server.\\nAll \
         previous unanswered requests will be dropped.\" }}"
    );
    Answer::text(400, "application/json", text)
}

async fn run(shared: &Arc<Shared>, request: &Request) -> Answer {
    match shared.app.handle(request) {
        Work::Now(answer) => answer,
        Work::Slow(work) => permitted(&shared.slow, &shared.porter, work).await,
        Work::Exit(answer) => {
            let app = Arc::clone(&shared.app);
            let stop = move || match app.stop_for_exit() {
                Ok(()) => Answer::done(),
                Err(error) => Answer::failed("Upgrade", "DaemonAbnormal", &error),
            };
            // Not in turn with mounts: one that hangs must not keep the daemon.
            let stopped = permitted(&shared.exits, &shared.porter, Box::new(stop)).await;
            if stopped.status != 204 {
                return stopped;
            }
            tokio::spawn(async {
                // The answer goes out first.
                tokio::time::sleep(Duration::from_millis(50)).await;
                tracing::info!("asked to exit");
                let own = rustix::process::getpid();
                if let Err(error) = rustix::process::kill_process(own, rustix::process::Signal::TERM) {
                    tracing::error!("cannot end: {error}");
                }
            });
            answer
        }
    }
}

/// Has work done as soon as there is a permit, which it keeps to its own end: a client that hangs up and asks again gets
/// no more threads than one that waits.
async fn permitted(permits: &Arc<Semaphore>, porter: &Porter, work: Job) -> Answer {
    // Never closed, so there is always one to be had in the end.
    let permit = Arc::clone(permits).acquire_owned().await;
    let job = move || {
        let _permit = permit;
        work()
    };
    porter.run(Box::new(job)).await
}

fn wire(answer: Answer, stays: bool) -> Response<Body> {
    let body = match answer.body {
        Some(body) => Either::Left(Full::new(Bytes::from(body))),
        None => Either::Right(Empty::new()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.extensions_mut().insert(hyper::ext::ReasonPhrase::from_static(b""));
    let headers = response.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static("Nydus API"));
    if stays {
        headers.insert(CONNECTION, HeaderValue::from_static("keep-alive"));
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    response
}

//! Threads for what may wait for storage.
//!
//! Owns: starting them, at the daemon's own priority: what they start in turn, threads that serve guests among it, would
//! inherit the low one of the API's thread. Does not own: how many there are at a time.

use super::answer::Answer;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use tokio::sync::oneshot;

/// What is to be done.
pub(super) type Job = Box<dyn FnOnce() -> Answer + Send>;

/// Has threads started. Threads that still work do not keep the process.
#[derive(Debug)]
pub(super) struct Porter(Sender<(Job, oneshot::Sender<Answer>)>);

impl Porter {
    /// One whose threads have the priority of the thread that calls.
    ///
    /// # Errors
    ///
    /// No thread can be had.
    pub(super) fn start() -> io::Result<Self> {
        let (send, jobs) = channel();
        thread::Builder::new().name("api-porter".to_owned()).spawn(move || carry(&jobs))?;
        Ok(Self(send))
    }

    /// Has a thread do it.
    pub(super) async fn run(&self, job: Job) -> Answer {
        let (tell, told) = oneshot::channel();
        // The porter lives as long as this.
        let _ = self.0.send((job, tell));
        told.await.unwrap_or_else(|_| Answer::error(500, "the request ended by a panic; the log says more"))
    }
}

fn carry(jobs: &Receiver<(Job, oneshot::Sender<Answer>)>) {
    for (job, tell) in jobs {
        // What cannot be started is handed back by nobody, so the answer is kept here until it is.
        let (hand, taken) = channel::<(Job, oneshot::Sender<Answer>)>();
        let started = thread::Builder::new().name("api-work".to_owned()).spawn(move || {
            if let Ok((job, tell)) = taken.recv() {
                // Who asked may have hung up.
                let _ = tell.send(job());
            }
        });
        match started {
            Ok(_) => {
                let _ = hand.send((job, tell));
            }
            Err(error) => {
                let _ = tell.send(Answer::error(
                    503,
                    &format!("no thread can be had for this request: {error}; try again"),
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn jobs_run_beside_each_other_and_a_panic_is_an_answer() {
        let porter = Porter::start().unwrap();
        let (go, gate) = channel::<()>();
        let waiting = porter.run(Box::new(move || {
            let _ = gate.recv();
            Answer::done()
        }));
        let panics = porter.run(Box::new(|| panic!("on purpose")));
        let other = porter.run(Box::new(move || {
            go.send(()).unwrap();
            Answer::done()
        }));
        let (first, second, third) = block_on(async { tokio::join!(waiting, panics, other) });
        assert_eq!((first.status, second.status, third.status), (204, 500, 204));
    }

    #[test]
    fn threads_have_the_priority_of_who_started_the_porter() {
        let own = rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap();
        let porter = Porter::start().unwrap();
        let nice = thread::spawn(move || {
            rustix::process::setpriority_process(Some(rustix::thread::gettid()), own + 5).unwrap();
            let (send, got) = channel();
            let answer = block_on(porter.run(Box::new(move || {
                send.send(rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap())
                    .unwrap();
                Answer::done()
            })));
            assert_eq!(answer.status, 204);
            got.recv().unwrap()
        });
        assert_eq!(nice.join().unwrap(), own);
    }
}

//! The state machine of the contract (nydusd-cli-api.md section 4.1).
//!
//! Owns: which event is possible when, and the state that is reported. Does not own: what an event does.

use super::DaemonError;
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// The reported state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Started, serves nobody yet.
    #[default]
    Init,
    /// Serves.
    Running,
    /// Has taken over and waits for `start`, or has stopped.
    Ready,
    /// Ends.
    Stopped,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Init => "INIT",
            Self::Running => "RUNNING",
            Self::Ready => "READY",
            Self::Stopped => "STOPPED",
        })
    }
}

/// What may be asked of a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Serve.
    Start,
    /// Take over from a predecessor.
    Takeover,
    /// Stop serving; the mount on the host stays.
    Stop,
    /// End without unmounting.
    Exit,
}

impl Event {
    fn name(self) -> &'static str {
        match self {
            Self::Start => "Start",
            Self::Takeover => "Takeover",
            Self::Stop => "Stop",
            Self::Exit => "Exit",
        }
    }
}

/// The state, and one event at a time.
#[derive(Debug, Default)]
pub(super) struct StateMachine {
    now: Mutex<State>,
    turn: Mutex<()>,
}

impl StateMachine {
    pub(super) fn now(&self) -> State {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, state: State) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// Does `action` if `event` is possible now; the state changes when it succeeded.
    pub(super) fn step(
        &self,
        event: Event,
        action: impl FnOnce() -> Result<(), DaemonError>,
    ) -> Result<(), DaemonError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let next = match (self.now(), event) {
            (State::Init, Event::Takeover) => State::Ready,
            (State::Ready, Event::Start) => State::Running,
            (State::Init | State::Ready, Event::Stop | Event::Exit) => State::Stopped,
            (State::Running, Event::Stop) => State::Ready,
            _ => return Err(DaemonError::UnexpectedEvent(event.name())),
        };
        action()?;
        self.set(next);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transitions_of_the_contract() {
        let machine = StateMachine::default();
        let step = |event| machine.step(event, || Ok(())).map(|()| machine.now());
        assert!(matches!(step(Event::Start), Err(DaemonError::UnexpectedEvent("Start"))));
        assert_eq!(step(Event::Takeover).unwrap(), State::Ready);
        assert_eq!(step(Event::Start).unwrap(), State::Running);
        assert!(matches!(step(Event::Takeover), Err(DaemonError::UnexpectedEvent("Takeover"))));
        assert_eq!(step(Event::Stop).unwrap(), State::Ready);
        assert_eq!(step(Event::Exit).unwrap(), State::Stopped);
        machine.set(State::Init);
        let failed = machine.step(Event::Takeover, || Err(DaemonError::Unsupported));
        assert!(matches!(failed, Err(DaemonError::Unsupported)));
        assert_eq!(machine.now(), State::Init, "what failed changed nothing");
    }
}

//! Flights: one for each thing that is being fetched or verified, however many wait for it.

use super::ReadError;
use super::engine::Hub;
use super::request::Piece;
use crate::blob::UnitId;
use crate::ids::BlobIndex;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Names a flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum FlightKey {
    /// A unit comes from the store, for all images of the blob.
    Unit(u64, UnitId),
    /// A unit comes from the store for one image alone.
    Own(u64, UnitId),
    /// A chunk that the cache file claims to hold is being verified for an image.
    Cached(u64, u32),
}

/// Flights in progress, and who waits for each.
#[derive(Default)]
pub(super) struct Flights(Mutex<State>);

#[derive(Default)]
struct State {
    by_key: HashMap<FlightKey, (u64, Vec<Piece>)>,
    last: u64,
}

impl State {
    fn take(&mut self, ticket: &Ticket) -> Vec<Piece> {
        match self.by_key.get_mut(&ticket.key) {
            Some((flight, waiting)) if *flight == ticket.flight => std::mem::take(waiting),
            _ => Vec::new(),
        }
    }

    fn end(&mut self, ticket: &Ticket) {
        if self.by_key.get(&ticket.key).is_some_and(|(flight, _)| *flight == ticket.flight) {
            self.by_key.remove(&ticket.key);
        }
    }
}

/// The right to end one flight. Dropped without use (a panic, a store that forgets its completion) it ends the
/// flight with an error.
pub(super) struct Ticket {
    hub: Weak<Hub>,
    key: FlightKey,
    /// Tells this flight from a later one of the same key.
    flight: u64,
    /// The blob's index in the image that flies.
    pub blob: BlobIndex,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.upgrade() {
            for piece in hub.flights.cancel(self) {
                piece.fail(ReadError::Internal);
            }
        }
    }
}

/// Result of [`Hub::board`].
pub(super) enum Boarded {
    /// Somebody else flies.
    Waits,
    /// The caller has to fly.
    Flies(Ticket),
    /// It is over; the caller gets its piece back.
    Landed(Option<Piece>),
}

impl Hub {
    /// Joins the flight `key`, or begins it. `landed` tells, while nobody can end the flight, whether it is over
    /// already. Without a piece nobody waits.
    pub fn board(
        self: &Arc<Self>,
        key: FlightKey,
        blob: BlobIndex,
        piece: Option<Piece>,
        landed: impl Fn() -> bool,
    ) -> Boarded {
        let mut state = self.flights.state();
        if let Some((_, waiting)) = state.by_key.get_mut(&key) {
            waiting.extend(piece);
            return Boarded::Waits;
        }
        if landed() {
            return Boarded::Landed(piece);
        }
        state.last += 1;
        let flight = state.last;
        state.by_key.insert(key, (flight, piece.into_iter().collect()));
        Boarded::Flies(Ticket { hub: Arc::downgrade(self), key, flight, blob })
    }
}

impl Flights {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those who wait for a flight now; more may come.
    pub fn waiting(&self, ticket: &Ticket) -> Vec<Piece> {
        self.state().take(ticket)
    }

    /// Whether anybody waits for a flight.
    pub fn is_awaited(&self, ticket: &Ticket) -> bool {
        let state = self.state();
        state
            .by_key
            .get(&ticket.key)
            .is_some_and(|(flight, waiting)| *flight == ticket.flight && !waiting.is_empty())
    }

    /// Ends a flight if nobody waits any more; else returns those who do, and the flight goes on.
    pub fn land(&self, ticket: &Ticket) -> Vec<Piece> {
        let mut state = self.state();
        let waiting = state.take(ticket);
        if waiting.is_empty() {
            state.end(ticket);
        }
        waiting
    }

    /// Ends a flight and returns all who waited.
    pub fn cancel(&self, ticket: &Ticket) -> Vec<Piece> {
        let mut state = self.state();
        let waiting = state.take(ticket);
        state.end(ticket);
        waiting
    }

    /// Ends every flight.
    pub fn cancel_all(&self) -> Vec<Piece> {
        let flights = std::mem::take(&mut self.state().by_key);
        flights.into_values().flat_map(|(_, pieces)| pieces).collect()
    }
}

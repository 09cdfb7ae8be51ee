//! How many workers are worth their processors.
//!
//! Owns: a limit to the workers that serve at a time, found by trying. Where guests have the processors that further
//! workers would run on, a worker more takes from those who ask: fewer requests are served, at more cost each. It shows in
//! workers that are put off their processors while they have all they can do; then it is tried for a moment how many
//! requests one worker fewer serves. Does not own: the workers, or when one is woken. No lock: the crew has one around it.

use std::time::{Duration, Instant};

/// How long each number of workers is looked at.
const WINDOW: Duration = Duration::from_millis(20);
/// How long what was found holds: finding it out again costs a window or two.
const HOLD: Duration = Duration::from_millis(400);

/// What one worker fewer may cost: an eighth. Windows as short as these differ by as much when nothing has changed, and who
/// brings less than that has it from those who ask.
const TOLERANCE: u64 = 8;

/// What the watcher sees at a look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// When.
    pub(super) now: Instant,
    /// Whether those awake have more to do than they can.
    pub(super) behind: bool,
    /// Workers that serve.
    pub(super) workers: usize,
    /// Requests served since the start.
    pub(super) requests: u64,
}

/// The limit, and what is known about it.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    limit: Option<usize>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, Default)]
enum Phase {
    /// Nobody is behind, or one worker is all there is.
    #[default]
    Idle,
    /// All workers work; whether they are put off is being looked at.
    Together { since: Seen, put_off: u64 },
    /// One fewer from now on; the next look is the first that counts.
    Leaving { best: u64 },
    /// One fewer, where `best` requests a second are to be reached.
    Fewer { since: Seen, best: u64 },
    /// It is known for a while.
    Settled { until: Instant },
}

impl Crowd {
    /// How many workers are to serve at most; at least one, and `None` for any number.
    pub(super) fn limit(&self) -> Option<usize> {
        self.limit
    }

    /// Takes what was seen. `put_off` says how often all workers were put off their processors since they were started,
    /// if that can be known.
    pub(super) fn look(&mut self, seen: Seen, put_off: impl FnOnce() -> Option<u64>) {
        let held = matches!(self.phase, Phase::Settled { until } if seen.now < until);
        if held {
            return;
        }
        self.phase = match self.phase {
            _ if !seen.behind => {
                self.limit = None;
                Phase::Idle
            }
            Phase::Settled { .. } => {
                // Things may have changed: one more, and on from there.
                self.limit = self.limit.map(|limit| limit + 1);
                Self::begin(seen, put_off)
            }
            Phase::Idle => Self::begin(seen, put_off),
            Phase::Together { since, .. } if seen.workers != since.workers => Self::begin(seen, put_off),
            Phase::Together { since, put_off: before } if seen.is_whole(&since) => {
                let times = put_off().map_or(0, |now| now.saturating_sub(before));
                // A slice of time is a few milliseconds: who shares a processor loses it more than once.
                if times >= u64::try_from(seen.workers).unwrap_or(u64::MAX) {
                    self.limit = Some(seen.workers - 1);
                    Phase::Leaving { best: seen.rate(&since) }
                } else {
                    self.limit = None;
                    Phase::Settled { until: seen.now + HOLD }
                }
            }
            Phase::Leaving { best } => Phase::Fewer { since: seen, best },
            Phase::Fewer { since, best } if seen.is_whole(&since) => {
                self.judge(seen, best, seen.rate(&since))
            }
            going_on => going_on,
        };
    }

    /// A limit that holds for the time of a test.
    #[cfg(test)]
    pub(super) fn held_at(limit: usize) -> Self {
        let until = Instant::now() + Duration::from_secs(600);
        Self { limit: Some(limit), phase: Phase::Settled { until } }
    }

    fn begin(seen: Seen, put_off: impl FnOnce() -> Option<u64>) -> Phase {
        match put_off().filter(|_| seen.workers > 1) {
            Some(put_off) => Phase::Together { since: seen, put_off },
            None => Phase::Idle,
        }
    }

    /// One fewer serve `rate` requests a second, where more of them have served `best`.
    fn judge(&mut self, seen: Seen, best: u64, rate: u64) -> Phase {
        let as_much = rate >= best - best / TOLERANCE;
        match self.limit {
            Some(limit) if as_much && limit > 1 => {
                self.limit = Some(limit - 1);
                return Phase::Leaving { best: best.max(rate) };
            }
            Some(limit) if !as_much => self.limit = Some(limit + 1),
            _ => {}
        }
        Phase::Settled { until: seen.now + HOLD }
    }
}

impl Seen {
    /// Whether enough time has passed since `first`.
    fn is_whole(&self, first: &Self) -> bool {
        self.now.duration_since(first.now) >= WINDOW
    }

    /// Requests a second since `first`.
    fn rate(&self, first: &Self) -> u64 {
        let micros = u64::try_from(self.now.duration_since(first.now).as_micros()).unwrap_or(u64::MAX).max(1);
        self.requests.saturating_sub(first.requests).saturating_mul(1_000_000) / micros
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A crew of workers on a machine, looked at every four milliseconds.
    struct Machine {
        crowd: Crowd,
        seen: Seen,
        put_off: u64,
        members: usize,
    }

    impl Machine {
        fn new(members: usize) -> Self {
            let seen = Seen { now: Instant::now(), behind: true, workers: members, requests: 0 };
            Self { crowd: Crowd::default(), seen, put_off: 0, members }
        }

        /// So many looks; each worker number `n` serves `rate(n)` requests in all, and is put off if `shared`. Returns for how
        /// many of them there was a limit.
        fn run(&mut self, looks: u32, shared: bool, rate: impl Fn(usize) -> u64) -> u32 {
            let mut limited = 0;
            for _ in 0..looks {
                let workers = self.crowd.limit().unwrap_or(self.members).min(self.members);
                self.seen.workers = workers;
                self.seen.now += Duration::from_millis(4);
                self.seen.requests += rate(workers);
                self.put_off += if shared { 2 * u64::try_from(workers).unwrap() } else { 0 };
                let put_off = self.put_off;
                self.crowd.look(self.seen, || Some(put_off));
                limited += u32::from(self.crowd.limit().is_some());
            }
            limited
        }
    }

    #[test]
    fn nothing_is_tried_where_nobody_is_put_off() {
        let mut machine = Machine::new(4);
        assert_eq!(machine.run(1000, false, |_| 1000), 0);
        assert_eq!(machine.crowd.limit(), None);
    }

    #[test]
    fn who_only_takes_from_guests_goes() {
        let mut machine = Machine::new(2);
        let limited = machine.run(1000, true, |workers| if workers == 1 { 1300 } else { 1000 });
        assert!(limited > 900, "one worker in {limited} of 1000 looks");
        // Five are best of eight.
        let mut machine = Machine::new(8);
        let best_at_five = |workers: usize| 3000 - 500 * u64::try_from(workers.abs_diff(5)).unwrap();
        machine.run(50, true, best_at_five);
        assert_eq!(machine.crowd.limit(), Some(5));
        let begun = machine.seen.requests;
        machine.run(1000, true, best_at_five);
        assert!(machine.seen.requests - begun > 1000 * 2850, "what holds is not far from the best, 3000");
    }

    #[test]
    fn who_gets_more_done_stays() {
        // Others have the processors too, but they do not ask: each worker more is a share more.
        let mut machine = Machine::new(4);
        machine.run(1000, true, |workers| 300 * u64::try_from(workers).unwrap());
        assert!(machine.crowd.limit().is_none_or(|limit| limit >= 3));
        let begun = machine.seen.requests;
        machine.run(1000, true, |workers| 300 * u64::try_from(workers).unwrap());
        let served = machine.seen.requests - begun;
        assert!(served > 1000 * 1170, "{served} requests where 1,200,000 could be");
    }

    #[test]
    fn a_limit_ends_with_its_reason() {
        let mut machine = Machine::new(2);
        machine.run(20, true, |workers| if workers == 1 { 1300 } else { 1000 });
        assert_eq!(machine.crowd.limit(), Some(1));
        // The processors are free again: it is found out before long.
        machine.run(120, false, |workers| 1000 * u64::try_from(workers).unwrap());
        assert_eq!(machine.crowd.limit(), None);
        // Nobody is behind any more.
        machine.run(20, true, |workers| if workers == 1 { 1300 } else { 1000 });
        machine.seen.behind = false;
        machine.run(120, true, |_| 10);
        assert_eq!(machine.crowd.limit(), None);
    }

    #[test]
    fn there_is_always_one() {
        let mut machine = Machine::new(3);
        for look in 0..5000 {
            machine.run(1, true, |workers| 1000 - u64::try_from(workers).unwrap());
            assert!(machine.crowd.limit() != Some(0), "look {look}");
        }
    }

    #[test]
    fn where_it_cannot_be_known_there_is_no_limit() {
        let mut crowd = Crowd::default();
        let mut seen = Seen { now: Instant::now(), behind: true, workers: 2, requests: 0 };
        for _ in 0..1000 {
            seen.now += Duration::from_millis(4);
            crowd.look(seen, || None);
            assert_eq!(crowd.limit(), None);
        }
    }
}

//! What a person sees of a run: the nodes' own log lines with simulated time, and panics as one line.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::sync::Once;

use baton::base::Mono;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

thread_local! {
    static TURN: Cell<(u16, u64)> = const { Cell::new((0, 0)) };
    static IN_RUN: Cell<bool> = const { Cell::new(false) };
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Marks whose turn it is until dropped.
pub struct Told;

pub fn node(number: u16, now: Mono) -> Told {
    TURN.set((number, now.0));
    Told
}

impl Drop for Told {
    fn drop(&mut self) {
        TURN.set((0, TURN.get().1));
    }
}

struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, out: &mut Writer<'_>) -> fmt::Result {
        let (node, now) = TURN.get();
        write!(out, "{}.{:09} node {node}", now / 1_000_000_000, now % 1_000_000_000)
    }
}

/// Shows log lines when `BATON_SIM_LOG` names a level, and keeps panics of runs for their reports.
pub fn begin() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Some(level) =
            std::env::var("BATON_SIM_LOG").ok().and_then(|text| text.parse::<tracing::Level>().ok())
        {
            tracing_subscriber::fmt()
                .with_max_level(level)
                .with_timer(Clock)
                .with_target(false)
                .with_ansi(false)
                .init();
        }
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !IN_RUN.get() {
                return usual(info);
            }
            let (node, now) = TURN.get();
            let text = info
                .payload()
                .downcast_ref::<&str>()
                .copied()
                .or_else(|| info.payload().downcast_ref::<String>().map(String::as_str))
                .unwrap_or("a panic without words");
            let place = info.location().map_or(String::new(), |l| format!("{}:{}", l.file(), l.line()));
            PANIC.set(Some(format!("panic in node {node} at {now} ns, {place}: {text}")));
        }));
    });
}

/// A run starts whose panics go to its report.
pub fn run() {
    IN_RUN.set(true);
}

/// A run ends: panics of this thread are nobody's run from here on.
pub fn end() {
    IN_RUN.set(false);
    TURN.set((0, 0));
}

pub fn last_panic() -> String {
    PANIC.take().unwrap_or_default()
}

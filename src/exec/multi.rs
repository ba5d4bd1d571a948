//! MULTI, EXEC, DISCARD, WATCH, UNWATCH. Queueing itself stands in front of the commands, see [`super::execute`].

use super::call::{Call, Step};
use super::errors;
use super::session::Queue;
use super::watch::Watched;
use crate::base::Stamp;
use crate::base::limits::WATCHED_KEYS_MAX;

pub(super) fn multi(call: &mut Call<'_, '_>) -> Step {
    if call.session.multi.is_some() {
        return call.error(errors::NESTED_MULTI);
    }
    call.session.multi = Some(Queue::default());
    call.ok()
}

pub(super) fn discard(call: &mut Call<'_, '_>) -> Step {
    if call.session.multi.take().is_none() {
        return call.error(errors::DISCARD_WITHOUT_MULTI);
    }
    call.engine.state.watches.forget(call.session.id);
    call.ok()
}

pub(super) fn exec(call: &mut Call<'_, '_>) -> Step {
    let proto = call.session.proto;
    let Some(queue) = call.session.multi.take() else { return call.error(errors::EXEC_WITHOUT_MULTI) };
    let result = if queue.broken { call.error(errors::EXEC_ABORT) } else { run(call, &queue) };
    if result.is_err() {
        // A HELLO among the commands is taken back with them.
        call.session.proto = proto;
    }
    match &result {
        // It comes again as if nothing had happened.
        Err(stop) if stop.comes_again() => call.session.multi = Some(queue),
        // What it changes is told to the watchers when it ends; its own connection watches no longer.
        _ => call.engine.state.watches.forget(call.session.id),
    }
    result
}

fn run(call: &mut Call<'_, '_>, queue: &Queue) -> Step {
    if let Some(stamp) = watched_key_changed(call)? {
        // Who learns that a key changed has seen the change.
        call.saw(stamp);
        call.reply().null_array();
        return Ok(());
    }
    call.reply().array(queue.commands.len());
    for (command, args) in &queue.commands {
        call.nested(*command, args.view())?;
        call.reply_fits()?;
    }
    Ok(())
}

/// The stamp of the change when a key changed, or expired, since it was watched.
fn watched_key_changed(call: &mut Call<'_, '_>) -> Step<Option<Stamp>> {
    let mut changed = call.engine.state.watches.changed_since_watch(call.session.id);
    for watched in call.engine.state.watches.watched(call.session.id) {
        call.seek(&watched.user_key);
        let live = call.head()?.is_some();
        if watched.was_live && !live {
            // Expired just now: the delete belongs to this transaction. Deleted earlier: its stamp is known already.
            changed = changed.max(Some(Stamp::COMMITTED));
        }
    }
    Ok(changed)
}

pub(super) fn watch(call: &mut Call<'_, '_>) -> Step {
    if call.session.multi.is_some() {
        return call.error(errors::WATCH_IN_MULTI);
    }
    let keys = call.args.from(1);
    if call.engine.state.watches.count(call.session.id) + keys.len() > WATCHED_KEYS_MAX {
        return call.error(errors::WATCHES_FULL);
    }
    for user_key in keys.iter() {
        call.seek(user_key);
        let live = call.head()?.is_some();
        let watched = Watched { user_key: user_key.into(), was_live: live };
        call.trace.watched.push((call.shard(), watched));
    }
    call.ok()
}

pub(super) fn unwatch(call: &mut Call<'_, '_>) -> Step {
    call.engine.state.watches.forget(call.session.id);
    call.ok()
}

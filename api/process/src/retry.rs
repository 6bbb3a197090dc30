//! What is asked again, and what need not be.

use std::time::Duration;

/// A pause of random length, so that not everybody comes back at once.
pub fn between(least: Duration, most: Duration) -> Duration {
    let nanos = jiff::Timestamp::now().subsec_nanosecond().unsigned_abs();
    least + most.saturating_sub(least) * (nanos % 1_000) / 1_000
}

/// A deletion or a last write of an object that is not there any more has nothing left to do.
pub fn absent_is_fine(result: kube::Result<()>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other,
    }
}

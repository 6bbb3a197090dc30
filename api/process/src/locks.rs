//! Locks.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks what stays consistent at any line: a thread that panicked spoilt nothing.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

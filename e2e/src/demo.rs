//! demo
use anyhow::Result;
use crate::driver::Driver;
/// x
pub fn run(_driver: &dyn Driver, _exit: bool) -> Result<()> { Ok(()) }

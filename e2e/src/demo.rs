//! demo
use crate::driver::Driver;
use anyhow::Result;
/// x
pub fn run(_driver: &dyn Driver, _exit: bool) -> Result<()> {
    Ok(())
}

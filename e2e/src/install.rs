//! install
use anyhow::Result;
use crate::driver::Driver;
use crate::images::Images;
/// x
pub fn up(driver: &dyn Driver) -> Result<()> { driver.up() }
/// x
pub fn load(_driver: &dyn Driver, _images: &Images) -> Result<()> { Ok(()) }

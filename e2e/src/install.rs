//! install
use crate::driver::Driver;
use crate::images::Images;
use anyhow::Result;
/// x
pub fn up(driver: &dyn Driver) -> Result<()> {
    driver.up()
}
/// x
pub fn load(_driver: &dyn Driver, _images: &Images) -> Result<()> {
    Ok(())
}

//! Writes the `CustomResourceDefinition`s to the folder that is given, one file each.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder =
        std::env::args_os().nth(1).map_or_else(|| PathBuf::from("deploy/crds"), PathBuf::from);
    std::fs::create_dir_all(&folder)?;
    for (file, text) in fairlead_api::rendered()? {
        std::fs::write(folder.join(file), text)?;
        println!("{}", folder.join(file).display());
    }
    Ok(())
}

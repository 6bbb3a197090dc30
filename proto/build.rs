//! Compiles the contract with protox, so that no `protoc` must be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=fairlead");
    let files = protox::compile(["fairlead/v1/hub.proto", "fairlead/v1/identity.proto"], ["."])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}

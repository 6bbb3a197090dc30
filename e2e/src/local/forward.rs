//! The way from this machine's loopback to an apiserver in a namespace, so that a plain `kubectl`
//! with the printed kubeconfig works. No packet of the clusters' leaves their namespaces.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use anyhow::Result;

use super::net;

/// Accepts on `listen` for ever and joins each connection with one to `to` in the network of `host`.
pub fn serve(listen: SocketAddr, host: &str, to: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen)?;
    for accepted in listener.incoming() {
        let Ok(near) = accepted else { continue };
        match net::within(host, || Ok(TcpStream::connect(to)?)) {
            Ok(far) => join(near, far),
            Err(error) => eprintln!("{to}: {error:#}"),
        }
    }
    Ok(())
}

fn join(near: TcpStream, far: TcpStream) {
    let clones = near.try_clone().and_then(|n| Ok((n, far.try_clone()?)));
    let Ok((near_too, far_too)) = clones else { return };
    std::thread::spawn(move || copy(near, far_too));
    std::thread::spawn(move || copy(far, near_too));
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    // An error ends the connection, as it would on the wire.
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

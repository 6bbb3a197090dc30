//! A workload that says who answers: HTTP on each port of `HTTP_PORTS`, UDP on each of `UDP_PORTS`.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::ConnectInfo;
use tokio::net::{TcpListener, UdpSocket};

fn who() -> String {
    let var = |name| std::env::var(name).unwrap_or_default();
    format!("pod={} node={} cluster={}", var("POD"), var("NODE"), var("CLUSTER"))
}

fn ports(name: &str) -> Vec<u16> {
    let list = std::env::var(name).unwrap_or_default();
    list.split(',').filter_map(|port| port.trim().parse().ok()).collect()
}

async fn http(port: u16) -> std::io::Result<()> {
    let answer = move |ConnectInfo(peer): ConnectInfo<SocketAddr>| async move {
        format!("{} port={port} client={}\n", who(), peer.ip())
    };
    let router = Router::new().fallback(answer);
    let listener = TcpListener::bind(("0.0.0.0", port)).await?;
    axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await
}

async fn udp(port: u16) -> std::io::Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", port)).await?;
    let mut buffer = [0; 2_048];
    loop {
        let (_, peer) = socket.recv_from(&mut buffer).await?;
        socket.send_to(format!("{} port={port}\n", who()).as_bytes(), peer).await?;
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let mut servers = tokio::task::JoinSet::new();
    for port in ports("HTTP_PORTS") {
        servers.spawn(http(port));
    }
    for port in ports("UDP_PORTS") {
        servers.spawn(udp(port));
    }
    let mut stop = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = stop.recv() => Ok(()),
        ended = servers.join_next() => ended.map_or(Ok(()), |result| result?),
    }
}

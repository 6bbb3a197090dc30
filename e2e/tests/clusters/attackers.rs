//! Clients of HTTP that mean harm: requests that two readers would read differently, streams that are taken back as
//! fast as they are asked for, answers that nobody reads, and requests that never end.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fairlead_e2e::local::net;

use crate::faults::request;
use crate::isolation::percentile;
use crate::web::{
    answer, apply_ingress, curl, eventually, ingress_address, is, namespace, path, rule,
};
use crate::world::{address, alone, answers, apply, service, shared, tenant};

/// Streams that an attacker opens on one connection, had it its way.
const STREAMS: u32 = 20_000;
/// Of HTTP/2's frames (RFC 9113, 6).
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;

/// On the client host.
fn from_client<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> T {
    net::within("client", work).unwrap_or_else(|error| panic!("{error:#}"))
}

fn connect(ip: &str) -> Result<TcpStream> {
    let stream = TcpStream::connect(format!("{ip}:80"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(15)))?;
    Ok(stream)
}

/// Nothing came for as long as a read waits.
fn is_late(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// What is answered to these bytes, until the other side has no more to say.
fn exchange(ip: &str, bytes: &str) -> String {
    from_client(|| {
        let mut stream = connect(ip)?;
        stream.write_all(bytes.as_bytes())?;
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            // What came before a reset was said.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => drop(other.context("neither answered nor closed")?),
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    })
}

#[test]
fn requests_that_two_readers_would_read_differently_reach_nobody() {
    let world = shared("requests_that_two_readers_would_read_differently_reach_nobody");
    let a = tenant("tenant-a");
    let (ns, name) = namespace(&world, &a, "smuggled");
    // What only some may reach lies beside what all may.
    let open = rule(&name, &[path("/open", "Prefix", "web", "80")]);
    apply_ingress(&a, &ns, "open", "", "", &open);
    let closed = rule(&name, &[path("/closed", "Prefix", "web", "80")]);
    apply_ingress(&a, &ns, "closed", "fairlead.dev/deny-cidrs: 172.18.0.0/24", "", &closed);
    let ip = ingress_address(&a, &ns, "closed");
    eventually("one is open, one is closed", || {
        is(&answer(&ip, &name, "/open"), 200) && is(&answer(&ip, &name, "/closed"), 403)
    });

    let head = format!("POST /open HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n");
    let good = exchange(&ip, &format!("{head}content-length: 2\r\n\r\nhi"));
    assert!(good.starts_with("HTTP/1.1 200"), "what is well said is answered: {good}");
    let smuggled = format!("0\r\n\r\nGET /closed HTTP/1.1\r\nhost: {name}\r\n\r\n");
    let length = smuggled.len();
    for (what, more) in [
        ("two lengths", format!("content-length: 4\r\ncontent-length: {length}\r\n\r\n{smuggled}")),
        (
            "a length and chunks",
            format!("content-length: {length}\r\ntransfer-encoding: chunked\r\n\r\n{smuggled}"),
        ),
        (
            "chunks by another name",
            format!("transfer-encoding: xchunked\r\ncontent-length: {length}\r\n\r\n{smuggled}"),
        ),
        (
            "a space before the colon",
            format!("transfer-encoding : chunked\r\ncontent-length: {length}\r\n\r\n{smuggled}"),
        ),
        (
            "a folded header",
            format!("transfer-encoding:\r\n chunked\r\ncontent-length: {length}\r\n\r\n{smuggled}"),
        ),
        ("a NUL in a header", "x: a\0b\r\n\r\n".to_owned()),
        ("a length that is none", format!("content-length: +{length}\r\n\r\n{smuggled}")),
    ] {
        let said = exchange(&ip, &format!("{head}{more}"));
        assert!(!said.contains("HTTP/1.1 200"), "{what}: {said}");
    }

    // However it is written, the path is the one that the rules are about.
    for (written, wanted) in [
        ("/open/../closed", 403),
        ("/open/%2e%2e/closed", 403),
        ("//closed", 403),
        ("/open/..%2fclosed", 400),
        ("/open/..%5cclosed", 400),
        ("/open/%2E%2E%2Fclosed", 400),
    ] {
        let said = curl(&format!("--path-as-is -H 'Host: {name}' 'http://{ip}{written}'"));
        assert!(is(&said, wanted), "{written}: wanted {wanted}: {said}");
    }
    // A header that programs behind might read as `X-Real-IP`.
    let said = curl(&format!("-H 'Host: {name}' -H 'X_Real_IP: 1.2.3.4' http://{ip}/open"));
    assert!(is(&said, 200) && !said.contains("1.2.3.4"), "{said}");
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A request as HPACK writes it with nothing but its static table: `GET / http`, and the host as it is.
fn get(host: &str, stream: u32) -> Vec<u8> {
    let mut block = vec![0x82, 0x84, 0x86, 0x01, u8::try_from(host.len()).unwrap()];
    block.extend(host.as_bytes());
    // END_STREAM and END_HEADERS.
    frame(HEADERS, 0x5, stream, &block)
}

/// Opens HTTP/2 without asking. `window`: what the other side may send on a stream.
fn open(ip: &str, window: u32) -> Result<TcpStream> {
    let mut stream = connect(ip)?;
    let mut settings = 4_u16.to_be_bytes().to_vec();
    settings.extend(window.to_be_bytes());
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
    stream.write_all(&frame(SETTINGS, 0, 0, &settings))?;
    Ok(stream)
}

/// Asks and takes it back, again and again; whether the connection was closed for that. What was written when it was
/// closed says little: the kernel takes a megabyte that nobody reads.
fn resets(ip: &str, host: &str) -> Result<bool> {
    let mut stream = open(ip, 65_535)?;
    for number in 0..STREAMS {
        let id = 2 * number + 1;
        let mut bytes = get(host, id);
        // CANCEL.
        bytes.extend(frame(RST_STREAM, 0, id, &8_u32.to_be_bytes()));
        if stream.write_all(&bytes).is_err() {
            return Ok(true);
        }
    }
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Err(error) if is_late(&error) => Ok(false),
        _ => Ok(true),
    }
}

/// Asks for so much at once, and reads nothing of it; what is kept stays open.
fn unread(ip: &str, host: &str) -> Result<TcpStream> {
    let mut stream = open(ip, 0)?;
    for number in 0..200 {
        if stream.write_all(&get(host, 2 * number + 1)).is_err() {
            // More streams than one connection may have.
            break;
        }
    }
    Ok(stream)
}

/// Whether a request of ours, as these frames say it, is answered.
fn is_answered(ip: &str, host: &str) -> Result<bool> {
    let mut stream = open(ip, 65_535)?;
    stream.write_all(&get(host, 1))?;
    let mut said = Vec::new();
    let mut buffer = [0; 4_096];
    // The answer's head is a frame on stream 1.
    let wanted = [HEADERS, 0x4, 0, 0, 0, 1];
    while !said.windows(wanted.len()).any(|part| part == wanted) {
        match stream.read(&mut buffer)? {
            0 => return Ok(false),
            count => said.extend_from_slice(&buffer[..count]),
        }
    }
    Ok(true)
}

/// Begins a request and never ends it; how long the other side waited for more.
fn unended(ip: &str, host: &str) -> Result<(Duration, String)> {
    let (mut stream, start) = (connect(ip)?, Instant::now());
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    stream.write_all(format!("GET / HTTP/1.1\r\nhost: {host}\r\n").as_bytes())?;
    let mut answer = Vec::new();
    while start.elapsed() < Duration::from_secs(30) {
        match stream.read_to_end(&mut answer) {
            Err(error) if is_late(&error) => {
                if stream.write_all(b"x: y\r\n").is_err() {
                    break;
                }
            }
            _ => break,
        }
    }
    Ok((start.elapsed(), String::from_utf8_lossy(&answer).into_owned()))
}

/// Another tenant's requests, each on a connection of its own: how long they took. An error is one too many.
fn others(address: &str, count: usize) -> Result<Vec<Duration>> {
    let mut took = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        request(address)?;
        took.push(start.elapsed());
        std::thread::sleep(Duration::from_millis(5));
    }
    took.sort();
    Ok(took)
}

#[test]
fn who_resets_streams_loses_the_connection_and_others_lose_nothing() {
    // Alone: how long others' requests take is printed.
    let world = alone("who_resets_streams_loses_the_connection_and_others_lose_nothing");
    let (a, b) = (tenant("tenant-a"), tenant("tenant-b"));
    let (ns, name) = namespace(&world, &a, "attacked");
    apply_ingress(&a, &ns, "web", "", "", &rule(&name, &[path("/", "Prefix", "web", "80")]));
    let ip = ingress_address(&a, &ns, "web");
    eventually("it serves", || is(&answer(&ip, &name, "/"), 200));
    world.workload(&b, "attacked");
    let other = service("attacked", "web", "{name: http, port: 9400, targetPort: 8080}", "");
    apply(&b, &other);
    let other = format!("{}:9400", address(&b, "attacked", "web"));
    answers(&format!("http://{other}/"), "cluster=tenant-b");

    assert!(from_client(|| is_answered(&ip, &name)), "what attackers send is HTTP/2");
    let quiet = from_client(|| others(&other, 200));
    let (attacked, closed, unended) = std::thread::scope(|scope| {
        let unended = scope.spawn(|| from_client(|| unended(&ip, &name)));
        let resets = scope.spawn(|| {
            from_client(|| {
                let kept = (0..20).map(|_| unread(&ip, &name)).collect::<Result<Vec<_>>>()?;
                let closed = (0..20).map(|_| resets(&ip, &name)).collect::<Result<Vec<_>>>()?;
                Ok((kept, closed))
            })
        });
        let attacked = from_client(|| others(&other, 1_000));
        let unended = unended.join().expect("the one without end");
        // What is unread stayed open until here.
        let (_kept, closed) = resets.join().expect("the attacker");
        (attacked, closed, unended)
    });
    let (waited, said) = unended;
    println!(
        "others: p50 {:?}, p99 {:?} of {}; attacked p50 {:?}, p99 {:?} of {}; a request without end was waited for {waited:?}",
        percentile(&quiet, 50),
        percentile(&quiet, 99),
        quiet.len(),
        percentile(&attacked, 50),
        percentile(&attacked, 99),
        attacked.len(),
    );
    assert!(closed.iter().all(|closed| *closed), "{STREAMS} resets on one connection: {closed:?}");
    assert!(waited < Duration::from_secs(20) && said.contains(" 408 "), "{waited:?}: {said:?}");
    // The one that was attacked serves on.
    assert!(is(&answer(&ip, &name, "/"), 200));
}

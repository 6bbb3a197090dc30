//! What a tenant may have at most: told by the field that says so, while what it has goes on.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use fairlead_api::RouteSpec;
use fairlead_process::token::Token;
use fairlead_proto::v1;
use fairlead_proto::v1::hub_message::Message as From;

use crate::agent::{Agent, Stream, from_client, holds, ingress, make_tenant, remove, tcp, token};
use crate::world::{event, hub, kubectl, shared};

/// A node where nobody is: the hub's words are what counts.
const NODE: &str = "172.18.0.29";

/// A Service of TCP at this port.
fn service(name: &str, port: u16) -> RouteSpec {
    tcp(name, "public", port, 30_080)
}

fn words(status: &v1::Status) -> Option<String> {
    let condition = status.conditions.iter().find(|c| c.reason == "QuotaReached")?;
    Some(format!("{}: {}", condition.reason, condition.message))
}

/// What the hub says of a Route that is one more than its tenant may have: as a status, or that it does not take it.
async fn refused(stream: &mut Stream, hash: &[u8]) -> String {
    let wanted = |message: &From| match message {
        From::Status(status) => status.hash == hash && words(status).is_some(),
        From::Refused(refused) => refused.hash == hash,
        _ => false,
    };
    match stream.until(wanted).await.expect("an answer") {
        From::Status(status) => words(&status).expect("as asked for"),
        From::Refused(refused) => format!("{}: {}", refused.reason, refused.message),
        other => panic!("{other:?}"),
    }
}

async fn programmed(stream: &mut Stream, hash: &[u8]) -> v1::Status {
    let status = stream.status(hash, |status| holds(status, "Programmed")).await;
    status.expect("it is served")
}

/// A tenant's agent with one Route, and one that is too many. `raise` is called once that was told; then the second is
/// served too, without another word of the agent's.
async fn one_too_many(token: &Token, [one, two]: &[RouteSpec; 2], raise: impl FnOnce(String)) {
    let agent = Agent::join(token).await.expect("joins");
    let mut stream = agent.stream().await.expect("a stream");
    stream.nodes(&[NODE.to_owned()]).await.unwrap();
    let first = stream.put(one).await.expect("pushed");
    let first = programmed(&mut stream, &first).await;
    let mut second = stream.put(two).await.expect("pushed");
    let said = refused(&mut stream, &second).await;
    // What there was is served on.
    let at = format!("{}:{}", first.addresses[0], one.listeners[0].port);
    assert!(TcpStream::connect(&at).is_ok(), "{at}: {said}");
    // What is not taken is not kept: the hub ends the stream, and is told anew.
    let anew = !said.starts_with("QuotaReached");
    raise(said);
    if anew {
        assert!(stream.until(|_| false).await.is_err());
        stream = agent.stream().await.expect("another stream");
        stream.nodes(&[NODE.to_owned()]).await.unwrap();
        second = stream.put(two).await.expect("pushed");
    }
    programmed(&mut stream, &second).await;
}

#[test]
fn each_quota_is_told_by_its_field_and_raised_at_once() {
    let _world = shared("each_quota_is_told_by_its_field_and_raised_at_once");
    let site = |name: &str, host: &str| ingress(name, &[host.to_owned()], 30_080);
    for (quota, reason, routes) in [
        ("routes", "TooManyRoutes", [service("one", 9_401), service("two", 9_402)]),
        ("ports", "QuotaReached", [service("one", 9_403), service("two", 9_404)]),
        // The port is taken at the first address, so it takes another one.
        ("addresses", "QuotaReached", [service("one", 9_405), service("two", 9_405)]),
        ("endpoints", "QuotaReached", [service("one", 9_406), service("two", 9_407)]),
        (
            "hostnames",
            "QuotaReached",
            [site("one", "one.quota.example"), site("two", "two.quota.example")],
        ),
    ] {
        let name = format!("few-{quota}");
        make_tenant(&name, &format!("pools: [public], quotas: {{{quota}: 1}}"));
        let token = token(&name);
        let (tell, told) = std::sync::mpsc::channel();
        let (raise, raised) = std::sync::mpsc::channel();
        // `kubectl` runs where it does, and the agent on the client host.
        let said = std::thread::scope(|scope| {
            // It goes with a failure here, or the agent would wait for ever.
            let raise = raise;
            scope.spawn(|| {
                from_client(|| {
                    one_too_many(&token, &routes, move |said| {
                        tell.send(said).unwrap();
                        raised.recv().expect("raised");
                    })
                });
            });
            let said = told.recv().unwrap_or_else(|_| panic!("nothing is told of {quota}"));
            let patch = format!("{{\"spec\":{{\"quotas\":{{\"{quota}\":2}}}}}}");
            kubectl(&hub(), &format!("patch tenant {name} --type=merge -p {patch}"));
            raise.send(()).unwrap();
            said
        });
        assert!(said.starts_with(reason), "{quota}: {said}");
        assert!(said.contains(&format!("Tenant.spec.quotas.{quota}")), "{quota}: {said}");
        println!("{quota}: {said}");
        remove(&name);
    }
}

#[test]
fn changes_that_come_too_fast_wait_and_it_is_told() {
    let _world = shared("changes_that_come_too_fast_wait_and_it_is_told");
    make_tenant("hasty", "pools: [public], quotas: {changesPerSecond: 2}");
    let token = token("hasty");
    from_client(|| async {
        let mut stream =
            Agent::join(&token).await.expect("joins").stream().await.expect("a stream");
        let begin = Instant::now();
        let mut last = Vec::new();
        for number in 0..70 {
            last = stream.put(&tcp("web", "public", 9_350, 30_000 + number)).await.unwrap();
        }
        // None is lost, and none is taken in before its time: four seconds' worth may come at once.
        stream
            .until(|message| matches!(message, From::Stored(stored) if stored.hash == last))
            .await
            .expect("the last one is stored");
        let took = begin.elapsed();
        assert!(took > Duration::from_secs(25), "{took:?}");
    });
    event(&hub(), "default", "hasty", "TooManyChanges");
    remove("hasty");
}

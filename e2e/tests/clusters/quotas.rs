//! What a tenant may have at most: told by the field that says so, while what it has and what others have goes on.

use fairlead_api::RouteSpec;
use fairlead_e2e::cluster;
use fairlead_e2e::local::Local;
use fairlead_process::token::Token;
use fairlead_proto::v1;
use fairlead_proto::v1::hub_message::Message as From;

use crate::agent::{Agent, Stream, from_client, holds, ingress, make_tenant, remove, tcp, token};
use crate::world::{hub, shared};

/// The node of another tenant's, at whose node port nobody needs to be: the hub's words are what counts.
const NODE: &str = "172.18.0.29";

/// A Service of TCP at this port.
fn service(name: &str, port: u16) -> RouteSpec {
    tcp(name, "public", port, 30_080)
}

/// What the hub says of a Route once it has decided.
async fn told(stream: &mut Stream, spec: &RouteSpec) -> v1::Status {
    let hash = stream.put(spec).await.expect("pushed");
    let refused =
        |status: &v1::Status| status.conditions.iter().any(|c| c.reason == "QuotaReached");
    let decided = |status: &v1::Status| holds(status, "Programmed") || refused(status);
    stream.status(&hash, decided).await.expect("a status")
}

/// What the hub says of a Route that is one more than its tenant may have: as a status, or that it does not take it.
async fn refused(stream: &mut Stream, spec: &RouteSpec) -> String {
    let hash = stream.put(spec).await.expect("pushed");
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

fn words(status: &v1::Status) -> Option<String> {
    let condition = status.conditions.iter().find(|c| c.reason == "QuotaReached")?;
    Some(format!("{}: {}", condition.reason, condition.message))
}

/// A tenant's agent with one Route, and one that is too many. `raised` is called once that was told; then it opens
/// another stream, as agents do where their quota of Routes changes.
async fn one_too_many(token: &Token, [one, two]: &[RouteSpec; 2], raised: impl FnOnce(String)) {
    let agent = Agent::join(token).await.expect("joins");
    let mut stream = agent.stream().await.expect("a stream");
    stream.nodes(&[NODE.to_owned()]).await.unwrap();
    let first = told(&mut stream, one).await;
    assert!(holds(&first, "Programmed"), "{:?}", first.conditions);
    let said = refused(&mut stream, two).await;
    // What there was is served on.
    let at = format!("{}:{}", first.addresses[0], one.listeners[0].port);
    assert!(std::net::TcpStream::connect(&at).is_ok(), "{at}: {said}");
    raised(said);
    drop(stream);
    let mut stream = agent.stream().await.expect("another stream");
    stream.nodes(&[NODE.to_owned()]).await.unwrap();
    for spec in [one, two] {
        let now = told(&mut stream, spec).await;
        assert!(holds(&now, "Programmed"), "{:?}", now.conditions);
    }
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
            let raised = ["patch", "tenant", &name, "--type=merge", "-p", &patch];
            cluster::kubectl(&Local, &hub(), &raised).expect("raised");
            raise.send(()).unwrap();
            said
        });
        assert!(said.starts_with(reason), "{quota}: {said}");
        assert!(said.contains(&format!("Tenant.spec.quotas.{quota}")), "{quota}: {said}");
        println!("{quota}: {said}");
        remove(&name);
    }
}

//! Joining, certificates that renew themselves, and what strangers get: nothing.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use fairlead_e2e::install::{self, NAMESPACE};
use fairlead_e2e::local::Local;
use fairlead_e2e::topology::Cluster;
use fairlead_e2e::{binaries, paths, run};
use fairlead_process::proof::{BoundKey, recover_message};
use fairlead_process::tls;
use fairlead_process::token::Token;
use fairlead_proto::v1;
use fairlead_proto::v1::enroll_request::Credential;
use fairlead_proto::v1::identity_client::IdentityClient;
use fairlead_proto::v1::recover_response::Answer;
use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, SanType};
use tonic::Code;

use crate::agent::{
    self, Agent, Stream, enroll, from_client, holds, ingress, make_tenant, remove, stranger,
    stranger_at, token,
};
use crate::faults::{rolled_out, rollout_of_agents, rollout_of_manager, under_load};
use crate::isolation::refusals;
use crate::world::{
    address, alone, answers, apply, event, hub, kubectl, on_host, pod_of_manager, service, shared,
    tenant, until,
};

/// Runs `fairlead` on the hub; what it prints comes back.
fn fairlead(line: &str) -> String {
    let words: Vec<_> = line.split_whitespace().collect();
    install::fairlead(&Local, &words).unwrap_or_else(|error| panic!("{error:#}"))
}

/// Certificates of so many seconds from now on.
pub fn lifetime(seconds: u32) {
    let set = format!("FAIRLEAD_CERTIFICATE_SECONDS={seconds}");
    kubectl(&hub(), &format!("-n {NAMESPACE} set env deployment/fairlead-manager {set}"));
    rolled_out(&hub(), "manager");
}

/// Lets a tenant's agent join anew, as after an installation from nothing.
pub fn join_anew(cluster: &Cluster, name: &str) {
    let token = fairlead(&format!("token create {name} --token-only"));
    let secret = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "fairlead-agent-join", "namespace": NAMESPACE},
        "stringData": {"token": token.trim()},
    });
    apply(cluster, &secret.to_string());
    rollout_of_agents(cluster);
    connected(name, Duration::from_secs(45));
}

/// Certificates of so many seconds, for everybody: Envoys and agents get them anew.
pub fn everybody_anew(seconds: u32) {
    lifetime(seconds);
    kubectl(&hub(), &format!("-n {NAMESPACE} rollout restart daemonset/fairlead-envoy"));
    kubectl(
        &hub(),
        &format!("-n {NAMESPACE} rollout status daemonset/fairlead-envoy --timeout=180s"),
    );
    join_anew(&tenant("tenant-a"), "a");
    join_anew(&tenant("tenant-b"), "b");
}

pub fn connected(name: &str, within: Duration) {
    let path = "jsonpath={.status.conditions[?(@.type=='Connected')].status}";
    let waited = run::wait_for(&format!("tenant {name} connected"), within, || {
        let get = ["get", "tenant", name, "-o", path];
        let said = fairlead_e2e::cluster::kubectl(&Local, &hub(), &get)?;
        if said == "True" { Ok(()) } else { bail!("it says {said:?}") }
    });
    waited.unwrap_or_else(|error| panic!("{error:#}"));
}

/// What the pods of a component have said since a time of [`now`]: the API server knows whole seconds only, in which
/// more happened than is asked for.
pub fn logs(cluster: &Cluster, component: &str, since: &str) -> String {
    let all = "--all-containers --prefix --timestamps --tail=-1";
    let said = kubectl(
        cluster,
        &format!(
            "-n {NAMESPACE} logs -l app.kubernetes.io/component={component} {all} --since-time={since}"
        ),
    );
    let later = |line: &&str| line.split(' ').nth(1).is_some_and(|time| time >= since);
    said.lines().filter(later).collect::<Vec<_>>().join("\n")
}

/// A time that sorts as text, as those of `kubectl logs` do.
pub fn now() -> String {
    on_host("client", "date -u +%Y-%m-%dT%H:%M:%S.%NZ").expect("date").trim().to_owned()
}

#[test]
fn a_third_tenant_joins_by_two_commands_while_traffic_runs() {
    let world = alone("a_third_tenant_joins_by_two_commands_while_traffic_runs");
    let (a, spare) = (tenant("tenant-a"), Local.up_spare().expect("a third cluster"));
    for image in [&world.images.agent, &world.images.echo] {
        fairlead_e2e::driver::Driver::load_image(&Local, &spare, &image.archive)
            .expect("the image");
    }
    world.workload(&a, "third");
    apply(&a, &service("third", "web", "{name: http, port: 9100, targetPort: 8080}", ""));
    let ip = address(&a, "third", "web");
    answers(&format!("http://{ip}:9100/"), "cluster=tenant-a");
    let (sent, errors) = under_load(&format!("{ip}:9100"), || {
        // The first command prints the second, which is run as it is printed: its chart is a folder here, and
        // its image one that was built here.
        let line = fairlead(
            "tenant add c --node-cidr 172.18.0.41/32 --domain *.c.example --pool public \
             --hub-address 172.18.0.11:30843",
        );
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words[..3], ["helm", "upgrade", "--install"], "{line}");
        let mut helm = Command::new(binaries::path("helm"));
        let kubeconfig = fairlead_e2e::driver::Driver::kubeconfig(&Local, &spare);
        helm.current_dir(paths::repository()).arg("--kubeconfig").arg(kubeconfig);
        helm.args(&words[1..])
            .arg("--set-string")
            .arg(format!("image.tag={}", world.images.agent.tag()));
        run::output(&mut helm).expect("helm");
        connected("c", Duration::from_secs(15));
    });
    assert!(
        errors.is_empty() && sent > 50,
        "{} of {sent} failed: {:?}",
        errors.len(),
        errors.first()
    );
    assert!(kubectl(&hub(), "get tenants").contains("c "), "kubectl shows it");
    world.workload(&spare, "web");
    apply(&spare, &service("web", "web", "{name: http, port: 9101, targetPort: 8080}", ""));
    let third = address(&spare, "web", "web");
    answers(&format!("http://{third}:9101/"), "cluster=tenant-c");

    // It goes as it came: in order, and completely.
    let said = fairlead("tenant remove c --yes");
    assert!(said.contains("tenant c is gone"), "{said}");
    crate::world::gone(&format!("http://{third}:9101/"));
    until(&hub(), "get namespaces -o name", |names| !names.contains("tenant-c"));
    until(&hub(), "get addressclaims -o wide", |claims| !claims.contains("web.web"));
    assert!(!kubectl(&hub(), "get jointokens").contains(" c "), "its tokens are gone");
    answers(&format!("http://{ip}:9100/"), "cluster=tenant-a");
    kubectl(&spare, &format!("-n {NAMESPACE} delete deployment fairlead-agent"));
}

/// Certificates of half a minute for three minutes, during which the CA is replaced three times; or as long as
/// `FAIRLEAD_E2E_RENEWALS` says (seconds), with certificates of a minute.
#[test]
fn certificates_renew_and_the_ca_is_replaced_and_no_stream_is_lost() {
    let world = alone("certificates_renew_and_the_ca_is_replaced_and_no_stream_is_lost");
    let long =
        std::env::var("FAIRLEAD_E2E_RENEWALS").ok().and_then(|text| text.parse::<u64>().ok());
    let (seconds, whole) = if long.is_some() { (60, long.unwrap_or(0)) } else { (30, 100) };
    let (a, b) = (tenant("tenant-a"), tenant("tenant-b"));
    world.workload(&a, "renew");
    apply(&a, &service("renew", "web", "{name: http, port: 9200, targetPort: 8080}", ""));
    let ip = address(&a, "renew", "web");
    answers(&format!("http://{ip}:9200/"), "cluster=tenant-a");
    everybody_anew(seconds);
    answers(&format!("http://{ip}:9200/"), "cluster=tenant-a");
    let (begin, since) = (Instant::now(), now());
    let (sent, errors) = under_load(&format!("{ip}:9200"), || {
        for round in 0..3 {
            let before = fairlead("ca status");
            fairlead("ca rotate");
            let replaced = run::wait_for(
                "a new CA, and the old one trusted no more",
                Duration::from_secs(180),
                || {
                    let after = fairlead("ca status");
                    if is_replaced(&before, &after) { Ok(()) } else { bail!("{after}") }
                },
            );
            replaced.unwrap_or_else(|error| panic!("round {round}: {error:#}"));
        }
        while begin.elapsed() < Duration::from_secs(whole) {
            std::thread::sleep(Duration::from_secs(1));
        }
    });
    let took = begin.elapsed();
    assert!(errors.is_empty(), "{} of {sent} failed: {:?}", errors.len(), errors.first());
    let manager = logs(&hub(), "manager", &since);
    is_silent(
        &manager,
        &["agent's stream ended", "agent disconnected", "xDS stream failed", "xDS stream closed"],
    );
    is_silent(&manager, &REFUSED);
    let renewals = manager.matches("a new certificate is in use").count();
    let due = usize::try_from(took.as_secs() / u64::from(seconds)).unwrap();
    assert!(renewals >= 2 * due, "{renewals} renewals of two agents in {took:?}");
    for cluster in [&a, &b] {
        is_silent(&logs(cluster, "agent", &since), &NO_WAY);
    }
    println!("{renewals} renewals of two agents, 3 CAs, {sent} requests in {took:?}");
    reconnects_while_the_ca_is_replaced(&b);
    answers(&format!("http://{ip}:9200/"), "cluster=tenant-a");

    // The hub is away for longer than a certificate lives.
    let before = ["a", "b"].map(recoveries);
    kubectl(&hub(), &format!("-n {NAMESPACE} scale deployment/fairlead-manager --replicas=0"));
    std::thread::sleep(Duration::from_secs(u64::from(seconds) + 5));
    kubectl(&hub(), &format!("-n {NAMESPACE} scale deployment/fairlead-manager --replicas=1"));
    for (name, before) in ["a", "b"].into_iter().zip(before) {
        let recovered = run::wait_for("a recovery", Duration::from_secs(60), || {
            if recoveries(name) > before { Ok(()) } else { bail!("{before} so far") }
        });
        recovered.unwrap_or_else(|error| panic!("{name}: {error:#}"));
        connected(name, Duration::from_secs(60));
    }
    answers(&format!("http://{ip}:9200/"), "cluster=tenant-a");
    everybody_anew(86_400);
}

/// What a manager says of whom it does not let in.
const REFUSED: [&str; 2] = ["connection refused", "certificate refused"];

/// What an agent says that is not let in.
const NO_WAY: [&str; 4] =
    ["no stream to the hub", "no certificate from the hub", "not renewed", "does not take"];

fn is_silent(log: &str, about: &[&str]) {
    for word in about {
        assert!(!log.contains(word), "{}", lines_with(log, word));
    }
}

/// Whether another CA is there than was, and it is the only one.
fn is_replaced(before: &str, after: &str) -> bool {
    let only = after.matches("Active").count() == 1 && !after.contains("Retiring");
    only && after.lines().next() != before.lines().next()
}

/// Whoever connects at any step of a rotation is let in: an agent again and again, and all of them, the Envoys too,
/// when the manager is made anew in the midst of it.
fn reconnects_while_the_ca_is_replaced(b: &Cluster) {
    let (before, since) = (fairlead("ca status"), now());
    fairlead("ca rotate");
    let (mut agents, begin) = (0, Instant::now());
    while !is_replaced(&before, &fairlead("ca status")) {
        assert!(begin.elapsed() < Duration::from_secs(300), "{}", fairlead("ca status"));
        rollout_of_agents(b);
        connected("b", Duration::from_secs(30));
        agents += 1;
        is_silent(&logs(b, "agent", &since), &NO_WAY);
        is_silent(&logs(&hub(), "manager", &since), &REFUSED);
        if agents == 2 {
            rollout_of_manager();
        }
    }
    let manager = logs(&hub(), "manager", &since);
    is_silent(&manager, &REFUSED);
    let (streams, joined) =
        (manager.matches("xDS stream opened").count(), manager.matches("agent connected").count());
    println!(
        "{agents} agents and the manager made anew during a rotation: {streams} streams of Envoys, {joined} of agents since"
    );
    assert!(agents >= 2 && streams >= 2 && joined >= 2);
}

/// How often the agents of a tenant have recovered.
fn recoveries(tenant: &str) -> u32 {
    let path = "-o jsonpath={.items[*].status.recoveries}";
    let said = kubectl(&hub(), &format!("-n tenant-{tenant} get agents {path}"));
    said.split_whitespace().filter_map(|number| number.parse::<u32>().ok()).sum()
}

fn lines_with(text: &str, what: &str) -> String {
    text.lines().filter(|line| line.contains(what)).take(3).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_revoked_agent_loses_its_open_streams_within_5_s_and_is_told_why() {
    let _world = shared("a_revoked_agent_loses_its_open_streams_within_5_s_and_is_told_why");
    make_tenant("revoked", "pools: [public]");
    let token = token("revoked");
    // The command runs where kubectl does, and the agent on the client host.
    let (opened, open) = std::sync::mpsc::channel();
    let (took, told) = std::thread::scope(|scope| {
        let agent = scope.spawn(|| {
            from_client(|| async {
                let agent = Agent::join(&token).await.expect("joins");
                let channel = agent.channel().await.expect("connects");
                let mut stream = Stream::open(channel.clone(), 1).await.expect("a stream");
                let (_keep, confirmed) = tokio::sync::mpsc::channel(1);
                let confirmed = tokio_stream::wrappers::ReceiverStream::new(confirmed);
                let trust = IdentityClient::new(channel).watch_trust(confirmed).await;
                let mut trust = trust.expect("trust").into_inner();
                trust.message().await.expect("trust");
                opened.send(agent.id.rsplit('/').next().unwrap().to_owned()).unwrap();
                assert!(stream.until(|_| false).await.is_err());
                assert!(!matches!(trust.message().await, Ok(Some(_))));
                let closed = Instant::now();
                let again = agent.channel().await.expect("TLS");
                (closed, Stream::open(again, 2).await.map(drop).unwrap_err().to_string())
            })
        });
        let id = open.recv().expect("an agent");
        let begin = Instant::now();
        fairlead(&format!("agent revoke revoked {id}"));
        let (closed, told) = agent.join().expect("the agent");
        (closed.duration_since(begin), told)
    });
    println!("closed {took:?} after the command began");
    assert!(told.contains("was revoked"), "{told}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    // Its token is of no use either, also with its own key.
    let said = from_client(|| async {
        let key = BoundKey::generate().unwrap();
        enroll(&token, &key, tls::request(None).unwrap().1).await.unwrap_err()
    });
    assert!(said.message().contains("another key"), "{said}");
    event(&hub(), "default", "revoked", "JoinRefused");
    remove("revoked");
}

#[test]
fn bad_tokens_and_bad_requests_are_told_apart() {
    let _world = alone("bad_tokens_and_bad_requests_are_told_apart");
    make_tenant("tokens", "pools: [public]");
    let since = now();
    let codes = ["Unauthenticated", "InvalidArgument", "OutOfRange", "ResourceExhausted"];
    let before = codes.map(|code| refusals("Enroll", code));
    let good = token("tokens");
    let foreign = Token::new([9; 32]).unwrap();
    let unknown = Token::new(good.pin).unwrap();
    let text = good.reveal();
    let parts: Vec<_> = text.split('.').collect();
    let other_secret: Token =
        [parts[0], parts[1], unknown.reveal().split('.').nth(2).unwrap(), parts[3]]
            .join(".")
            .parse()
            .unwrap();
    assert!(
        text[..text.len() - 3].parse::<Token>().unwrap_err().to_string().contains("copied whole")
    );
    from_client(|| async {
        // The hub is not the one that the token is for: not a word is said to it.
        let error = stranger(&foreign).await.map(drop).unwrap_err();
        assert!(format!("{error:#}").contains("UnknownIssuer"), "{error:#}");
        let key = BoundKey::generate().unwrap();
        let csr = || tls::request(None).unwrap().1;
        for token in [&unknown, &other_secret] {
            let said = enroll(token, &key, csr()).await.unwrap_err();
            assert_eq!(said.code(), Code::Unauthenticated);
            assert!(said.message().contains("is not known here"), "{said}");
        }
        let build = |change: fn(&mut CertificateParams)| {
            let mut params = CertificateParams::default();
            change(&mut params);
            params.serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
        };
        let ca = build(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
        let red = build(|params| {
            let id = "spiffe://fairlead.local/tenant/a/agent/abcdefghij";
            params.subject_alt_names.push(SanType::URI(Ia5String::try_from(id).unwrap()));
        });
        for (csr, says) in [
            (ca, "asks for a CA certificate"),
            (red, "asks for the name"),
            (vec![0; 5_000], "longer than 4 KiB"),
            (b"garbage".to_vec(), "cannot be read"),
        ] {
            let said = enroll(&good, &key, csr).await.unwrap_err();
            assert_eq!(said.code(), Code::InvalidArgument, "{said}");
            assert!(said.message().contains(says), "{said}");
        }
        // 16 KiB are read, and no more.
        let said = enroll(&good, &key, vec![0; 20_000]).await.unwrap_err();
        assert_eq!(said.code(), Code::OutOfRange, "{said}");
        // With all of that the token is unused; an answer that is lost does not lock its agent out.
        enroll(&good, &key, csr()).await.expect("joins");
        enroll(&good, &key, csr()).await.expect("joins again");
        let said = enroll(&good, &BoundKey::generate().unwrap(), csr()).await.unwrap_err();
        assert!(said.message().contains("used with another key"), "{said}");
        // Whoever guesses is not even listened to.
        let mut last = Code::Ok;
        for _ in 0..12 {
            last = enroll(&unknown, &key, csr()).await.unwrap_err().code();
        }
        assert_eq!(last, Code::ResourceExhausted);
    });
    // Each is counted; what is wrong is in one line of the log; and where somebody can act on it there is an Event.
    for (code, before) in codes.iter().zip(before) {
        assert!(refusals("Enroll", code) > before, "{code}");
    }
    let said = logs(&hub(), "manager", &since);
    for (line, count) in [
        ("asks for a CA certificate", 1),
        ("asks for the name", 1),
        ("longer than 4 KiB", 1),
        ("used with another key", 1),
    ] {
        let refused = |text: &&str| text.contains("no certificate issued") && text.contains(line);
        assert_eq!(said.lines().filter(refused).count(), count, "{line}: {said}");
    }
    event(&hub(), "default", "tokens", "RequestRefused|agent");
    event(&hub(), "default", "tokens", "JoinRefused|token");
    remove("tokens");
    // Whoever joins next comes from the same address: the limit is forgotten with the manager.
    rollout_of_manager();
}

/// Methods of every service that is, or might be, served on a port.
fn methods() -> Vec<String> {
    let own = ["Hub/Sync", "Identity/Renew", "Identity/WatchTrust"];
    let own = own.map(|method| format!("/fairlead.v1.{method}"));
    let discovery = [
        ("discovery", "Aggregated", "AggregatedResources"),
        ("cluster", "Cluster", "Clusters"),
        ("endpoint", "Endpoint", "Endpoints"),
        ("listener", "Listener", "Listeners"),
        ("route", "Route", "Routes"),
        ("route", "ScopedRoutes", "ScopedRoutes"),
        ("route", "VirtualHost", "VirtualHosts"),
        ("secret", "Secret", "Secrets"),
        ("runtime", "Runtime", "Runtime"),
        ("extension", "ExtensionConfig", "ExtensionConfigs"),
        ("endpoint", "LocalityEndpoint", "LocalityEndpoints"),
    ];
    let discovery = discovery.into_iter().flat_map(|(package, service, what)| {
        ["Stream", "Delta", "Fetch"]
            .map(|how| format!("/envoy.service.{package}.v3.{service}DiscoveryService/{how}{what}"))
    });
    let others = [
        "/envoy.service.health.v3.HealthDiscoveryService/StreamHealthCheck",
        "/envoy.service.health.v3.HealthDiscoveryService/FetchHealthCheck",
        "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats",
        "/envoy.service.status.v3.ClientStatusDiscoveryService/StreamClientStatus",
        "/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus",
        "/envoy.service.auth.v3.Authorization/Check",
        "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit",
        "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ];
    own.into_iter().chain(discovery).chain(others.map(str::to_owned)).collect()
}

/// What an Envoy may call at its port.
const ENVOYS: [&str; 2] = [
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
    "/envoy.service.health.v3.HealthDiscoveryService/StreamHealthCheck",
];

/// A token of a service account of the manager's namespace, as `kubectl create token` prints it.
fn account_token(account: &str, more: &str) -> String {
    kubectl(&hub(), &format!("-n {NAMESPACE} create token {account} {more}")).trim().to_owned()
}

/// Enrols as an Envoy does.
fn enroll_envoy(pin: &Token, token: String) -> Result<tls::Credentials, tonic::Status> {
    from_client(|| async {
        let channel = stranger(pin).await.expect("TLS");
        let (key, csr) = tls::request(None).unwrap();
        let credential = Some(Credential::ServiceAccountToken(token));
        let request = v1::EnrollRequest { csr, credential };
        let v1::Issued { chain, trust, .. } =
            IdentityClient::new(channel).enroll(request).await?.into_inner();
        let own = Some((&*chain, key.as_bytes()));
        Ok(tls::Credentials::from_pem(&trust.expect("trust").roots, own).unwrap())
    })
}

/// A certificate as the first Envoy has one, by a token of its pod; other tokens are no Envoy's.
fn as_envoy(pin: &Token) -> tls::Credentials {
    let pods =
        "get pods -l app.kubernetes.io/component=envoy -o jsonpath={.items[0].metadata.name}";
    let pod = kubectl(&hub(), &format!("-n {NAMESPACE} {pods}"));
    let bound = format!("--bound-object-kind=Pod --bound-object-name={pod}");
    let audience = format!("--audience={}", fairlead_proto::ENVOY_AUDIENCE);
    for (what, token) in [
        ("another account's", account_token("fairlead-manager", &audience)),
        ("of no pod", account_token("fairlead-envoy", &audience)),
        ("for another audience", account_token("fairlead-envoy", &bound)),
        ("no token", "garbage".to_owned()),
    ] {
        let said = enroll_envoy(pin, token).map(drop).expect_err(what);
        assert_eq!(said.code(), Code::Unauthenticated, "{what}: {said}");
    }
    let good = account_token("fairlead-envoy", &format!("{bound} {audience}"));
    enroll_envoy(pin, good).expect("enrols")
}

async fn call(channel: tonic::transport::Channel, path: &str) -> Result<usize, Code> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|_| Code::Unavailable)?;
    let path: http::uri::PathAndQuery = path.parse().expect("a path");
    let codec = tonic_prost::ProstCodec::<v1::Confirmed, v1::Confirmed>::default();
    let message = tonic::Request::new(v1::Confirmed { sequence: 1 });
    let answer =
        tokio::time::timeout(Duration::from_secs(10), grpc.unary(message, path, codec)).await;
    match answer {
        Ok(Ok(_)) => Ok(1),
        Ok(Err(status)) => Err(status.code()),
        Err(_) => Ok(0),
    }
}

#[test]
fn strangers_and_tenants_get_nothing_that_is_not_theirs_from_any_method_of_any_port() {
    let _world =
        alone("strangers_and_tenants_get_nothing_that_is_not_theirs_from_any_method_of_any_port");
    make_tenant("nosy", "pools: [public]");
    let token = token("nosy");
    // The xDS port is the manager's own, in the hub's pod network: from a hub's node, as a pod there would.
    let pod = pod_of_manager();
    let agent = from_client(|| async { Agent::join(&token).await.expect("joins") });
    let envoy = Arc::new(as_envoy(&token));
    for (port, host) in [(8443, "hub-1"), (18_000, "hub-1")] {
        let (address, agent, envoy, token) = (format!("{pod}:{port}"), &agent, &envoy, &token);
        let tried = fairlead_e2e::local::net::within(host, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                // The port is there, and lets in who may come: what is refused below is refused by it.
                let by = |credentials: Arc<tls::Credentials>| {
                    let address = address.clone();
                    async move { tls::connect(&address, agent::NAME, &credentials).await }
                };
                for path in ENVOYS {
                    let got = call(by(envoy.clone()).await.expect("an Envoy connects"), path).await;
                    let nothing = matches!(got, Err(Code::PermissionDenied | Code::Unimplemented));
                    let closed = matches!(got, Err(Code::Unavailable | Code::Unauthenticated));
                    assert!(!closed, "an Envoy, {port}, {path}: {got:?}");
                    assert_eq!(nothing, port == 8443, "an Envoy, {port}, {path}: {got:?}");
                }
                for path in &methods() {
                    let got = match stranger_at(&address, token).await {
                        Ok(channel) => call(channel, path).await,
                        // Not even TLS.
                        Err(_) if port == 18_000 => Err(Code::Unauthenticated),
                        Err(error) => panic!("nobody, {port}: {error:#}"),
                    };
                    assert!(
                        matches!(got, Err(Code::Unauthenticated))
                            || (port == 18_000
                                && matches!(got, Err(Code::Unavailable | Code::Unknown))),
                        "nobody, {port}, {path}: {got:?}"
                    );
                    for (who, credentials) in [("agent", &agent.credentials), ("Envoy", envoy)] {
                        let own = match who {
                            "agent" => path.starts_with("/fairlead.v1.") && port == 8443,
                            _ => {
                                (ENVOYS.contains(&path.as_str()) && port == 18_000)
                                    || (path.ends_with("/WatchTrust") && port == 8443)
                            }
                        };
                        if own {
                            continue;
                        }
                        let channel = by(credentials.clone()).await;
                        let got =
                            call(channel.unwrap_or_else(|e| panic!("{who}: {e:#}")), path).await;
                        assert!(
                            matches!(got, Err(Code::PermissionDenied | Code::Unimplemented)),
                            "a certificate of an {who}, {port}, {path}: {got:?}"
                        );
                    }
                }
            });
            Ok(())
        });
        tried.unwrap();
    }
    // Envoy's own: the admin interface is on no port, and the probes' listener knows two paths.
    for path in ["/", "/config_dump", "/certs", "/quitquitquit", "/stats", "/ready/../config_dump"]
    {
        let get = format!(
            "curl -s --path-as-is -o /dev/null -w %{{http_code}} http://172.18.0.11:19003{path}"
        );
        assert_eq!(on_host("client", &get).unwrap(), "404", "{path}");
    }
    let open = on_host("hub-1", "ss -ltnHp | grep envoy | awk '{print $4}' | sort -u").unwrap();
    assert!(!open.contains(":9901") && !open.contains(":15000"), "{open}");
    // The certificate names the tenant: no message of an agent does, and none reaches another's namespace.
    let before = kubectl(&hub(), "-n tenant-a get routes -o name");
    from_client(|| async {
        let mut stream = agent.stream().await.expect("a stream");
        let host = ingress("told", &["told.nosy.example".to_owned()], 30_080);
        let hash = stream.put(&host).await.unwrap();
        stream.status(&hash, |status| holds(status, "Programmed")).await.expect("served");
        let hash = stream.put(&agent::tcp("mine", "public", 9_301, 30_080)).await.unwrap();
        stream
            .until(|m| matches!(m, v1::hub_message::Message::Stored(s) if s.hash == hash))
            .await
            .unwrap();
    });
    assert_eq!(kubectl(&hub(), "-n tenant-a get routes -o name"), before);
    until(&hub(), "-n tenant-nosy get routes -o name", |names| names.contains("svc.test.mine"));
    // What an Envoy says of itself names no tenant and no host name.
    let metrics = on_host("client", "curl -s http://172.18.0.11:19003/metrics").unwrap();
    assert!(metrics.contains("envoy_http_downstream_rq_total"), "{metrics}");
    for name in ["nosy", "tenant-a", "shop.example", "/web"] {
        let found: Vec<_> = metrics.lines().filter(|line| line.contains(name)).take(3).collect();
        assert!(found.is_empty(), "{name}: {found:?}");
    }
    remove("nosy");
}

/// Asks for a recovery, as a stranger.
async fn recover(pin: &Token, request: v1::RecoverRequest) -> Result<Answer, tonic::Status> {
    let channel = stranger(pin).await.expect("TLS");
    let answer = IdentityClient::new(channel).recover(request).await?.into_inner().answer;
    Ok(answer.expect("an answer"))
}

async fn challenge(pin: &Token, tenant: &str, agent: &str) -> Vec<u8> {
    let (tenant, agent) = (tenant.to_owned(), agent.to_owned());
    let request = v1::RecoverRequest { tenant, agent, ..Default::default() };
    match recover(pin, request).await.expect("a challenge") {
        Answer::Challenge(challenge) => challenge,
        other @ Answer::Issued(_) => panic!("{other:?}"),
    }
}

fn signed(tenant: &str, agent: &str, challenge: &[u8], by: &BoundKey) -> v1::RecoverRequest {
    let csr = tls::request(None).unwrap().1;
    let signature = by.sign(&recover_message(challenge, &csr)).unwrap();
    let (tenant, agent) = (tenant.to_owned(), agent.to_owned());
    v1::RecoverRequest { tenant, agent, csr, challenge: challenge.to_vec(), signature }
}

/// The one method that names a tenant: only its agent's own key signs for it, and only what it was asked.
#[test]
fn nobody_recovers_as_another() {
    let _world = alone("nobody_recovers_as_another");
    make_tenant("robbed", "pools: [public]");
    make_tenant("robber", "pools: [public]");
    let tokens = ["robbed", "robber"].map(token);
    let refused = refusals("Recover", "Unauthenticated");
    let [robbed, robber] = from_client(|| async {
        let keys = [BoundKey::generate().unwrap(), BoundKey::generate().unwrap()];
        for (token, key) in tokens.iter().zip(&keys) {
            enroll(token, key, tls::request(None).unwrap().1).await.expect("joins");
        }
        keys
    });
    let (pin, ids) =
        (&tokens[0], [&tokens[0], &tokens[1]].map(|token| token.id.as_str().to_owned()));
    from_client(|| async {
        let for_robbed = challenge(pin, "robbed", &ids[0]).await;
        let for_robber = challenge(pin, "robber", &ids[1]).await;
        for (what, request) in [
            ("its own key for another", signed("robbed", &ids[0], &for_robbed, &robber)),
            ("its own challenge for another", signed("robbed", &ids[0], &for_robber, &robber)),
            ("its own agent in another tenant", signed("robbed", &ids[1], &for_robber, &robber)),
            ("no challenge of the hub's", signed("robber", &ids[1], &[7; 60], &robber)),
            ("an agent that is none", signed("robbed", "zzzzzzzzzz", &for_robbed, &robber)),
        ] {
            let said = recover(pin, request).await.expect_err(what);
            assert_eq!(said.code(), Code::Unauthenticated, "{what}: {said}");
        }
        // Another request than the one that was signed.
        let mut changed = signed("robbed", &ids[0], &for_robbed, &robbed);
        changed.csr = tls::request(None).unwrap().1;
        assert_eq!(recover(pin, changed).await.unwrap_err().code(), Code::Unauthenticated);
        // What is refused above is not refused for being a recovery.
        let good = recover(pin, signed("robbed", &ids[0], &for_robbed, &robbed)).await;
        assert!(matches!(good.expect("recovers"), Answer::Issued(_)));
    });
    assert!(refusals("Recover", "Unauthenticated") >= refused + 6);
    fairlead(&format!("agent revoke robbed {}", ids[0]));
    let said = from_client(|| async {
        let challenge = challenge(pin, "robbed", &ids[0]).await;
        recover(pin, signed("robbed", &ids[0], &challenge, &robbed)).await.unwrap_err()
    });
    assert!(said.message().contains("revoked"), "{said}");
    event(&hub(), "default", "robbed", "RecoveryRefused");
    remove("robbed");
    remove("robber");
    // Whoever joins next comes from the same address: the limit is forgotten with the manager.
    rollout_of_manager();
}

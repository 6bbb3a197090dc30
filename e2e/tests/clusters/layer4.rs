//! All of layer 4, by traffic: shared addresses, protocols, client addresses, affinity, health.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use fairlead_e2e::local::net;
use fairlead_e2e::topology::Cluster;

use crate::web::eventually;
use crate::world::{
    address, answers, apply, asking, event, fetch, gone, hub, kubectl, on_host, pool, service,
    shared, tenant, until,
};

/// What a datagram is answered with, sent from the client host; `None`: nothing comes.
pub fn udp(address: &str, length: usize) -> Option<String> {
    net::within("client", || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.send_to(&vec![b'x'; length], address)?;
        let mut answer = vec![0; 65_535];
        let received = socket.recv(&mut answer).ok();
        Ok(received.map(|count| String::from_utf8_lossy(&answer[..count]).into_owned()))
    })
    .expect("the client host")
}

fn word<'a>(answer: &'a str, key: &str) -> &'a str {
    let value = answer.split_whitespace().find_map(|word| word.strip_prefix(key));
    value.unwrap_or_else(|| panic!("no {key} in {answer:?}"))
}

/// The pods that answer so many requests, each from the client host.
fn pods(url: &str, count: usize) -> anyhow::Result<BTreeSet<String>> {
    (0..count).map(|_| Ok(word(&fetch(url)?, "pod=").to_owned())).collect()
}

/// The pod that answers a client of the fabric with this address; it is there for the request only.
fn pod_of(client: u8, url: &str) -> Option<String> {
    let ask = format!(
        "ip addr add 172.18.0.{client}/32 dev eth0 2>/dev/null; \
         curl -s --max-time 4 --interface 172.18.0.{client} {url}"
    );
    on_host("client", &ask).ok().map(|answer| word(&answer, "pod=").to_owned())
}

fn tcp(name: &str, port: u16, target: u16) -> String {
    format!("{{name: {name}, port: {port}, targetPort: {target}}}")
}

fn route_of(cluster: &Cluster, namespace: &str, name: &str) -> String {
    format!("-n {} get route svc.{namespace}.{name}", cluster.name)
}

#[test]
fn two_tenants_share_one_address_at_5432_and_5433() {
    let world = shared("two_tenants_share_one_address_at_5432_and_5433");
    let (a, b) = (tenant("tenant-a"), tenant("tenant-b"));
    pool("together", "addresses: [172.18.0.211], sharing: Any");
    for (cluster, port) in [(&a, 5432), (&b, 5433)] {
        world.workload(cluster, "db");
        apply(cluster, &asking("together", "", &service("db", "db", &tcp("pg", port, 8080), "")));
    }
    for (cluster, port) in [(&a, 5432), (&b, 5433)] {
        assert_eq!(address(cluster, "db", "db"), "172.18.0.211");
        answers(&format!("http://172.18.0.211:{port}/"), &format!("cluster={}", cluster.name));
    }
    // The same port: refused with the port and the pool, and taken over when it is free.
    apply(&b, &asking("together", "", &service("db", "second", &tcp("pg", 5432, 8080), "")));
    event(&b, "db", "second", "port 5432/TCP of every address in pool \"together\" is taken");
    let told = kubectl(&hub(), &format!("{} -o yaml", route_of(&b, "db", "second")));
    assert!(!told.contains("tenant-a"), "a refusal never names another tenant's object: {told}");
    until(&hub(), "get pools together --no-headers", |line| {
        line.split_whitespace().collect::<Vec<_>>()[3..7] == ["1", "1", "0", "2"]
    });
    kubectl(&a, "-n db delete service db --timeout=30s");
    assert_eq!(address(&b, "db", "second"), "172.18.0.211");
    answers("http://172.18.0.211:5432/", "cluster=tenant-b");
}

#[test]
fn tcp_and_udp_53_are_on_one_address_and_large_datagrams_pass() {
    let world = shared("tcp_and_udp_53_are_on_one_address_and_large_datagrams_pass");
    let b = tenant("tenant-b");
    world.workload(&b, "dns");
    let ports = "{name: tcp, port: 53, targetPort: 8080}, \
                 {name: udp, port: 53, targetPort: 5353, protocol: UDP}";
    apply(&b, &service("dns", "dns", ports, ""));
    let ip = address(&b, "dns", "dns");
    answers(&format!("http://{ip}:53/"), "cluster=tenant-b");
    eventually("UDP answers", || udp(&format!("{ip}:53"), 10).is_some());
    for length in [1, 1_400, 4_096, 9_000, 60_000] {
        let answer = udp(&format!("{ip}:53"), length);
        let answer = answer.unwrap_or_else(|| panic!("no answer to {length} bytes"));
        assert!(answer.len() >= length && answer.contains("port=5353"), "{length}");
    }
    until(&hub(), &format!("{} --no-headers", route_of(&b, "dns", "dns")), |line| {
        line.contains("53/TCP,53/UDP")
    });
}

#[test]
fn a_service_of_three_ports_gets_all_or_none() {
    let world = shared("a_service_of_three_ports_gets_all_or_none");
    let (a, b) = (tenant("tenant-a"), tenant("tenant-b"));
    world.workload(&a, "three");
    world.workload(&b, "three");
    pool("narrow", "addresses: [172.18.0.212], sharing: Any");
    apply(&a, &asking("narrow", "", &service("three", "one", &tcp("one", 6001, 8080), "")));
    answers(&format!("http://{}:6001/", address(&a, "three", "one")), "cluster=tenant-a");
    let ports = [6000, 6001, 6002].map(|port| tcp(&format!("p{port}"), port, 8080)).join(", ");
    apply(&b, &asking("narrow", "", &service("three", "all", &ports, "")));
    event(&b, "three", "all", "port 6001/TCP of every address in pool \"narrow\" is taken");
    assert!(fetch("http://172.18.0.212:6000/").is_err(), "none of them is served");
    let claims = "get claims -o jsonpath={.items[*].spec.route}";
    assert!(!kubectl(&hub(), claims).contains("svc.three.all"));
    kubectl(&a, "-n three delete service one --timeout=30s");
    assert_eq!(address(&b, "three", "all"), "172.18.0.212");
    for port in [6000, 6001, 6002] {
        answers(&format!("http://172.18.0.212:{port}/"), "cluster=tenant-b");
    }
}

#[test]
fn any_port_is_given_and_told() {
    let world = shared("any_port_is_given_and_told");
    let b = tenant("tenant-b");
    world.workload(&b, "any");
    let any = |name: &str| {
        asking("", "fairlead.dev/any-port: http", &service("any", name, &tcp("http", 80, 8080), ""))
    };
    let get = |name: &str| {
        let path = "-o jsonpath={.metadata.annotations.fairlead\\.dev/given-ports}";
        let said = until(&b, &format!("-n any get service {name} {path}"), |said| !said.is_empty());
        said.strip_prefix("tcp-80=").expect(&said).to_owned()
    };
    apply(&b, &any("one"));
    apply(&b, &any("two"));
    let (one, two) = (get("one"), get("two"));
    assert_ne!(one, two);
    let ip = address(&b, "any", "two");
    answers(&format!("http://{ip}:{two}/"), "cluster=tenant-b");
    event(&b, "any", "two", &format!("Served at {ip}, ports tcp-80={two}"));
}

#[test]
fn both_families_lead_to_one_service() {
    let world = shared("both_families_lead_to_one_service");
    let b = tenant("tenant-b");
    world.workload(&b, "dual");
    let both = "fairlead.dev/ip-families: 'IPv4,IPv6'";
    apply(&b, &asking("", both, &service("dual", "web", &tcp("http", 6100, 8080), "")));
    let shown = "-n dual get service web -o jsonpath={.status.loadBalancer.ingress[*].ip}";
    let shown = until(&b, shown, |said| said.contains("fd00:18::") && said.contains("172.18.0."));
    for ip in shown.split(' ') {
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        answers(&format!("http://{host}:6100/"), "cluster=tenant-b");
    }
}

#[test]
fn affinity_reaches_one_pod_and_moves_when_it_dies() {
    let world = shared("affinity_reaches_one_pod_and_moves_when_it_dies");
    // Several pods on one node, and on two.
    for (cluster, replicas, port) in [(tenant("tenant-b"), 3, 6200), (tenant("tenant-a"), 4, 6201)]
    {
        world.workload(&cluster, "sticky");
        kubectl(&cluster, &format!("-n sticky scale deployment/echo --replicas={replicas}"));
        kubectl(&cluster, "-n sticky rollout status deployment/echo --timeout=60s");
        let ports = tcp("http", port, 8080);
        apply(&cluster, &service("sticky", "all", &ports.replace("620", "621"), ""));
        apply(&cluster, &service("sticky", "one", &ports, "  sessionAffinity: ClientIP"));
        let (all, one) = (address(&cluster, "sticky", "all"), address(&cluster, "sticky", "one"));
        let url = format!("http://{one}:{port}/");
        answers(&url, "pod=");
        eventually("without affinity all pods answer", || {
            let url = format!("http://{all}:{}/", port + 10);
            pods(&url, 30).is_ok_and(|pods| pods.len() == replicas)
        });
        // Each pod of the fullest node has a port of its own.
        let nodes = kubectl(&cluster, "-n sticky get pods -o jsonpath={.items[*].spec.nodeName}");
        let fullest =
            cluster.nodes.iter().map(|node| nodes.split(' ').filter(|n| *n == node.name).count());
        let fullest = fullest.max().unwrap();
        let slots = "-n sticky get services -l fairlead.dev/slot -o name";
        until(&cluster, slots, |names| names.lines().count() >= fullest);
        let clients =
            || -> Vec<Option<String>> { (120..160).map(|client| pod_of(client, &url)).collect() };
        // A slot is there before Envoys and kube-proxies know of it: a pod less, and clients move when it comes.
        eventually("clients reach all pods", || {
            clients().iter().flatten().collect::<BTreeSet<_>>().len() == replicas
        });
        let one_pod = |count| pods(&url, count).is_ok_and(|pods| pods.len() == 1);
        eventually("one pod answers", || one_pod(30));
        let before = pods(&url, 100).unwrap();
        assert_eq!(before.len(), 1, "100 requests reach one pod");
        let pod = before.first().unwrap();
        // Clients are spread, and each keeps its pod.
        let first = clients();
        assert_eq!(first, clients(), "each of 40 clients keeps its pod");
        kubectl(&cluster, &format!("-n sticky delete pod {pod} --wait=false"));
        eventually("another pod answers", || {
            fetch(&url).is_ok_and(|answer| word(&answer, "pod=") != pod)
        });
        kubectl(&cluster, "-n sticky rollout status deployment/echo --timeout=60s");
        // The pod in its place has a slot again: until then clients are on their way to it.
        let ready = "-n sticky get endpointslices -l fairlead.dev/shadow-of=one \
                     -o jsonpath={.items[*].endpoints[*].conditions.ready}";
        until(&cluster, ready, |all| all.matches("true").count() == replicas);
        eventually("one pod answers again", || one_pod(100));
        // Whoever was with another pod is there still, but for a few.
        let then = clients();
        let others = || first.iter().zip(&then).filter(|(was, _)| was.as_ref() != Some(pod));
        let moved = others().filter(|(was, now)| was != now).count();
        let total = others().count();
        assert!(moved * 4 <= total, "{moved} of {total} clients of other pods were moved");
        kubectl(&cluster, "-n sticky delete service one --timeout=30s");
        until(&cluster, slots, str::is_empty);
    }
}

#[test]
fn a_pod_sees_the_client_by_the_proxy_protocol() {
    let world = shared("a_pod_sees_the_client_by_the_proxy_protocol");
    let a = tenant("tenant-a");
    world.workload(&a, "proxy");
    for (version, port) in [("v1", 6300), ("v2", 6301)] {
        // The checks speak it, too: the pod closes whoever does not.
        let settings = format!(
            "fairlead.dev/proxy-protocol: {version}, fairlead.dev/health-check: http, \
             fairlead.dev/health-check-path: /healthy, fairlead.dev/health-check-interval: 1s"
        );
        let name = format!("web{version}");
        apply(&a, &asking("", &settings, &service("proxy", &name, &tcp("http", port, 8090), "")));
        let ip = address(&a, "proxy", &name);
        answers(&format!("http://{ip}:{port}/"), "client=172.18.0.5\n");
        until(&hub(), &format!("{} -o yaml", route_of(&a, "proxy", &name)), |yaml| {
            yaml.contains("2 of 2 endpoints are healthy")
        });
    }
    // Over UDP that is not possible, and said.
    let ports = "{name: dns, port: 6302, targetPort: 5353, protocol: UDP}";
    let settings = "fairlead.dev/proxy-protocol: v2";
    apply(&a, &asking("", settings, &service("proxy", "dns", ports, "")));
    event(&a, "proxy", "dns", "port 6302/UDP: not possible over node ports");
    eventually("it works", || udp(&format!("{}:6302", address(&a, "proxy", "dns")), 9).is_some());
}

#[test]
fn balancers_in_front_are_believed_from_trusted_ranges_only() {
    let world = shared("balancers_in_front_are_believed_from_trusted_ranges_only");
    let b = tenant("tenant-b");
    world.workload(&b, "front");
    pool("fronted", "addresses: [172.18.0.213], sharing: Any, proxyProtocolFrom: [172.18.0.5/32]");
    let settings = "fairlead.dev/proxy-protocol: v2";
    let ranges = "  loadBalancerSourceRanges: [10.1.2.0/24]";
    let web = service("front", "web", &tcp("http", 6400, 8090), ranges);
    apply(&b, &asking("fronted", settings, &web));
    let ip = address(&b, "front", "web");
    // A balancer that says who the client is.
    let send = |host: &'static str, header: &[u8]| -> Option<String> {
        let request = [header, b"GET / HTTP/1.0\r\n\r\n"].concat();
        net::within(host, || {
            let mut stream = TcpStream::connect(format!("{ip}:6400"))?;
            stream.set_read_timeout(Some(Duration::from_secs(3)))?;
            stream.write_all(&request)?;
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer);
            Ok((!answer.is_empty()).then_some(answer))
        })
        .ok()
        .flatten()
    };
    let ask =
        |host, says: &str| send(host, format!("PROXY TCP4 {says} {ip} 40000 6400\r\n").as_bytes());
    eventually("the pod sees who the balancer says", || {
        ask("client", "10.1.2.3").is_some_and(|answer| answer.contains("client=10.1.2.3\n"))
    });
    // The same in version 2: 10.1.2.4 to 172.18.0.213.
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\x01\x02\x04\xac\x12\x00\xd5\x9c\x40\x19\x00";
    let answer = send("client", v2).unwrap_or_default();
    assert!(answer.contains("client=10.1.2.4\n"), "{answer:?}");
    assert_eq!(ask("client", "10.1.3.3"), None, "not in the ranges, by its true address");
    assert_eq!(ask("tenant-a-1", "10.1.2.3"), None, "whoever may not say so is closed");
    assert!(fetch(&format!("http://{ip}:6400/")).is_err(), "without a header nobody is served");
}

#[test]
fn a_source_range_that_is_denied_is_refused() {
    let world = shared("a_source_range_that_is_denied_is_refused");
    let b = tenant("tenant-b");
    world.workload(&b, "ranges");
    let ports = "{name: http, port: 6500, targetPort: 8080}, \
                 {name: dns, port: 6500, targetPort: 5353, protocol: UDP}";
    let from = |ranges: &str| {
        let ranges = format!("  loadBalancerSourceRanges: [{ranges}]");
        apply(&b, &service("ranges", "web", ports, &ranges));
    };
    from("172.18.0.5/32, 10.0.0.0/8");
    let ip = address(&b, "ranges", "web");
    let url = format!("http://{ip}:6500/");
    answers(&url, "cluster=tenant-b");
    eventually("UDP answers", || udp(&format!("{ip}:6500"), 9).is_some());
    let other = format!("curl -s --max-time 3 {url}");
    assert!(on_host("tenant-a-1", &other).is_err(), "another address is let in");
    from("172.18.0.21/32");
    gone(&url);
    eventually("the other is let in", || on_host("tenant-a-1", &other).is_ok());
    assert_eq!(udp(&format!("{ip}:6500"), 9), None);
    // One that cannot be read lets nobody in, and the field is named.
    let bad = "fairlead.dev/source-ranges: '10.0.0.0/99'";
    apply(&b, &asking("", bad, &service("ranges", "bad", &tcp("http", 6501, 8080), "")));
    event(&b, "ranges", "bad", "annotation fairlead.dev/source-ranges");
    let closed = format!("http://{}:6501/", address(&b, "ranges", "bad"));
    assert!(
        fetch(&closed).is_err() && on_host("tenant-a-1", &format!("curl -s {closed}")).is_err()
    );
    apply(&b, &service("ranges", "bad", &tcp("http", 6501, 8080), ""));
    answers(&closed, "cluster=tenant-b");
}

#[test]
fn server_names_of_services_share_port_443() {
    let world = shared("server_names_of_services_share_port_443");
    let mut addresses = BTreeSet::new();
    for name in ["tenant-a", "tenant-b"] {
        let cluster = tenant(name);
        world.workload(&cluster, "sni");
        let host = format!("db.{name}.example");
        let settings = format!("fairlead.dev/tls-hostnames: {host}");
        apply(&cluster, &asking("", &settings, &service("sni", "db", &tcp("tls", 443, 8443), "")));
        let ip = address(&cluster, "sni", "db");
        let get = format!("curl -sk --max-time 4 --resolve {host}:443:{ip} https://{host}/");
        eventually("TLS ends at the pod", || {
            on_host("client", &get).is_ok_and(|said| said.contains(&format!("cluster={name}")))
        });
        addresses.insert(ip);
    }
    assert_eq!(addresses.len(), 1, "both tenants share one address and port");
}

#[test]
fn what_is_unhealthy_is_left_out_and_told() {
    let world = shared("what_is_unhealthy_is_left_out_and_told");
    let a = tenant("tenant-a");
    world.workload(&a, "health");
    kubectl(&a, "-n health scale deployment/echo --replicas=4");
    kubectl(&a, "-n health rollout status deployment/echo --timeout=60s");
    for (kind, port) in [("http", 6600), ("grpc", 6601)] {
        let settings = format!(
            "fairlead.dev/health-check: {kind}, fairlead.dev/health-check-path: /healthy, \
             fairlead.dev/health-check-interval: 1s"
        );
        let local = "  externalTrafficPolicy: Local";
        apply(
            &a,
            &asking("", &settings, &service("health", kind, &tcp("http", port, 8080), local)),
        );
        let ip = address(&a, "health", kind);
        answers(&format!("http://{ip}:{port}/"), "cluster=tenant-a");
        let route = format!("{} -o yaml", route_of(&a, "health", kind));
        until(&hub(), &route, |yaml| yaml.contains("2 of 2 endpoints are healthy"));
    }
    // All pods of one node say that they are not well.
    let lines = kubectl(
        &a,
        "-n health get pods -o jsonpath={range.items[*]}{.spec.nodeName}|{.status.podIP};{end}",
    );
    let sick: Vec<_> = lines.split(';').filter_map(|l| l.strip_prefix("tenant-a-2|")).collect();
    let all = lines.split(';').filter(|line| line.contains('|')).count();
    assert!(!sick.is_empty() && sick.len() < all, "pods on both nodes: {lines}");
    let set = |healthy: bool| {
        for ip in &sick {
            let ask = format!("curl -s 'http://{ip}:8080/healthy?set={healthy}'");
            on_host("tenant-a-2", &ask).unwrap();
        }
    };
    set(false);
    for (kind, port) in [("http", 6600), ("grpc", 6601)] {
        let route = format!("{} -o yaml", route_of(&a, "health", kind));
        until(&hub(), &route, |yaml| {
            yaml.contains("1 of 2 endpoints are healthy; not 172.18.0.22")
        });
        until(&hub(), &format!("{} --no-headers", route_of(&a, "health", kind)), |line| {
            line.contains("Unhealthy")
        });
        let url = format!("http://{}:{port}/", address(&a, "health", kind));
        eventually("the other node serves", || {
            (0..20).all(|_| fetch(&url).is_ok_and(|answer| answer.contains("node=tenant-a-1")))
        });
    }
    set(true);
    until(&hub(), &format!("{} -o yaml", route_of(&a, "health", "http")), |yaml| {
        yaml.contains("2 of 2 endpoints are healthy")
    });
    // kube-proxy's own check, of a Service that says Local and nothing else.
    let local = "  externalTrafficPolicy: Local";
    apply(&a, &service("health", "plain", &tcp("http", 6602, 8080), local));
    answers(&format!("http://{}:6602/", address(&a, "health", "plain")), "cluster=tenant-a");
    until(&hub(), &format!("{} -o yaml", route_of(&a, "health", "plain")), |yaml| {
        yaml.contains("2 of 2 endpoints are healthy")
    });
}

#[test]
fn limits_and_times_hold() {
    let world = shared("limits_and_times_hold");
    let b = tenant("tenant-b");
    world.workload(&b, "limits");
    let settings = "fairlead.dev/idle-timeout: 2s, fairlead.dev/max-connections: '2'";
    apply(&b, &asking("", settings, &service("limits", "web", &tcp("http", 6700, 8080), "")));
    let ip = address(&b, "limits", "web");
    answers(&format!("http://{ip}:6700/"), "cluster=tenant-b");
    net::within("client", || {
        let open = || TcpStream::connect(format!("{ip}:6700"));
        // Closed by the other side: how long that took.
        let ends = |stream: &mut TcpStream| {
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let start = std::time::Instant::now();
            let closed = matches!(stream.read(&mut [0; 1]), Ok(0)) || start.elapsed().as_secs() < 9;
            (closed, start.elapsed())
        };
        let mut idle = open()?;
        let (closed, after) = ends(&mut idle);
        assert!(closed && (1..6).contains(&after.as_secs()), "idle for {after:?}");
        // Two connections at each Envoy; an address is on one of them.
        let mut held: Vec<_> = (0..8).map(|_| open()).collect::<Result<_, _>>()?;
        let mut refused = 0;
        for stream in &mut held {
            stream.set_read_timeout(Some(Duration::from_millis(500)))?;
            refused += u32::from(matches!(stream.read(&mut [0; 1]), Ok(0)));
        }
        assert!((1..=6).contains(&refused), "{refused} of 8 were refused");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_pool_is_drained_and_no_other_connection_breaks() {
    let world = shared("a_pool_is_drained_and_no_other_connection_breaks");
    let b = tenant("tenant-b");
    world.workload(&b, "drain");
    let spec = "addresses: [172.18.0.214], sharing: Any, holdSeconds: 20";
    pool("old", spec);
    for (name, from, port) in
        [("stays", "old", 6800), ("leaves", "old", 6801), ("other", "public", 6802)]
    {
        apply(&b, &asking(from, "", &service("drain", name, &tcp("http", port, 8080), "")));
        answers(&format!("http://{}:{port}/", address(&b, "drain", name)), "cluster=tenant-b");
    }
    let other = address(&b, "drain", "other");
    // Connections on which something moves now and then. They stay where they were made.
    let open = |address: String| {
        net::within("client", || {
            let stream = TcpStream::connect(&address)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            Ok(stream)
        })
        .unwrap()
    };
    let works = |stream: &mut TcpStream| {
        let mut answer = [0; 1_024];
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").is_ok()
            && stream
                .read(&mut answer)
                .is_ok_and(|count| answer[..count].starts_with(b"HTTP/1.1 200"))
    };
    let mut held: Vec<_> = (0..10)
        .flat_map(|_| [open("172.18.0.214:6800".into()), open(format!("{other}:6802"))])
        .collect();
    let broken = |held: &mut Vec<TcpStream>| {
        held.iter_mut().filter_map(|one| (!works(one)).then_some(())).count()
    };
    assert_eq!(broken(&mut held), 0);
    kubectl(&hub(), "patch pool old --type=merge -p {\"spec\":{\"draining\":true}}");
    event(&b, "drain", "stays", "pool \"old\" is being drained");
    assert_eq!(broken(&mut held), 0);
    // Nothing new is given out, and what leaves takes nothing along.
    apply(&b, &asking("old", "", &service("drain", "new", &tcp("http", 6803, 8080), "")));
    event(&b, "drain", "new", "PoolDraining");
    kubectl(&b, "-n drain delete service leaves --timeout=30s");
    gone("http://172.18.0.214:6801/");
    assert_eq!(broken(&mut held), 0);
    let kept = kubectl(&hub(), "get claims 172.18.0.214-tcp-6801 -o name");
    assert!(!kept.is_empty(), "kept for its tenant for a while");
    until(&hub(), "get claims -o name", |names| !names.contains("172.18.0.214-tcp-6801"));
    until(&hub(), "get pools old --no-headers", |line| line.contains("draining"));
    assert_eq!(broken(&mut held), 0);
    // Made anew, it is served elsewhere: the way out that the Event names.
    kubectl(&b, "-n drain delete service stays --timeout=30s");
    apply(&b, &service("drain", "stays", &tcp("http", 6800, 8080), ""));
    let ip = address(&b, "drain", "stays");
    assert_ne!(ip, "172.18.0.214");
    answers(&format!("http://{ip}:6800/"), "cluster=tenant-b");
    until(&hub(), "get pools old --no-headers", |line| {
        line.split_whitespace().collect::<Vec<_>>()[4..7] == ["0", "1", "0"]
    });
}

#[test]
fn what_the_allocator_refuses_is_told_on_the_route_and_in_the_tenant() {
    let world = shared("what_the_allocator_refuses_is_told_on_the_route_and_in_the_tenant");
    let b = tenant("tenant-b");
    world.workload(&b, "refused");
    pool("left", "addresses: [172.18.0.215], sharing: Any");
    pool("right", "addresses: [172.18.0.216], sharing: Any");
    let ask = |name: &str, port: u16, from: &str, settings: &str| {
        apply(&b, &asking(from, settings, &service("refused", name, &tcp("http", port, 8080), "")));
    };
    let group = "fairlead.dev/group: g";
    ask("first", 6900, "left", group);
    answers(&format!("http://{}:6900/", address(&b, "refused", "first")), "cluster=tenant-b");
    for (name, from, settings, says) in [
        ("unknown", "nobody", "", "pool \"nobody\" does not exist or is not this tenant's"),
        (
            "outside",
            "left",
            "fairlead.dev/address: 172.18.0.99",
            "address 172.18.0.99 is in none of the pools: left",
        ),
        ("spread", "right", group, "group \"g\" is at 172.18.0.215, of pool \"left\""),
        ("lonely", "left", "fairlead.dev/sharing: none", "that this Route may be on has room"),
    ] {
        ask(name, 6901, from, settings);
        event(&b, "refused", name, says);
        let path = "-o jsonpath={.status.conditions[*].message}";
        let said = kubectl(&hub(), &format!("{} {path}", route_of(&b, "refused", name)));
        assert!(said.contains(says), "{said}");
    }
    // Another pool under a live Route: told, and nothing moves.
    ask("first", 6900, "right", group);
    event(
        &b,
        "refused",
        "first",
        "it asks for pool \"right\" and holds 172.18.0.215 of pool \"left\"",
    );
    assert_eq!(address(&b, "refused", "first"), "172.18.0.215");
    answers("http://172.18.0.215:6900/", "cluster=tenant-b");
    // A pool that shrinks keeps what is held, and says so.
    ask("first", 6900, "left", group);
    kubectl(
        &hub(),
        "patch pool left --type=merge -p {\"spec\":{\"addresses\":[\"172.18.0.217\"]}}",
    );
    until(&hub(), "get pools left --no-headers", |line| {
        line.contains("1 addresses with claims are not in spec.addresses")
    });
    answers("http://172.18.0.215:6900/", "cluster=tenant-b");
    // What cannot be read is named, and the rest works.
    ask(
        "typo",
        6902,
        "right",
        "fairlead.dev/afinity: source-address, fairlead.dev/load-balancing: best",
    );
    event(&b, "refused", "typo", "annotation fairlead.dev/afinity is unknown");
    event(&b, "refused", "typo", "fairlead.dev/load-balancing: \"best\": must be");
    answers(&format!("http://{}:6902/", address(&b, "refused", "typo")), "cluster=tenant-b");
}

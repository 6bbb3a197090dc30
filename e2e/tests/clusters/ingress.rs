//! Ingresses, in both tenants, on one shared address: what is asserted is what a client is answered.

use std::time::{Duration, Instant};

use crate::faults::request;
use crate::web::{
    answer, answers_to, apply_ingress, base64, both, certificate, curl, eventually, ingress,
    ingress_address, is, is_unserved, json, names, namespace, path, rule, secret, tls,
};
use crate::world::{
    address, alone, apply, event, hub, kubectl, on_host, service, shared, tenant, until,
};

#[test]
fn hosts_paths_and_ports_lead_to_their_backends() {
    let world = shared("hosts_paths_and_ports_lead_to_their_backends");
    for cluster in both() {
        let (ns, name) = namespace(&world, &cluster, "rules");
        let rules = [
            rule(
                &format!("a.{name}"),
                &[
                    path("/exact", "Exact", "web", "80"),
                    path("/exact", "Prefix", "api", "http"),
                    path("/foo", "Prefix", "web", "http"),
                    path("/foo/bar", "Prefix", "api", "80"),
                    path("/own", "ImplementationSpecific", "web", "80"),
                ],
            ),
            rule(&format!("'*.{name}'"), &[path("/", "Prefix", "api", "80")]),
        ];
        apply_ingress(&cluster, &ns, "web", "", "", &rules.concat());
        let ip = ingress_address(&cluster, &ns, "web");
        let at = |host: &str, path: &str| answer(&ip, &format!("{host}.{name}"), path);
        eventually("both backends", || {
            at("a", "/foo").contains("port=8080") && at("x", "/").contains("port=8081")
        });
        for (host, path, wanted) in [
            ("a", "/exact", "port=8080"),
            ("a", "/exact/below", "port=8081"),
            ("a", "/foo", "port=8080"),
            ("a", "/foo/", "port=8080"),
            ("a", "/foobar", "HTTP/1.1 404"),
            ("a", "/foo/bar", "port=8081"),
            ("a", "/foo/bar/more?x=1", "port=8081"),
            ("a", "/foo/barn", "port=8080"),
            ("a", "/FOO", "HTTP/1.1 404"),
            ("a", "/own/below", "port=8080"),
            ("a", "/", "HTTP/1.1 404"),
            // One label, no more and no less.
            ("b", "/", "port=8081"),
            ("b.c", "/", "HTTP/1.1 404"),
            // Case and a trailing dot are no part of a name.
            ("B", "/", "port=8081"),
        ] {
            let said = at(host, path);
            assert!(said.contains(wanted), "{host}.{name}{path}: wanted {wanted}: {said}");
        }
        assert!(is(&answer(&ip, &name, "/"), 404), "the parent of a wildcard is not under it");
        assert!(is(&answer(&ip, &format!("nobody.{name}.example"), "/"), 404));
        assert!(at("a", "/foo").contains(&format!("cluster={}", cluster.name)));
    }
}

#[test]
fn a_route_that_somebody_deletes_on_the_hub_is_there_again() {
    let world = shared("a_route_that_somebody_deletes_on_the_hub_is_there_again");
    let b = tenant("tenant-b");
    let (ns, name) = namespace(&world, &b, "again");
    apply_ingress(&b, &ns, "web", "", "", &rule(&name, &[path("/", "Prefix", "web", "80")]));
    apply(&b, &service(&ns, "direct", "{name: http, port: 7320, targetPort: 8080}", ""));
    let (named, own) = (ingress_address(&b, &ns, "web"), address(&b, &ns, "direct"));
    let by_name = || answer(&named, &name, "/").contains("port=8080");
    let by_port = || answer(&format!("{own}:7320"), &name, "/").contains("port=8080");
    eventually("both are served", || by_name() && by_port());
    // The agent does not keep what the hub has: it plans it anew, and once more.
    for route in ["ing.web", "svc.direct"].repeat(2) {
        let (kind, object) = route.split_once('.').unwrap();
        let route =
            format!("-n tenant-b get route {kind}.{ns}.{object} -o jsonpath={{.metadata.uid}}");
        let before = kubectl(&hub(), &route);
        kubectl(&hub(), &format!("-n tenant-b delete route {kind}.{ns}.{object} --wait=false"));
        until(&hub(), &route, |uid| !uid.is_empty() && uid != before);
        eventually("both are served again", || by_name() && by_port());
    }
}

#[test]
fn kubectl_shows_the_address_and_the_hub_shows_the_hosts() {
    let world = shared("kubectl_shows_the_address_and_the_hub_shows_the_hosts");
    for cluster in both() {
        let (ns, name) = namespace(&world, &cluster, "shown");
        let rules = rule(&name, &[path("/", "Prefix", "web", "80")]);
        apply_ingress(&cluster, &ns, "web", "", "", &rules);
        let ip = ingress_address(&cluster, &ns, "web");
        let line = kubectl(&cluster, &format!("-n {ns} get ingress web --no-headers"));
        assert!(line.contains("fairlead") && line.contains(&name) && line.contains(&ip), "{line}");
        let ports = format!(
            "-n {ns} get ingress web -o jsonpath={{.status.loadBalancer.ingress[0].ports[*].port}}"
        );
        assert_eq!(kubectl(&cluster, &ports), "80");
        event(&cluster, &ns, "web", &format!("Normal|Programmed|Served at {ip}"));
        let route = format!("-n {} get route ing.{ns}.web --no-headers", cluster.name);
        until(&hub(), &route, |line| {
            let words: Vec<_> = line.split_whitespace().collect();
            words[1..7] == [&format!("Ingress/{ns}/web"), &*name, &*ip, "80/HTTP", "True", "True"]
        });
        // Gone: nothing answers, and nothing is left.
        kubectl(&cluster, &format!("-n {ns} delete ingress web"));
        eventually("gone", || is_unserved(&answer(&ip, &name, "/")));
        until(&hub(), "get routes -A -o name", |names| !names.contains(&format!("ing.{ns}.web")));
        until(&hub(), "get hostnameclaims -o name", |names| !names.contains(&name));
        until(
            &cluster,
            &format!("-n {ns} get services -l fairlead.dev/shadow-of -o name"),
            str::is_empty,
        );
    }
}

#[test]
fn a_default_backend_takes_what_nothing_matches() {
    // The host for all others is one tenant's at each address, so they go one after the other.
    let world = alone("a_default_backend_takes_what_nothing_matches");
    for cluster in both() {
        let (ns, name) = namespace(&world, &cluster, "fallback");
        let rules = rule(&name, &[path("/web", "Prefix", "web", "80")]);
        let spec = format!(
            "  defaultBackend: {{service: {{name: api, port: {{name: http}}}}}}\n  rules:\n{rules}"
        );
        apply(&cluster, &ingress(&ns, "web", "fairlead.dev/deny-cidrs: 10.99.0.0/16", &spec));
        let ip = ingress_address(&cluster, &ns, "web");
        eventually("the default backend", || {
            answer(&ip, "who.knows.example", "/x").contains("port=8081")
        });
        assert!(answer(&ip, &name, "/web").contains("port=8080"));
        assert!(answer(&ip, &name, "/other").contains("port=8081"));
        // A policy holds for the host that stands for all others, too.
        let denied = ingress(&ns, "web", "fairlead.dev/deny-cidrs: 172.18.0.0/24", &spec);
        apply(&cluster, &denied);
        eventually("denied", || is(&answer(&ip, "who.knows.example", "/x"), 403));
        kubectl(&cluster, &format!("-n {ns} delete ingress web"));
        eventually("gone", || is_unserved(&answer(&ip, "who.knows.example", "/x")));
    }
}

#[test]
fn tls_is_chosen_by_the_server_name_and_http_is_redirected() {
    let world = shared("tls_is_chosen_by_the_server_name_and_http_is_redirected");
    for cluster in both() {
        let (ns, name) = namespace(&world, &cluster, "tls");
        for host in ["one", "two"] {
            secret(&cluster, &ns, host, &certificate(&[&format!("{host}.{name}")]));
        }
        secret(&cluster, &ns, "wild", &certificate(&[&format!("*.w.{name}")]));
        let both_hosts = ["one", "two"].map(|host| tls(&format!("{host}.{name}"), host)).concat()
            + &tls(&format!("'*.w.{name}'"), "wild");
        let rules = [
            rule(&format!("one.{name}"), &[path("/", "Prefix", "web", "80")]),
            rule(&format!("two.{name}"), &[path("/", "Prefix", "api", "80")]),
            rule(&format!("x.w.{name}"), &[path("/", "Prefix", "api", "80")]),
            rule(&format!("plain.{name}"), &[path("/", "Prefix", "web", "80")]),
        ];
        apply_ingress(&cluster, &ns, "web", "", &both_hosts, &rules.concat());
        let ip = ingress_address(&cluster, &ns, "web");
        for (host, port) in [("one", "port=8080"), ("two", "port=8081"), ("x.w", "port=8081")] {
            let host = format!("{host}.{name}");
            eventually(&host, || answers_to(&ip, &host, "/", "-v").contains(port));
            let said = answers_to(&ip, &host, "/", "-v");
            let wanted = if host.starts_with("x.w") { format!("*.w.{name}") } else { host.clone() };
            let shown = names(&ip, &host);
            assert!(shown.contains(&wanted), "the certificate is for {wanted}: {shown}");
            assert!(said.contains("HTTP/2 200"), "{said}");
            assert!(said.contains("x-forwarded-proto: https"), "{said}");
            let redirect = answer(&ip, &host, "/there?x=1");
            assert!(is(&redirect, 308), "{redirect}");
            assert!(
                redirect.contains(&format!("location: https://{host}/there?x=1")),
                "{redirect}"
            );
        }
        // SNI chooses the certificate, Host chooses the route.
        let crossed = curl(&format!(
            "-k --resolve one.{name}:443:{ip} -H 'Host: two.{name}' https://one.{name}/"
        ));
        assert!(crossed.contains("port=8081"), "{crossed}");
        assert!(
            answer(&ip, &format!("plain.{name}"), "/").contains("port=8080"),
            "no TLS, no redirect"
        );
        // One annotation turns the redirect off.
        let off = "fairlead.dev/ssl-redirect: 'false'";
        apply_ingress(&cluster, &ns, "web", off, &both_hosts, &rules.concat());
        eventually("no redirect", || {
            answer(&ip, &format!("one.{name}"), "/").contains("port=8080")
        });
        let ports = format!(
            "-n {ns} get ingress web -o jsonpath={{.status.loadBalancer.ingress[0].ports[*].port}}"
        );
        assert_eq!(kubectl(&cluster, &ports), "80 443");
    }
}

#[test]
fn a_certificate_is_rotated_under_load_without_a_lost_request() {
    let world = shared("a_certificate_is_rotated_under_load_without_a_lost_request");
    for cluster in both() {
        let (ns, name) = namespace(&world, &cluster, "rotate");
        secret(&cluster, &ns, "cert", &certificate(&[&name]));
        let rules = rule(&name, &[path("/", "Prefix", "web", "80")]);
        apply_ingress(&cluster, &ns, "web", "", &tls(&name, "cert"), &rules);
        let ip = ingress_address(&cluster, &ns, "web");
        eventually("TLS", || answers_to(&ip, &name, "/", "").contains("port=8080"));
        let new = certificate(&[&name]);
        let trusted = std::env::temp_dir().join(format!("{name}.crt"));
        std::fs::write(&trusted, &new.0).unwrap();
        let (mut sent, mut failed, start) = (0, Vec::new(), Instant::now());
        secret(&cluster, &ns, "cert", &new);
        let mut rotated = None;
        // One connection after the other, each with a handshake of its own.
        let enough = |since: Instant, sent: u32| since.elapsed().as_secs() >= 2 && sent > 50;
        while !rotated.is_some_and(|since| enough(since, sent)) {
            assert!(start.elapsed() < Duration::from_secs(40), "it was not rotated");
            let said = answers_to(&ip, &name, "/", "");
            sent += 1;
            if !said.contains("port=8080") {
                failed.push(said);
            }
            let with = format!("--cacert {}", trusted.display());
            if rotated.is_none()
                && curl(&format!("{with} --resolve {name}:443:{ip} https://{name}/"))
                    .contains("port=8080")
            {
                rotated = Some(Instant::now());
            }
        }
        std::fs::remove_file(&trusted).unwrap();
        assert!(failed.is_empty(), "{} of {sent}: {:?}", failed.len(), failed.first());
    }
}

#[test]
fn websockets_streams_and_large_things_work_without_asking() {
    let world = shared("websockets_streams_and_large_things_work_without_asking");
    for cluster in both() {
        let (ns, name) = namespace(&world, &cluster, "large");
        let rules = rule(&name, &[path("/", "Prefix", "web", "80")]);
        apply_ingress(&cluster, &ns, "web", "", "", &rules);
        let ip = ingress_address(&cluster, &ns, "web");
        eventually("it serves", || answer(&ip, &name, "/").contains("port=8080"));
        // WebSocket: the handshake, then bytes there and back.
        let ask = format!(
            "exec 3<>/dev/tcp/{ip}/80; printf 'GET /ws HTTP/1.1\\r\\nHost: {name}\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\nSec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n\\r\\n' >&3; while read -r -t 5 line <&3; do echo \"$line\"; [ \"$line\" = $'\\r' ] && break; done; echo hello >&3; read -r -t 5 line <&3; echo \"said $line\""
        );
        let said = on_host("client", &format!("bash -c {}", quoted(&ask))).unwrap();
        assert!(said.contains("101 Switching Protocols") && said.contains("said hello"), "{said}");
        // 64 KiB of headers in the request, and in the answer.
        let header = "x".repeat(1_000);
        let many: Vec<_> = (0..64).map(|n| format!("-H 'x-h{n}: {header}'")).collect();
        let many = many.join(" ");
        let said = curl(&format!("{many} -H 'Host: {name}' http://{ip}/"));
        assert!(
            said.contains("200 OK") && said.contains("x-h63: xxx"),
            "{}",
            &said[..said.len().min(500)]
        );
        let said = curl(&format!("-H 'Host: {name}' 'http://{ip}/?header=64'"));
        assert!(said.len() > 64 * 1024, "{}", &said[..said.len().min(500)]);
        // A body of 30 MiB.
        let body = format!(
            "head -c 31457280 /dev/zero | curl -sS --max-time 30 -H 'Host: {name}' --data-binary @- http://{ip}/"
        );
        assert!(on_host("client", &body).unwrap().contains("body=31457280"));
        // A stream that is longer than Envoy's usual 15 s.
        let stream = format!("curl -sS --max-time 40 -H 'Host: {name}' 'http://{ip}/?lines=18'");
        assert!(on_host("client", &stream).unwrap().contains("line 17"));
        // HTTP/2 without TLS, with what is known before.
        let said = curl(&format!("--http2-prior-knowledge -H 'Host: {name}' http://{ip}/"));
        assert!(said.contains("HTTP/2 200"), "{said}");
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[test]
fn backends_are_spoken_to_as_they_ask() {
    let world = shared("backends_are_spoken_to_as_they_ask");
    for cluster in both() {
        let (ns, name) = namespace(&world, &cluster, "speak");
        // gRPC by the Service's appProtocol, HTTPS by annotation.
        apply(
            &cluster,
            &format!(
                "{{apiVersion: v1, kind: Service, metadata: {{name: grpc, namespace: {ns}}}, spec: {{selector: {{app: echo}}, \
             ports: [{{name: grpc, port: 90, targetPort: 8080, appProtocol: kubernetes.io/h2c}}]}}}}"
            ),
        );
        let rules = rule(&format!("grpc.{name}"), &[path("/", "Prefix", "grpc", "grpc")]);
        apply_ingress(&cluster, &ns, "grpc", "", "", &rules);
        let secure = rule(&format!("secure.{name}"), &[path("/", "Prefix", "secure", "443")]);
        apply_ingress(&cluster, &ns, "secure", "fairlead.dev/backend-protocol: HTTPS", "", &secure);
        let ip = ingress_address(&cluster, &ns, "grpc");
        let call = format!(
            "--http2-prior-knowledge -H 'content-type: application/grpc' -H 'te: trailers' -H 'Host: grpc.{name}' --data-binary hello http://{ip}/a.B/C"
        );
        eventually("gRPC", || curl(&call).contains("body=5"));
        let said = curl(&call);
        assert!(said.contains("HTTP/2 200") && said.contains("grpc-status: 0"), "{said}");
        let said = curl(&format!("-H 'Host: grpc.{name}' http://{ip}/"));
        assert!(said.contains("GET / HTTP/2.0"), "HTTP/2 to the backend: {said}");
        eventually("HTTPS", || answer(&ip, &format!("secure.{name}"), "/").contains("port=8443"));
        // With verification: the backend's own certificate is nobody's that is trusted.
        secret(&cluster, &ns, "ca", &certificate(&["somebody.example"]));
        kubectl(
            &cluster,
            &format!(
                "-n {ns} patch secret ca --type=merge -p {{\"stringData\":{{\"ca.crt\":{}}}}}",
                json(&certificate(&["else.example"]).0).replace(' ', "\\u0020")
            ),
        );
        let verify = "fairlead.dev/backend-protocol: HTTPS, fairlead.dev/backend-tls-ca: ca, fairlead.dev/backend-tls-server-name: backend.example";
        apply_ingress(&cluster, &ns, "secure", verify, "", &secure);
        eventually("refused", || is(&answer(&ip, &format!("secure.{name}"), "/"), 503));
        // The right authority: what the backend shows.
        let shown = on_host("client", &format!(
            "openssl s_client -connect {}:{} -showcerts </dev/null 2>/dev/null | openssl x509",
            cluster.nodes[0].address, kubectl(&cluster, &format!("-n {ns} get service -l fairlead.dev/shadow-of=secure -o jsonpath={{.items[0].spec.ports[0].nodePort}}"))
        )).unwrap();
        kubectl(
            &cluster,
            &format!(
                "-n {ns} patch secret ca --type=merge -p {{\"stringData\":{{\"ca.crt\":{}}}}}",
                json(&shown).replace(' ', "\\u0020")
            ),
        );
        eventually("verified", || {
            answer(&ip, &format!("secure.{name}"), "/").contains("port=8443")
        });
    }
}

#[test]
fn tls_can_be_passed_through() {
    let world = shared("tls_can_be_passed_through");
    for cluster in both() {
        let (ns, name) = namespace(&world, &cluster, "through");
        let rules = rule(&name, &[path("/", "Prefix", "secure", "443")]);
        apply_ingress(&cluster, &ns, "web", "fairlead.dev/ssl-passthrough: 'true'", "", &rules);
        let ip = ingress_address(&cluster, &ns, "web");
        eventually("passed through", || answers_to(&ip, &name, "/", "-v").contains("port=8443"));
        // The certificate is the backend's own; there is none on the hub.
        let certificate = on_host("client", &format!(
            "openssl s_client -connect {ip}:443 -servername {name} </dev/null 2>/dev/null | openssl x509 -noout -ext subjectAltName"
        )).unwrap();
        assert!(certificate.contains("backend.example"), "{certificate}");
    }
}

#[test]
fn backends_see_who_asked_and_believe_no_client() {
    let world = shared("backends_see_who_asked_and_believe_no_client");
    for cluster in both() {
        let (ns, name) = namespace(&world, &cluster, "forwarded");
        let rules = rule(&name, &[path("/", "Prefix", "web", "80")]);
        let edits = "fairlead.dev/request-headers-set: 'X-One: 100%', fairlead.dev/request-headers-remove: X-Two, fairlead.dev/response-headers-set: 'X-Three: c'";
        apply_ingress(&cluster, &ns, "web", edits, "", &rules);
        let ip = ingress_address(&cluster, &ns, "web");
        eventually("it serves", || answer(&ip, &name, "/").contains("port=8080"));
        let said = curl(&format!(
            "-H 'Host: {name}' -H 'X-Forwarded-For: 1.2.3.4' -H 'X-Forwarded-Host: evil' -H 'X-Real-IP: 1.2.3.4' \
             -H 'X-Fairlead-Scope: other' -H 'X-Forwarded-Proto: https' -H 'X-Two: b' http://{ip}/"
        ));
        for wanted in [
            "x-real-ip: 172.18.0.5",
            &format!("x-forwarded-host: {name}"),
            "x-forwarded-proto: http\n",
            "x-forwarded-port: 80",
            "x-request-id: ",
            "x-one: 100%",
            "x-three: c",
        ] {
            assert!(said.contains(wanted), "wanted {wanted:?}: {said}");
        }
        // The last entry is the one that we wrote.
        let forwarded = said.lines().find(|line| line.starts_with("x-forwarded-for")).unwrap();
        assert!(forwarded.trim_end().ends_with("172.18.0.5"), "{forwarded}");
        for lie in ["evil", "x-real-ip: 1.2.3.4", "x-fairlead-scope", "x-two"] {
            assert!(!said.contains(lie), "{lie} came through: {said}");
        }
    }
}

#[test]
fn proxies_in_front_are_believed_where_the_pool_says_so() {
    // Changes what the tenants may use.
    let world = alone("proxies_in_front_are_believed_where_the_pool_says_so");
    let pool = "apiVersion: fairlead.dev/v1alpha1
kind: AddressPool
metadata: {name: proxied}
spec: {addresses: [172.18.0.206], sharing: Any, trustedHops: 1}
";
    apply(&hub(), pool);
    for cluster in both() {
        let (ns, name) = namespace(&world, &cluster, "hops");
        let own = cluster.name.trim_start_matches("tenant-");
        let pools = r#"{"spec":{"pools":["public","proxied"]}}"#;
        kubectl(&hub(), &format!("patch tenant {own} --type=merge -p {pools}"));
        let rules = rule(&name, &[path("/", "Prefix", "web", "80")]);
        let asking = "fairlead.dev/pool: proxied, fairlead.dev/deny-cidrs: 9.9.9.0/24";
        apply_ingress(&cluster, &ns, "web", asking, "", &rules);
        let ip = ingress_address(&cluster, &ns, "web");
        assert_eq!(ip, "172.18.0.206");
        let from = |chain: &str| {
            curl(&format!("-H 'X-Forwarded-For: {chain}' -H 'Host: {name}' http://{ip}/"))
        };
        eventually("the client behind the proxy", || {
            from("1.1.1.1, 8.8.8.8").contains("x-real-ip: 8.8.8.8")
        });
        assert!(is(&from("1.1.1.1, 9.9.9.9"), 403), "its restriction is about that client");
        kubectl(&cluster, &format!("-n {ns} delete ingress web"));
    }
    until(&hub(), "get addressclaims -o name", |names| !names.contains("172.18.0.206"));
    kubectl(&hub(), "delete addresspool proxied");
    for own in ["a", "b"] {
        let pools = r#"{"spec":{"pools":["public"]}}"#;
        kubectl(&hub(), &format!("patch tenant {own} --type=merge -p {pools}"));
    }
}

#[test]
fn timeouts_retries_limits_and_sizes_hold() {
    let world = shared("timeouts_retries_limits_and_sizes_hold");
    for cluster in both() {
        let (ns, name) = namespace(&world, &cluster, "limits");
        let case = |which: &str, annotations: &str| {
            let rules = rule(&format!("{which}.{name}"), &[path("/", "Prefix", "web", "80")]);
            apply_ingress(&cluster, &ns, which, annotations, "", &rules);
        };
        case("timeout", "fairlead.dev/request-timeout: 500ms");
        case("idle", "fairlead.dev/idle-timeout: 700ms");
        case("retry", "fairlead.dev/retries: '2', fairlead.dev/retry-on: 5xx");
        case("rate", "fairlead.dev/rate-limit: 2/h, fairlead.dev/rate-limit-per-client: 'true'");
        case("size", "fairlead.dev/max-body-size: 1k");
        let ip = ingress_address(&cluster, &ns, "size");
        let at = |which: &str, path: &str| answer(&ip, &format!("{which}.{name}"), path);
        eventually("all serve", || {
            ["timeout", "idle", "retry", "size"]
                .iter()
                .all(|which| at(which, "/").contains("port=8080"))
        });
        assert!(is(&at("timeout", "/?sleep=3000"), 504));
        assert!(is(&at("idle", "/?sleep=3000"), 504) || is(&at("idle", "/?sleep=3000"), 408));
        // The first request with this word is answered 503; the one that is tried again is not seen.
        assert!(is(&at("size", "/?once=plain"), 503));
        assert!(is(&at("retry", "/?once=again"), 200));
        // Each Envoy counts for itself, and this address is one Envoy's: two, and no more.
        eventually("limited", || is(&at("rate", "/"), 429));
        let post = |bytes: u32| {
            format!(
                "head -c {bytes} /dev/zero | curl -sS -i --max-time 10 -H 'Host: size.{name}' --data-binary @- http://{ip}/"
            )
        };
        assert!(on_host("client", &post(1_000)).unwrap().contains("body=1000"));
        assert!(is(&on_host("client", &post(5_000)).unwrap(), 413));
        let chunked =
            post(5_000).replace("--data-binary", "-H 'Transfer-Encoding: chunked' --data-binary");
        assert!(is(&on_host("client", &chunked).unwrap(), 413));
    }
}

#[test]
fn clients_are_let_in_as_the_annotations_say() {
    let world = shared("clients_are_let_in_as_the_annotations_say");
    for cluster in both() {
        let (ns, name) = namespace(&world, &cluster, "access");
        // W6ph… is the SHA-1 of "password".
        apply(
            &cluster,
            &format!(
                "{{apiVersion: v1, kind: Secret, metadata: {{name: users, namespace: {ns}}}, stringData: {{auth: 'ann:{{SHA}}W6ph5Mm5Pz8GgiULbPgzG37mj9g='}}}}"
            ),
        );
        let case = |which: &str, host: &str, annotations: &str| {
            let rules = rule(&format!("{host}.{name}"), &[path("/", "Prefix", "web", "80")]);
            apply_ingress(&cluster, &ns, which, annotations, "", &rules);
        };
        case("allow", "allow", "fairlead.dev/allow-cidrs: '172.18.0.5, 10.0.0.0/8'");
        case("deny", "deny", "fairlead.dev/deny-cidrs: 172.18.0.0/24");
        case("nobody", "nobody", "fairlead.dev/allow-cidrs: 10.0.0.0/8");
        case("basic", "basic", "fairlead.dev/basic-auth-secret: users");
        // Policies hold under a wildcard as well.
        case("wild", "'*.wild", "fairlead.dev/basic-auth-secret: users");
        case(
            "external",
            "external",
            "fairlead.dev/auth-service: web:80, fairlead.dev/auth-path: /auth, fairlead.dev/auth-response-headers: 'X-User,X-Group'",
        );
        let ip = ingress_address(&cluster, &ns, "external");
        let at = |which: &str, more: &str| {
            curl(&format!("{more} -H 'Host: {which}.{name}' http://{ip}/"))
        };
        eventually("allowed", || at("allow", "").contains("port=8080"));
        eventually("denied", || is(&at("deny", ""), 403));
        eventually("nobody", || is(&at("nobody", ""), 403));
        assert!(is(&at("deny", "-H 'X-Forwarded-For: 10.1.1.1'"), 403), "a client is not believed");
        let password = format!("-H 'Authorization: Basic {}'", base64(b"ann:password"));
        let wrong = format!("-H 'Authorization: Basic {}'", base64(b"ann:wrong"));
        for host in ["basic", "any.wild"] {
            eventually(host, || is(&at(host, ""), 401));
            assert!(is(&at(host, &wrong), 401));
            eventually(host, || at(host, &password).contains("port=8080"));
            assert!(
                !at(host, &password).to_lowercase().contains("authorization: basic"),
                "kept from the backend"
            );
        }
        eventually("asked outside", || is(&at("external", ""), 401));
        let said =
            at("external", "-H 'Authorization: letmein' -H 'X-Group: admin' -H 'X-User: eve'");
        assert!(!said.contains("admin") && !said.contains("eve"), "a client's own word: {said}");
        assert!(said.contains("200 OK") && said.contains("x-user: ann"), "{said}");
    }
}

#[test]
fn answers_are_redirected_rewritten_and_shared_across_origins() {
    let world = shared("answers_are_redirected_rewritten_and_shared_across_origins");
    for cluster in both() {
        let (ns, name) = namespace(&world, &cluster, "rewrite");
        let case = |which: &str, at: &str, kind: &str, annotations: &str| {
            let rules = rule(&format!("{which}.{name}"), &[path(at, kind, "web", "80")]);
            apply_ingress(&cluster, &ns, which, annotations, "", &rules);
        };
        case("prefix", "/foo", "Prefix", "fairlead.dev/rewrite-prefix: /");
        case("longer", "/foo", "Prefix", "fairlead.dev/rewrite-prefix: /new");
        case("root", "/", "Prefix", "fairlead.dev/rewrite-prefix: /below");
        case(
            "full",
            "/foo",
            "Prefix",
            "fairlead.dev/rewrite-path: /one, fairlead.dev/rewrite-host: inside.example",
        );
        case(
            "nginx",
            "/api(/|$)(.*)",
            "ImplementationSpecific",
            "nginx.ingress.kubernetes.io/rewrite-target: /$2",
        );
        case(
            "moved",
            "/",
            "Prefix",
            "fairlead.dev/redirect: 'https://new.example/there', fairlead.dev/redirect-code: '301'",
        );
        case("app", "/", "Prefix", "fairlead.dev/app-root: /start");
        case(
            "cors",
            "/",
            "Prefix",
            "fairlead.dev/cors-allow-origins: 'https://*.friend.example', fairlead.dev/cors-allow-credentials: 'true'",
        );
        let ip = ingress_address(&cluster, &ns, "cors");
        let at = |which: &str, path: &str| answer(&ip, &format!("{which}.{name}"), path);
        eventually("it serves", || at("cors", "/").contains("port=8080"));
        for (host, path, wanted) in [
            ("prefix", "/foo", "request: GET / "),
            ("prefix", "/foo/bar?q=1", "request: GET /bar?q=1 "),
            ("longer", "/foo", "request: GET /new "),
            ("longer", "/foo/bar", "request: GET /new/bar "),
            ("root", "/x", "request: GET /below/x "),
            ("full", "/foo/bar", "request: GET /one "),
            ("full", "/foo/bar", "host: inside.example"),
            ("nginx", "/api/users/7?q=1", "request: GET /users/7?q=1 "),
            ("nginx", "/api", "request: GET / "),
            ("nginx", "/other", "HTTP/1.1 404"),
            ("moved", "/x", "HTTP/1.1 301"),
            ("moved", "/x", "location: https://new.example/there"),
            ("app", "/", "HTTP/1.1 302"),
            ("app", "/", "/start"),
            ("app", "/x", "port=8080"),
        ] {
            eventually(&format!("{host}{path}: {wanted}"), || at(host, path).contains(wanted));
        }
        let preflight = |origin: &str| {
            curl(&format!(
                "-X OPTIONS -H 'Origin: {origin}' -H 'Access-Control-Request-Method: PUT' -H 'Host: cors.{name}' http://{ip}/"
            ))
        };
        let good = preflight("https://a.friend.example");
        assert!(good.contains("access-control-allow-origin: https://a.friend.example"), "{good}");
        assert!(good.contains("access-control-allow-credentials: true"), "{good}");
        for bad in
            ["https://friend.example.evil", "https://evil.example", "http://a.friend.example"]
        {
            assert!(!preflight(bad).contains("access-control-allow-origin"), "{bad}");
        }
    }
}

#[test]
fn a_client_keeps_to_its_pod_and_a_canary_has_its_share() {
    let world = shared("a_client_keeps_to_its_pod_and_a_canary_has_its_share");
    for cluster in both() {
        let (ns, name) = namespace(&world, &cluster, "affinity");
        // Several pods on a node: to keep to the node would not be enough.
        kubectl(&cluster, &format!("-n {ns} scale deployment/echo --replicas=4"));
        kubectl(&cluster, &format!("-n {ns} rollout status deployment/echo --timeout=60s"));
        let case = |which: &str, service: &str, annotations: &str| {
            let rules = rule(&format!("{which}.{name}"), &[path("/", "Prefix", service, "80")]);
            apply_ingress(&cluster, &ns, which, annotations, "", &rules);
        };
        case(
            "cookie",
            "web",
            "fairlead.dev/affinity: cookie, fairlead.dev/affinity-cookie-name: stick",
        );
        case("source", "web", "fairlead.dev/affinity: source-address");
        case(
            "canary",
            "web",
            "fairlead.dev/canary-backend: 'api:80', fairlead.dev/canary-weight: '30', fairlead.dev/canary-header: X-Canary",
        );
        let ip = ingress_address(&cluster, &ns, "canary");
        let pod_of = |said: &str| {
            let word = said.split_whitespace().find(|word| word.starts_with("pod="));
            word.unwrap_or("no pod").to_owned()
        };
        eventually("it serves", || answer(&ip, &format!("cookie.{name}"), "/").contains("stick="));
        // The slots have to reach kube-proxy first.
        eventually("by cookie", || {
            let first = answer(&ip, &format!("cookie.{name}"), "/");
            let cookie = first.lines().find_map(|line| line.strip_prefix("set-cookie: "));
            let cookie = cookie.and_then(|cookie| cookie.split(';').next()).unwrap_or_default();
            let ask = format!("-b '{cookie}' -H 'Host: cookie.{name}' http://{ip}/");
            (0..20).all(|_| pod_of(&curl(&ask)) == pod_of(&first))
        });
        eventually("by address", || {
            let ask = || pod_of(&answer(&ip, &format!("source.{name}"), "/"));
            let first = ask();
            first != "no pod" && (0..20).all(|_| ask() == first)
        });
        eventually("the canary", || {
            curl(&format!("-H 'X-Canary: always' -H 'Host: canary.{name}' http://{ip}/"))
                .contains("port=8081")
        });
        let hits = (0..100)
            .filter(|_| answer(&ip, &format!("canary.{name}"), "/").contains("port=8081"))
            .count();
        // 30 of 100, within four standard deviations.
        assert!((12..=48).contains(&hits), "{hits} of 100");
    }
}

#[test]
fn headless_and_selectorless_services_are_reached_by_shadows() {
    let world = shared("headless_and_selectorless_services_are_reached_by_shadows");
    for cluster in both() {
        let (ns, name) = namespace(&world, &cluster, "kinds");
        let pod = kubectl(
            &cluster,
            &format!("-n {ns} get pod -l app=echo -o jsonpath={{.items[0].status.podIP}}"),
        );
        apply(
            &cluster,
            &format!(
                "
apiVersion: v1
kind: Service
metadata: {{name: headless, namespace: {ns}}}
spec: {{clusterIP: None, selector: {{app: echo}}, ports: [{{name: http, port: 8080}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: byhand, namespace: {ns}}}
spec: {{ports: [{{name: http, port: 80, targetPort: 8081}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: byhand-1, namespace: {ns}, labels: {{kubernetes.io/service-name: byhand}}}}
addressType: IPv4
endpoints: [{{addresses: [{pod}], conditions: {{ready: true}}}}]
ports: [{{name: http, port: 8081, protocol: TCP}}]
"
            ),
        );
        let rules = [
            rule(&format!("headless.{name}"), &[path("/", "Prefix", "headless", "8080")]),
            rule(&format!("byhand.{name}"), &[path("/", "Prefix", "byhand", "80")]),
        ];
        apply_ingress(&cluster, &ns, "one", "", "", &rules.concat());
        apply_ingress(
            &cluster,
            &ns,
            "two",
            "",
            "",
            &rule(&format!("two.{name}"), &[path("/", "Prefix", "byhand", "80")]),
        );
        let ip = ingress_address(&cluster, &ns, "one");
        eventually("headless", || {
            answer(&ip, &format!("headless.{name}"), "/").contains("port=8080")
        });
        eventually("by hand", || answer(&ip, &format!("byhand.{name}"), "/").contains("port=8081"));
        // One shadow for both Ingresses, until the last of them goes.
        let shadows = format!("-n {ns} get services -l fairlead.dev/shadow-of=byhand -o name");
        assert_eq!(kubectl(&cluster, &shadows).lines().count(), 1);
        kubectl(&cluster, &format!("-n {ns} delete ingress one"));
        eventually("the other", || answer(&ip, &format!("two.{name}"), "/").contains("port=8081"));
        assert_eq!(kubectl(&cluster, &shadows).lines().count(), 1);
        kubectl(&cluster, &format!("-n {ns} delete ingress two"));
        until(&cluster, &shadows, str::is_empty);
    }
}

#[test]
fn tenants_share_an_address_and_a_host_is_the_first_ones() {
    let world = shared("tenants_share_an_address_and_a_host_is_the_first_ones");
    let [a, b] = both();
    let (ns, own) = namespace(&world, &a, "hosts");
    let (_, other) = namespace(&world, &b, "hosts");
    let contested = "contested.hosts.example";
    let path = || [path("/", "Prefix", "web", "80")];
    let rules = |own: &str| rule(contested, &path()) + &rule(own, &path());
    apply_ingress(&a, &ns, "web", "", "", &rules(&own));
    let ip = ingress_address(&a, &ns, "web");
    eventually("the first", || answer(&ip, contested, "/").contains("cluster=tenant-a"));
    apply_ingress(&b, &ns, "web", "", "", &rules(&other));
    assert_eq!(ingress_address(&b, &ns, "web"), ip, "one address for both");
    event(&b, &ns, "web", &format!("host \"{contested}\" is another tenant's"));
    let conflict = "-n tenant-b get route ing.hosts.web -o jsonpath={.status.conditions[?(@.type==\"Conflicted\")].status}";
    until(&hub(), conflict, |status| status == "True");
    let told = kubectl(&hub(), "-n tenant-b get route ing.hosts.web -o jsonpath={.status}");
    assert!(!told.contains("tenant-a") && !told.contains("\"a\""), "{told}");
    eventually("its other host", || answer(&ip, &other, "/").contains("cluster=tenant-b"));
    assert!(answer(&ip, contested, "/").contains("cluster=tenant-a"));
    // The first lets go: the second takes over.
    kubectl(&a, &format!("-n {ns} delete ingress web"));
    eventually("the second", || answer(&ip, contested, "/").contains("cluster=tenant-b"));
    until(&hub(), conflict, str::is_empty);
}

#[test]
fn two_ingresses_of_a_tenant_share_a_host_by_path() {
    let world = shared("two_ingresses_of_a_tenant_share_a_host_by_path");
    for cluster in both() {
        let (ns, name) = namespace(&world, &cluster, "merge");
        apply_ingress(
            &cluster,
            &ns,
            "one",
            "",
            "",
            &rule(&name, &[path("/", "Prefix", "web", "80")]),
        );
        let ip = ingress_address(&cluster, &ns, "one");
        eventually("the first", || answer(&ip, &name, "/").contains("port=8080"));
        // A second's resolution of creationTimestamp decides who is older.
        std::thread::sleep(Duration::from_millis(1_100));
        let both = [path("/", "Prefix", "api", "80"), path("/api", "Prefix", "api", "80")];
        apply_ingress(&cluster, &ns, "two", "", "", &rule(&name, &both));
        eventually("the second's path", || answer(&ip, &name, "/api").contains("port=8081"));
        assert!(
            answer(&ip, &name, "/").contains("port=8080"),
            "the older one's path stays its own"
        );
        event(&cluster, &ns, "two", "is served by the older");
        kubectl(&cluster, &format!("-n {ns} delete ingress one"));
        eventually("the second alone", || answer(&ip, &name, "/").contains("port=8081"));
    }
}

#[test]
fn what_is_wrong_is_named_and_the_rest_works() {
    let world = shared("what_is_wrong_is_named_and_the_rest_works");
    for cluster in both() {
        let (ns, name) = namespace(&world, &cluster, "wrong");
        let (chain, _) = certificate(&[&format!("broken.{name}")]);
        let (_, other) = certificate(&["other"]);
        secret(&cluster, &ns, "broken", &(chain, other));
        secret(&cluster, &ns, "old", &crate::web::expired(&format!("old.{name}")));
        let hosts =
            ["missing", "broken", "old"].map(|host| tls(&format!("{host}.{name}"), host)).concat();
        let rules = [
            rule(
                &format!("good.{name}"),
                &[
                    path("/", "Prefix", "web", "80"),
                    path("/missing", "Prefix", "nobody", "80"),
                    path("/port", "Prefix", "web", "81"),
                    path("/regex(a{1,50}){1,50}", "ImplementationSpecific", "web", "80"),
                ],
            ),
            rule(&format!("old.{name}"), &[path("/", "Prefix", "web", "80")]),
        ];
        let annotations = "fairlead.dev/path-regex: 'true', fairlead.dev/request-timeout: soon, fairlead.dev/no-such: x, \
                           nginx.ingress.kubernetes.io/server-snippet: 'return 200;'";
        apply_ingress(&cluster, &ns, "web", annotations, &hosts, &rules.concat());
        let ip = ingress_address(&cluster, &ns, "web");
        eventually("the good rule", || {
            answer(&ip, &format!("good.{name}"), "/").contains("port=8080")
        });
        for path in ["/missing", "/port"] {
            assert!(is(&answer(&ip, &format!("good.{name}"), path), 503), "{path}");
        }
        eventually("expired, and served all the same", || {
            answers_to(&ip, &format!("old.{name}"), "/", "").contains("port=8080")
        });
        for wanted in [
            "BackendNotFound|spec.rules[0].http.paths[1].backend.service.name: Service \"nobody\" does not exist",
            "BackendNotFound|spec.rules[0].http.paths[2].backend.service.port: Service \"web\" has no port \"81\"",
            "InvalidCertificate|spec.tls[0].secretName: Secret \"missing\": does not exist",
            "InvalidCertificate|spec.tls[1].secretName: Secret \"broken\": tls.key: is not the key",
            "CertificateExpired|spec.tls[2].secretName: Secret \"old\": the certificate has expired",
            "InvalidAnnotation|annotation fairlead.dev/request-timeout: \"soon\": must be a duration",
            "UnknownAnnotation|annotation fairlead.dev/no-such is unknown",
            "UnsupportedAnnotation|annotation nginx.ingress.kubernetes.io/server-snippet: snippets are never followed",
            "is too large once its repetitions are written out",
        ] {
            event(&cluster, &ns, "web", wanted);
        }
        let route = format!(
            "-n {} get route ing.{ns}.web -o jsonpath={{.status.conditions}}",
            cluster.name
        );
        until(&hub(), &route, |said| {
            ["RefNotFound", "PartiallyInvalid", "too large", "nobody"]
                .iter()
                .all(|word| said.contains(word))
        });
        // Each is cured by what its Event says.
        secret(&cluster, &ns, "missing", &certificate(&[&format!("missing.{name}")]));
        apply(&cluster, &crate::web::service(&ns, "nobody", 8081));
        eventually("the missing Service", || {
            answer(&ip, &format!("good.{name}"), "/missing").contains("port=8081")
        });
        eventually("the missing certificate", || {
            is(&answers_to(&ip, &format!("missing.{name}"), "/", ""), 404)
        });
    }
}

#[test]
fn a_restriction_that_cannot_be_read_lets_nobody_in() {
    let world = shared("a_restriction_that_cannot_be_read_lets_nobody_in");
    let cluster = tenant("tenant-b");
    let (ns, name) = namespace(&world, &cluster, "closed");
    let rules = rule(&name, &[path("/", "Prefix", "web", "80")]);
    apply_ingress(&cluster, &ns, "web", "fairlead.dev/allow-cidrs: home", "", &rules);
    let ip = ingress_address(&cluster, &ns, "web");
    event(&cluster, &ns, "web", "fairlead.dev/allow-cidrs: \"home\": \"home\" is no CIDR");
    eventually("closed", || is(&answer(&ip, &name, "/"), 503));
    apply_ingress(&cluster, &ns, "web", "fairlead.dev/allow-cidrs: 172.18.0.0/16", "", &rules);
    eventually("open", || answer(&ip, &name, "/").contains("port=8080"));
}

#[test]
fn a_poisoned_ingress_is_taken_back_and_delays_nobody() {
    let world = shared("a_poisoned_ingress_is_taken_back_and_delays_nobody");
    let [a, b] = both();
    let (ns, poisoned) = namespace(&world, &a, "poison");
    let (_, healthy) = namespace(&world, &b, "poison");
    let good = rule(&poisoned, &[path("/", "Prefix", "web", "80")]);
    apply_ingress(&a, &ns, "web", "", "", &good);
    apply_ingress(&b, &ns, "web", "", "", &rule(&healthy, &[path("/", "Prefix", "web", "80")]));
    let ip = ingress_address(&a, &ns, "web");
    eventually("both", || {
        answer(&ip, &poisoned, "/").contains("port=8080")
            && answer(&ip, &healthy, "/").contains("port=8080")
    });
    // How long a change takes that nobody disturbs.
    let change = |value: &str| {
        let start = Instant::now();
        let rules = rule(&healthy, &[path("/", "Prefix", "web", "80")]);
        let header = format!("fairlead.dev/response-headers-set: 'X-New: {value}'");
        apply_ingress(&b, &ns, "web", &header, "", &rules);
        let wanted = format!("x-new: {value}");
        eventually("the change", || answer(&ip, &healthy, "/").contains(&wanted));
        start.elapsed()
    };
    let quiet = change("before");
    // An expression that only RE2 itself refuses.
    let bad = rule(
        &poisoned,
        &[
            path("/", "Prefix", "web", "80"),
            path("/\\u{61}p", "ImplementationSpecific", "api", "80"),
        ],
    );
    apply_ingress(&a, &ns, "web", "fairlead.dev/path-regex: 'true'", "", &bad);
    event(&a, &ns, "web", "invalid escape sequence");
    until(&hub(), "-n tenant-a get route ing.poison.web --no-headers", |line| {
        line.contains("Rejected")
    });
    assert!(answer(&ip, &poisoned, "/").contains("port=8080"), "its last good state is served");
    // Meanwhile the other tenant's change takes no longer than ever.
    let beside = change("after");
    assert!(beside < quiet + Duration::from_secs(2), "{beside:?}, and {quiet:?} without");
    apply_ingress(&a, &ns, "web", "", "", &good);
    until(&hub(), "-n tenant-a get route ing.poison.web --no-headers", |line| {
        !line.contains("Rejected")
    });
}

#[test]
fn a_restart_of_the_agents_loses_no_request_and_no_shadow() {
    let world = alone("a_restart_of_the_agents_loses_no_request_and_no_shadow");
    for cluster in both() {
        let (ns, name) = namespace(&world, &cluster, "stays");
        let rules = rule(&name, &[path("/", "Prefix", "web", "80")]);
        apply_ingress(&cluster, &ns, "web", "", "", &rules);
        let ip = ingress_address(&cluster, &ns, "web");
        eventually("it serves", || answer(&ip, &name, "/").contains("port=8080"));
        let shadow = format!(
            "-n {ns} get services -l fairlead.dev/shadow-of=web -o jsonpath={{.items[*].metadata.uid}}"
        );
        let before = kubectl(&cluster, &shadow);
        crate::faults::rollout_of_agents(&cluster);
        // The new one works: it follows a change.
        apply_ingress(
            &cluster,
            &ns,
            "web",
            "fairlead.dev/response-headers-set: 'X-New: y'",
            "",
            &rules,
        );
        let start = Instant::now();
        while !answer(&ip, &name, "/").contains("x-new: y") {
            let said = answer(&ip, &name, "/");
            assert!(
                said.contains("port=8080") && start.elapsed() < Duration::from_secs(40),
                "{said}"
            );
        }
        assert_eq!(kubectl(&cluster, &shadow), before, "the shadow is the one from before");
        // A backend that goes is noticed, though it has no finalizer.
        kubectl(&cluster, &format!("-n {ns} delete service web"));
        event(&cluster, &ns, "web", "Service \"web\" does not exist");
        eventually("no backend", || is(&answer(&ip, &name, "/"), 503));
    }
}

#[test]
fn a_restart_of_the_manager_keeps_hosts_and_addresses() {
    let world = alone("a_restart_of_the_manager_keeps_hosts_and_addresses");
    let [a, b] = both();
    let (ns, name) = namespace(&world, &a, "again");
    namespace(&world, &b, "again");
    secret(&a, &ns, "cert", &certificate(&[&name]));
    apply_ingress(
        &a,
        &ns,
        "web",
        "",
        &tls(&name, "cert"),
        &rule(&name, &[path("/", "Prefix", "web", "80")]),
    );
    let ip = ingress_address(&a, &ns, "web");
    eventually("TLS", || answers_to(&ip, &name, "/", "").contains("port=8080"));
    let claims = "get hostnameclaims,addressclaims -o jsonpath={.items[*].metadata.uid}";
    let before = kubectl(&hub(), claims);
    crate::faults::rollout_of_manager();
    for _ in 0..20 {
        let said = answers_to(&ip, &name, "/", "");
        assert!(said.contains("port=8080"), "{said}");
    }
    let after = kubectl(&hub(), claims);
    assert!(before.split(' ').all(|uid| after.contains(uid)), "every claim outlives a restart");
    request(&format!("{ip}:80")).expect_err("a host that nobody serves");
    // The host is still the first one's.
    apply_ingress(&b, &ns, "thief", "", "", &rule(&name, &[path("/", "Prefix", "web", "80")]));
    event(&b, &ns, "thief", "is another tenant's");
}

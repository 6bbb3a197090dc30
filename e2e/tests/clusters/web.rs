//! Ingresses as text, and requests as a client of theirs sends them.

use std::time::Duration;

use fairlead_e2e::run;
use fairlead_e2e::topology::Cluster;

use crate::world::{World, apply, kubectl, on_host, tenant};

/// Both tenants.
pub fn both() -> [Cluster; 2] {
    [tenant("tenant-a"), tenant("tenant-b")]
}

/// A namespace with the workload and its Services, and a host name that no other test uses.
pub fn namespace<T>(world: &World<T>, cluster: &Cluster, name: &str) -> (String, String) {
    world.workload(cluster, name);
    apply(cluster, &service(name, "web", 8080));
    apply(cluster, &service(name, "api", 8081));
    apply(cluster, &service(name, "secure", 8443).replace("port: 80,", "port: 443,"));
    (name.to_owned(), format!("{name}.{}.example", cluster.name))
}

/// A Service of type `ClusterIP`: port 80, named `http`.
pub fn service(namespace: &str, name: &str, target: u16) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: {namespace}}}, spec: \
         {{selector: {{app: echo}}, ports: [{{name: http, port: 80, targetPort: {target}}}]}}}}"
    )
}

/// One path of a rule; `port` by number or by name.
pub fn path(path: &str, kind: &str, service: &str, port: &str) -> String {
    let port = match port.parse::<u16>() {
        Ok(number) => format!("number: {number}"),
        Err(_) => format!("name: {port}"),
    };
    format!(
        "{{path: '{path}', pathType: {kind}, backend: {{service: {{name: {service}, port: {{{port}}}}}}}}}"
    )
}

/// One rule.
pub fn rule(host: &str, paths: &[String]) -> String {
    let host = if host.starts_with("'*") && !host.ends_with('\'') {
        format!("{host}'")
    } else {
        host.into()
    };
    format!("  - {{host: {host}, http: {{paths: [{}]}}}}\n", paths.join(", "))
}

/// One entry of `spec.tls`.
pub fn tls(host: &str, secret: &str) -> String {
    format!("  - {{hosts: [{host}], secretName: {secret}}}\n")
}

/// An Ingress; `annotations` as in braces, `spec` as indented lines.
pub fn ingress(namespace: &str, name: &str, annotations: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {{name: {name}, namespace: \
         {namespace}, annotations: {{{annotations}}}}}\nspec:\n  ingressClassName: fairlead\n{spec}"
    )
}

pub fn apply_ingress(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    annotations: &str,
    tls: &str,
    rules: &str,
) {
    let tls = if tls.is_empty() { String::new() } else { format!("  tls:\n{tls}") };
    apply(cluster, &ingress(namespace, name, annotations, &format!("{tls}  rules:\n{rules}")));
}

/// The address that `kubectl get ingress` shows, once it does.
pub fn ingress_address(cluster: &Cluster, namespace: &str, name: &str) -> String {
    let path = "jsonpath={.status.loadBalancer.ingress[0].ip}";
    kubectl(cluster, &format!("-n {namespace} wait ingress/{name} --timeout=60s --for={path}"));
    kubectl(cluster, &format!("-n {namespace} get ingress {name} -o {path}"))
}

/// What `curl` says, head and body, from the client host; also when it fails.
pub fn curl(arguments: &str) -> String {
    let script = format!("curl -sS -i --max-time 10 {arguments} 2>&1 || true");
    on_host("client", &script).unwrap_or_else(|error| format!("{error:#}"))
}

/// Whether an answer has this status.
pub fn is(answer: &str, status: u16) -> bool {
    let line = answer.lines().find(|line| line.starts_with("HTTP/")).unwrap_or_default();
    line.split(' ').nth(1) == Some(&status.to_string())
}

/// Whether nobody serves a host: 404, or no connection where no Ingress is left at the address.
pub fn is_unserved(answer: &str) -> bool {
    is(answer, 404) || answer.contains("curl: (7)")
}

/// The names in the certificate that a host shows.
pub fn names(ip: &str, host: &str) -> String {
    let show = format!(
        "openssl s_client -connect {ip}:443 -servername {host} </dev/null 2>/dev/null | openssl x509 -noout \
         -ext subjectAltName"
    );
    on_host("client", &show).unwrap_or_else(|error| format!("{error:#}"))
}

/// The answer to a request in plain HTTP.
pub fn answer(ip: &str, host: &str, path: &str) -> String {
    curl(&format!("-H 'Host: {host}' 'http://{ip}{path}'"))
}

/// The answer to a request over TLS, whoever signed the certificate.
pub fn answers_to(ip: &str, host: &str, path: &str, more: &str) -> String {
    curl(&format!("-k {more} --resolve '{host}:443:{ip}' 'https://{host}{path}'"))
}

/// Waits for what other programs bring about in their own time: kube-proxy serves a new node port up
/// to a second later.
pub fn eventually(what: &str, wanted: impl Fn() -> bool) {
    let waited = run::wait_for(what, Duration::from_secs(30), || {
        if wanted() { Ok(()) } else { anyhow::bail!("not yet") }
    });
    waited.unwrap_or_else(|error| panic!("{error:#}"));
}

/// A certificate with its key, PEM.
pub fn certificate(names: &[&str]) -> (String, String) {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    (made.cert.pem(), made.signing_key.serialize_pem())
}

/// A certificate that ended long ago.
pub fn expired(name: &str) -> (String, String) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("a name");
    parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(2020, 1, 2);
    let made = parameters.self_signed(&key).expect("a certificate");
    (made.pem(), key.serialize_pem())
}

/// A Secret of type `kubernetes.io/tls`.
pub fn secret(cluster: &Cluster, namespace: &str, name: &str, (chain, key): &(String, String)) {
    let manifest = format!(
        "{{\"apiVersion\": \"v1\", \"kind\": \"Secret\", \"type\": \"kubernetes.io/tls\", \"metadata\": \
         {{\"name\": \"{name}\", \"namespace\": \"{namespace}\"}}, \"stringData\": {{\"tls.crt\": {}, \
         \"tls.key\": {}}}}}",
        json(chain),
        json(key)
    );
    apply(cluster, &manifest);
}

/// A text as JSON.
pub fn json(text: &str) -> String {
    serde_json::to_string(text).expect("a text")
}

/// Base64 of RFC 4648, for a header or a Secret.
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let all = u32::from_be_bytes([
            0,
            chunk[0],
            *chunk.get(1).unwrap_or(&0),
            *chunk.get(2).unwrap_or(&0),
        ]);
        for place in 0..4 {
            let digit = DIGITS[(all >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= chunk.len() { digit as char } else { '=' });
        }
    }
    text
}

#!/usr/bin/env bash
# Makes the certificates of a hub and its tenants with openssl, for those without a PKI of their own.
#
#   certs.sh DIR                a CA, and certificates for the manager and the Envoys
#   certs.sh DIR tenant NAME    a certificate for the agent of tenant NAME
#
# What exists is kept; remove a folder to have it made anew. Each folder holds tls.crt, tls.key and
# ca.crt, ready for
#   kubectl create secret generic SECRET --from-file=DIR/<folder>
# DIR/ca/tls.key can make certificates for anybody: keep it away from every cluster.
set -euo pipefail

dir=${1:?usage: certs.sh DIR [tenant NAME]}
trust_domain=${FAIRLEAD_TRUST_DOMAIN:-fairlead.local}
days=${FAIRLEAD_CERT_DAYS:-90}
umask 077

issue() { # folder, subject alternative names, extended key usage
  local out=$dir/$1
  [ -e "$out/tls.crt" ] && return
  mkdir -p "$out"
  openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$out/tls.key"
  openssl req -new -key "$out/tls.key" -subj "/CN=fairlead ${1//\// }" |
    openssl x509 -req -CA "$dir/ca/tls.crt" -CAkey "$dir/ca/tls.key" -CAcreateserial -days "$days" \
      -extfile <(printf 'basicConstraints=critical,CA:false\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=%s\nsubjectAltName=%s\n' "$3" "$2") \
      -out "$out/tls.crt" 2>/dev/null
  cp "$dir/ca/tls.crt" "$out/ca.crt"
  echo "$out"
}

if [ ! -e "$dir/ca/tls.crt" ]; then
  mkdir -p "$dir/ca"
  openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$dir/ca/tls.key"
  openssl req -x509 -new -key "$dir/ca/tls.key" -subj "/CN=fairlead CA" -days 3650 \
    -addext basicConstraints=critical,CA:true -addext keyUsage=critical,keyCertSign,cRLSign \
    -out "$dir/ca/tls.crt"
fi

case ${2:-hub} in
  hub)
    issue manager "URI:spiffe://$trust_domain/manager,DNS:fairlead-manager" serverAuth,clientAuth
    issue envoy "URI:spiffe://$trust_domain/fleet/default/envoy" clientAuth
    ;;
  tenant)
    name=${3:?usage: certs.sh DIR tenant NAME}
    [[ $name =~ ^[a-z0-9]([-a-z0-9]{0,54}[a-z0-9])?$ ]] || { echo "tenant $name: must be an RFC 1123 label of at most 56 characters" >&2; exit 1; }
    issue "tenant-$name" "URI:spiffe://$trust_domain/tenant/$name/agent/default" clientAuth
    ;;
  *) echo "usage: certs.sh DIR [tenant NAME]" >&2; exit 1 ;;
esac

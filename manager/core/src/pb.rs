//! Small pieces of Envoy's API that several translations use.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::common::mutation_rules::v3::{HeaderMutation, header_mutation};
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::socket_address::{
    PortSpecifier, Protocol as Transport,
};
use envoy_types::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, ConfigSource, DataSource, HeaderValue,
    HeaderValueOption, RuntimeFractionalPercent, SocketAddress, TransportSocket,
    TypedExtensionConfig, address, data_source, transport_socket,
};
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, ListenerFilter, filter, listener_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpFilter, http_filter,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher};
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use envoy_types::pb::google::protobuf::{Any, BoolValue, UInt32Value};
use prost::encoding::{WireType, encode_key, encode_varint};
use prost::{Message, Name};

/// A message in an `Any`.
pub(crate) fn any<M: Name>(message: &M) -> Any {
    let type_url = format!("type.googleapis.com/{}", M::full_name());
    Any { type_url, value: message.encode_to_vec() }
}

pub(crate) fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

pub(crate) fn flag(value: bool) -> Option<BoolValue> {
    Some(BoolValue { value })
}

pub(crate) fn duration(value: Duration) -> Option<envoy_types::pb::google::protobuf::Duration> {
    let seconds = i64::try_from(value.as_secs()).unwrap_or(i64::MAX);
    let nanos = i32::try_from(value.subsec_nanos()).unwrap_or(0);
    Some(envoy_types::pb::google::protobuf::Duration { seconds, nanos })
}

pub(crate) fn millis(value: u32) -> Option<envoy_types::pb::google::protobuf::Duration> {
    duration(Duration::from_millis(value.into()))
}

/// The stream that all resources come by.
pub(crate) fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    }
}

pub(crate) fn socket(ip: IpAddr, port: u16, transport: Transport) -> Address {
    let socket = SocketAddress {
        protocol: transport.into(),
        address: ip.to_string(),
        port_specifier: Some(PortSpecifier::PortValue(port.into())),
        ..SocketAddress::default()
    };
    Address { address: Some(address::Address::SocketAddress(socket)) }
}

pub(crate) fn inline(text: impl Into<String>) -> DataSource {
    let specifier = Some(data_source::Specifier::InlineString(text.into()));
    DataSource { specifier, ..DataSource::default() }
}

pub(crate) fn inline_bytes(bytes: &[u8]) -> DataSource {
    let specifier = Some(data_source::Specifier::InlineBytes(bytes.to_vec()));
    DataSource { specifier, ..DataSource::default() }
}

/// Always.
pub(crate) fn whole() -> Option<RuntimeFractionalPercent> {
    let all = FractionalPercent { numerator: 100, ..FractionalPercent::default() };
    Some(RuntimeFractionalPercent { default_value: Some(all), ..Default::default() })
}

pub(crate) fn regex(pattern: impl Into<String>) -> RegexMatcher {
    RegexMatcher { regex: pattern.into(), ..RegexMatcher::default() }
}

pub(crate) fn exactly(text: &str) -> StringMatcher {
    let exact = string_matcher::MatchPattern::Exact(text.to_owned());
    StringMatcher { match_pattern: Some(exact), ..StringMatcher::default() }
}

/// The same, whatever the case.
pub(crate) fn likewise(text: &str) -> StringMatcher {
    StringMatcher { ignore_case: true, ..exactly(text) }
}

/// A header in place of whatever was there. `value` may hold `%COMMANDS%`.
pub(crate) fn set_header(name: &str, value: impl Into<String>) -> HeaderValueOption {
    header(name, value, HeaderAppendAction::OverwriteIfExistsOrAdd)
}

/// A header with this action; `value` may hold `%COMMANDS%`.
pub(crate) fn header(
    name: &str,
    value: impl Into<String>,
    action: HeaderAppendAction,
) -> HeaderValueOption {
    let value = value.into();
    HeaderValueOption {
        header: Some(HeaderValue { key: name.to_owned(), value, ..HeaderValue::default() }),
        append_action: action.into(),
        ..HeaderValueOption::default()
    }
}

/// A mutation that puts a header in place of whatever was there. `value` may hold `%COMMANDS%`.
pub(crate) fn replacement(name: &str, value: impl Into<String>) -> HeaderMutation {
    HeaderMutation { action: Some(header_mutation::Action::Append(set_header(name, value))) }
}

/// A mutation that takes a header away.
pub(crate) fn removal(name: &str) -> HeaderMutation {
    HeaderMutation { action: Some(header_mutation::Action::Remove(name.to_owned())) }
}

/// A text in a place where `%` begins a command.
pub(crate) fn literal(text: &str) -> String {
    text.replace('%', "%%")
}

pub(crate) fn extension<M: Name>(name: &str, config: &M) -> TypedExtensionConfig {
    TypedExtensionConfig { name: name.to_owned(), typed_config: Some(any(config)) }
}

pub(crate) fn extension_socket<M: Name>(name: &str, config: &M) -> TransportSocket {
    let config_type = Some(transport_socket::ConfigType::TypedConfig(any(config)));
    TransportSocket { name: name.to_owned(), config_type }
}

pub(crate) fn network_filter<M: Name>(name: &str, config: &M) -> Filter {
    let config_type = Some(filter::ConfigType::TypedConfig(any(config)));
    Filter { name: name.to_owned(), config_type }
}

pub(crate) fn listener_filter<M: Name>(name: &str, config: &M) -> ListenerFilter {
    let config_type = Some(listener_filter::ConfigType::TypedConfig(any(config)));
    ListenerFilter { name: name.to_owned(), config_type, ..ListenerFilter::default() }
}

pub(crate) fn http_filter<M: Name>(name: &str, config: &M, disabled: bool) -> HttpFilter {
    let config_type = Some(http_filter::ConfigType::TypedConfig(any(config)));
    HttpFilter { name: name.to_owned(), config_type, disabled, is_optional: false }
}

/// Appends a field of a message to the message's bytes.
pub(crate) fn append(out: &mut Vec<u8>, tag: u32, bytes: &[u8]) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Appends a `map<string, Any>` in the order of its keys: the generated code would take the random
/// order of a `HashMap`, and equal values would have different versions.
pub(crate) fn append_map(out: &mut Vec<u8>, tag: u32, map: &BTreeMap<&str, Any>) {
    for (name, value) in map {
        let mut entry = Vec::new();
        append(&mut entry, 1, name.as_bytes());
        append(&mut entry, 2, &value.encode_to_vec());
        append(out, tag, &entry);
    }
}

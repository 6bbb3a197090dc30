//! Expressions that a tenant wrote: whether RE2 will take them, without running RE2.

use regex_syntax::ParserBuilder;
use regex_syntax::ast::{
    self, Ast, Flag, FlagsItem, FlagsItemKind, GroupKind, RepetitionKind, RepetitionRange, Visitor,
};
use regex_syntax::hir::{Class, Hir, HirKind};
use regex_syntax::utf8::Utf8Sequences;

const MAX_LENGTH: usize = 1_024;
/// Instructions, as estimated here. Envoy's own bound (`re2.max_program_size.error_level`, set in the
/// chart) is more than twice that.
const MAX_SIZE: usize = 400;

/// Whether an expression can be used.
pub fn check(field: &str, pattern: &str) -> Result<(), String> {
    if pattern.len() > MAX_LENGTH {
        return Err(format!("{field}: an expression has at most {MAX_LENGTH} characters"));
    }
    if pattern.bytes().any(|byte| byte.is_ascii_control()) {
        return Err(format!("{field}: an expression has no control characters"));
    }
    plain(pattern).map_err(|what| format!("{field}: {pattern:?}: {what}"))?;
    let hir = parse(pattern).map_err(|error| {
        let text = error.to_string();
        let reason = text.lines().last().unwrap_or_default().trim().to_owned();
        format!("{field}: {pattern:?} is no expression that RE2 understands: {reason}")
    })?;
    let size = size(&hir, MAX_SIZE);
    if size > MAX_SIZE {
        return Err(format!(
            "{field}: {pattern:?} is too large once its repetitions are written out; make it simpler"
        ));
    }
    Ok(())
}

/// RE2 knows fewer flags than the parser here, and repeats nothing more than 1,000 times, also where the
/// repetition comes to nothing.
fn plain(pattern: &str) -> Result<(), String> {
    let ast = ast::parse::ParserBuilder::new().nest_limit(64).build().parse(pattern);
    // What cannot be read at all is said by the next step.
    ast.map_or(Ok(()), |ast| ast::visit(&ast, Plain))
}

struct Plain;

impl Visitor for Plain {
    type Output = ();
    type Err = String;

    fn finish(self) -> Result<(), String> {
        Ok(())
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), String> {
        let flags = match ast {
            Ast::Flags(set) => Some(&set.flags),
            Ast::Group(group) => match &group.kind {
                GroupKind::NonCapturing(flags) => Some(flags),
                _ => None,
            },
            Ast::Repetition(repetition) => return bounded(&repetition.op.kind),
            _ => None,
        };
        let unknown = |item: &FlagsItem| match item.kind {
            FlagsItemKind::Negation => false,
            FlagsItemKind::Flag(flag) => !matches!(
                flag,
                Flag::CaseInsensitive | Flag::MultiLine | Flag::DotMatchesNewLine | Flag::SwapGreed
            ),
        };
        match flags.filter(|flags| flags.items.iter().any(unknown)) {
            Some(_) => Err("RE2 knows the flags i, m, s and U only".into()),
            None => Ok(()),
        }
    }
}

fn bounded(kind: &RepetitionKind) -> Result<(), String> {
    let most = match kind {
        RepetitionKind::Range(
            RepetitionRange::Exactly(most)
            | RepetitionRange::AtLeast(most)
            | RepetitionRange::Bounded(_, most),
        ) => *most,
        _ => 1,
    };
    if most > 1_000 { Err("RE2 repeats nothing more than 1000 times".into()) } else { Ok(()) }
}

/// How many groups an expression has; 0 for one that cannot be read.
pub fn groups(pattern: &str) -> usize {
    parse(pattern).map_or(0, |hir| hir.properties().explicit_captures_len())
}

/// As RE2 reads it: `\d` and its like are about ASCII.
#[allow(clippy::result_large_err)] // the parser's own error type
fn parse(pattern: &str) -> Result<Hir, regex_syntax::Error> {
    ParserBuilder::new().unicode(false).utf8(false).nest_limit(64).build().parse(pattern)
}

/// Whether `\1` to `\9` of a substitution are groups that there are.
pub fn substitution(text: &str, groups: usize) -> Result<(), String> {
    let mut rest = text.chars();
    while let Some(one) = rest.next() {
        if one != '\\' {
            continue;
        }
        let digit = rest.next().and_then(|next| next.to_digit(10));
        if digit.is_none_or(|number| number as usize > groups) {
            return Err(format!("urlRewrite: {text:?}: the path has only {groups} groups"));
        }
    }
    Ok(())
}

/// Instructions of the compiled program, roughly; no more is counted once it is beyond `bound`.
fn size(hir: &Hir, bound: usize) -> usize {
    let capped = |size: usize| size.min(bound + 1);
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => 1,
        HirKind::Literal(literal) => literal.0.len(),
        HirKind::Class(Class::Unicode(class)) => capped(
            class
                .ranges()
                .iter()
                .flat_map(|range| Utf8Sequences::new(range.start(), range.end()))
                .take(bound + 1)
                .map(|sequence| sequence.len())
                .sum(),
        ),
        // What is beyond ASCII comes as UTF-8.
        HirKind::Class(Class::Bytes(class)) => {
            let wide = class.ranges().iter().any(|range| range.end() > 0x7f);
            class.ranges().len() + if wide { 10 } else { 0 }
        }
        HirKind::Repetition(repetition) => {
            let least = repetition.min.saturating_add(1);
            let times = repetition.max.unwrap_or(least).max(1) as usize;
            capped((size(&repetition.sub, bound) + 1).saturating_mul(times))
        }
        HirKind::Capture(capture) => capped(size(&capture.sub, bound) + 2),
        HirKind::Concat(all) => capped(all.iter().map(|one| size(one, bound)).sum()),
        HirKind::Alternation(all) => capped(all.iter().map(|one| size(one, bound) + 1).sum()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_passes_and_what_explodes_does_not() {
        for good in ["/foo(/|$)(.*)", "/v[0-9]+/items/[a-z]{1,8}", "/(de|en|fr)/.*", "/\\d{3}"] {
            check("path", good).unwrap();
        }
        let long = "a".repeat(2_000);
        for bad in [
            "/(a{1,50}){1,50}",
            "/((a{30}){30}){30}",
            "/(",
            "/a(?=b)",
            "/(.)\\1",
            "/\n",
            &long,
            "/(?x)a",
            "/(?R)a",
            "/(?:a{5000}){0}",
            "/[^/]{1,130}",
            "/a{4294967295,}",
        ] {
            assert!(check("path", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_substitution_names_groups_that_there_are() {
        assert_eq!(groups("/foo(/|$)(.*)"), 2);
        substitution("/\\2", 2).unwrap();
        assert!(substitution("/\\3", 2).is_err());
        assert!(substitution("/\\x", 2).is_err());
    }
}

//! `--format`: a table, JSON, or the part of Go's templates that people use with Docker:
//! `{{.Name}}`, `{{.State.ExitCode}}`, `{{json .Config}}`, and `table {{.ID}}\t{{.Names}}`.

use std::io::{self, Write};

use serde_json::Value;

use super::Table;

/// How something is printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// A table, for people.
    Table,
    /// A line of JSON for each.
    Json,
    /// What a template makes of each.
    Template(Vec<Part>),
    /// What a template makes of each, as a table.
    TemplateTable(Vec<Part>),
}

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// This, as it is.
    Text(String),
    /// What is found along these names, in JSON if the flag is set.
    Field(Vec<String>, bool),
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" | "table" => return Ok(Format::Table),
            "json" => return Ok(Format::Json),
            _ => {}
        }
        let (is_table, text) = match text.strip_prefix("table ") {
            Some(rest) => (true, rest.trim_start()),
            None => (false, text),
        };
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        let mut parts = Vec::new();
        let mut rest = &text[..];
        while let Some((before, action)) = rest.split_once("{{") {
            let (action, after) = action
                .split_once("}}")
                .ok_or_else(|| format!("`{text}` has a {{{{ without its }}}}"))?;
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(parse_action(action)?);
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(if is_table {
            Format::TemplateTable(parts)
        } else {
            Format::Template(parts)
        })
    }
}

fn parse_action(action: &str) -> Result<Part, String> {
    let action = action.trim();
    let (path, json) = match action.strip_prefix("json ") {
        Some(path) => (path.trim(), true),
        None => (action, false),
    };
    let wrong = || {
        format!("`{{{{{action}}}}}` is not understood: give {{{{.Field}}}} or {{{{json .Field}}}}")
    };
    let path = path.strip_prefix('.').ok_or_else(wrong)?;
    if path.contains(|c: char| c.is_whitespace() || "()|\"$".contains(c)) {
        return Err(wrong());
    }
    let names = path.split('.').filter(|name| !name.is_empty());
    Ok(Part::Field(names.map(str::to_owned).collect(), json))
}

/// What the template makes of `value`.
fn render(parts: &[Part], value: &Value) -> Result<String, String> {
    let mut text = String::new();
    for part in parts {
        match part {
            Part::Text(words) => text.push_str(words),
            Part::Field(path, json) => {
                let mut found = value;
                for name in path {
                    found = found
                        .get(name)
                        .ok_or_else(|| format!("there is no field .{}", path.join(".")))?;
                }
                match found {
                    Value::String(words) if !json => text.push_str(words),
                    Value::Null if !json => text.push_str("<no value>"),
                    other => text.push_str(&other.to_string()),
                }
            }
        }
    }
    Ok(text)
}

/// Prints values in a format that is not [`Format::Table`], for which there is `otherwise`.
pub fn print_rows(
    format: &Format,
    values: &[Value],
    otherwise: impl FnOnce() -> Table,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut out = io::stdout().lock();
    match format {
        Format::Table => otherwise().print()?,
        Format::Json => {
            for value in values {
                writeln!(out, "{value}")?;
            }
        }
        Format::Template(parts) => {
            for value in values {
                writeln!(out, "{}", render(parts, value)?)?;
            }
        }
        Format::TemplateTable(parts) => {
            let heading = parts.iter().map(|part| match part {
                Part::Text(text) => text.clone(),
                Part::Field(path, _) => path.last().cloned().unwrap_or_default().to_uppercase(),
            });
            let cells = |line: String| line.split('\t').map(str::to_owned).collect::<Vec<_>>();
            let heading = cells(heading.collect());
            let mut table = Table::new(&heading.iter().map(String::as_str).collect::<Vec<_>>());
            for value in values {
                table.row(cells(render(parts, value)?));
            }
            table.print()?;
        }
    }
    Ok(())
}

/// Prints what `inspect` found: one document with all, or what a template makes of each.
pub fn print_values(
    format: Option<&Format>,
    values: &[Value],
) -> Result<(), Box<dyn std::error::Error>> {
    match format {
        None | Some(Format::Table) => {
            let mut out = io::stdout().lock();
            serde_json::to_writer_pretty(&mut out, values)?;
            writeln!(out)?;
            Ok(())
        }
        Some(Format::Json) => {
            println!("{}", Value::Array(values.to_vec()));
            Ok(())
        }
        Some(format) => print_rows(format, values, || Table::new(&[])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rendered(template: &str, value: &Value) -> Result<String, String> {
        match template.parse()? {
            Format::Template(parts) | Format::TemplateTable(parts) => render(&parts, value),
            other => Ok(format!("{other:?}")),
        }
    }

    #[test]
    fn template_takes_fields_at_any_depth() {
        let value = json!({"Name": "x", "State": {"ExitCode": 3, "Ok": true}, "None": null});
        let is = |template: &str, expected: &str| {
            assert_eq!(rendered(template, &value).as_deref(), Ok(expected));
        };
        is("{{.Name}}: {{ .State.ExitCode }}", "x: 3");
        is("{{.State.Ok}}\\t{{.None}}", "true\t<no value>");
        is("{{json .Name}}", "\"x\"");
        is("{{json .State}}", r#"{"ExitCode":3,"Ok":true}"#);
        is("plain", "plain");
        is("json", "Json");
    }

    #[test]
    fn template_when_wrong_says_so() {
        let value = json!({"Name": "x"});
        for wrong in [
            "{{.Nam}}",
            "{{.Name",
            "{{Name}}",
            "{{range .Name}}",
            "{{.Name | upper}}",
        ] {
            assert!(rendered(wrong, &value).is_err(), "{wrong}");
        }
    }
}

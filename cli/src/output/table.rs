//! Tables as Docker prints them.

use std::io::{self, Write};

use serde_json::Value;

/// Between two columns.
const GAP: usize = 3;

/// Rows of words under a heading.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with this heading.
    pub fn new(heading: &[&str]) -> Self {
        Table {
            rows: vec![heading.iter().map(|&word| word.to_owned()).collect()],
        }
    }

    /// A table of columns, each a heading and the field of the values that goes under it.
    pub fn of(columns: &[(&str, &str)], values: &[Value]) -> Self {
        let (heading, fields): (Vec<_>, Vec<_>) = columns.iter().copied().unzip();
        let mut table = Table::new(&heading);
        for value in values {
            let word = |field: &&str| value[*field].as_str().unwrap_or_default().to_owned();
            table.row(fields.iter().map(word).collect());
        }
        table
    }

    /// Adds a row.
    pub fn row(&mut self, words: Vec<String>) {
        self.rows.push(words);
    }

    /// Prints it, each column as wide as it must be.
    pub fn print(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(self.to_text().as_bytes())?;
        out.flush()
    }

    fn to_text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells
                .map(|cell: &String| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                let padding = width + GAP - cell.chars().count();
                line.extend(std::iter::repeat_n(' ', padding));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_are_as_wide_as_their_widest_word() {
        let mut table = Table::new(&["ID", "NAME"]);
        table.row(vec!["abcdef".into(), "é".into()]);
        table.row(vec![String::new(), "last".into()]);
        let expected = "ID       NAME\nabcdef   é\n         last\n";
        assert_eq!(table.to_text(), expected);
        let values = [
            json!({"Id": "abcdef", "Name": "é", "Other": 1}),
            json!({"Name": "last"}),
        ];
        let table = Table::of(&[("ID", "Id"), ("NAME", "Name")], &values);
        assert_eq!(table.to_text(), expected);
    }
}

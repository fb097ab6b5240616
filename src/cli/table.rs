//! Columns for people: as wide as their widest cell, numbers to the right.

use super::exit::CliError;
use super::print;

/// Rows under a heading.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub(super) fn new(heading: &[&str]) -> Self {
        let heading = heading.iter().map(|cell| (*cell).to_owned()).collect();
        Self {
            rows: vec![heading],
        }
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The lines; none where there are no rows under the heading.
    fn lines(&self) -> Vec<String> {
        if self.rows.len() < 2 {
            return Vec::new();
        }
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cells = |column: usize| {
            self.rows
                .iter()
                .skip(1)
                .filter_map(move |row| row.get(column))
        };
        let is_number = |cell: &String| {
            cell.bytes()
                .all(|byte| byte.is_ascii_digit() || b"-.".contains(&byte))
        };
        let shapes: Vec<(usize, bool)> = (0..columns)
            .map(|column| {
                let all = self.rows.iter().filter_map(|row| row.get(column));
                let width = all.map(|cell| cell.chars().count()).max().unwrap_or(0);
                (width, cells(column).all(is_number))
            })
            .collect();
        let line = |row: &Vec<String>| {
            let mut line = String::new();
            for (cell, (width, to_the_right)) in row.iter().zip(&shapes) {
                let width = *width;
                match to_the_right {
                    true => line.push_str(&format!("{cell:>width$}  ")),
                    false => line.push_str(&format!("{cell:<width$}  ")),
                }
            }
            line.trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }

    /// Prints it on stdout.
    pub(super) fn print(&self) -> Result<(), CliError> {
        self.lines().into_iter().try_for_each(print)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["name", "n"]);
        assert!(table.lines().is_empty());
        table.row(["a".to_owned(), "10".to_owned()]);
        table.row(["längst".to_owned(), "9".to_owned()]);
        assert_eq!(table.lines(), ["name     n", "a       10", "längst   9"]);
    }
}

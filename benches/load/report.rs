//! Figures: gathered over runs, judged by their median, printed as a table and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Outcome;

/// What a figure has to reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    /// This much or more.
    AtLeast(f64),
    /// This much or less.
    AtMost(f64),
}

/// A figure that is promised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Goal {
    /// The figure's name.
    pub(crate) figure: &'static str,
    /// What it has to reach.
    pub(crate) bound: Bound,
}

impl Goal {
    /// A figure that must not be below.
    pub(crate) const fn at_least(figure: &'static str, bound: f64) -> Self {
        Self {
            figure,
            bound: Bound::AtLeast(bound),
        }
    }

    /// A figure that must not be above.
    pub(crate) const fn at_most(figure: &'static str, bound: f64) -> Self {
        Self {
            figure,
            bound: Bound::AtMost(bound),
        }
    }
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(least) => format!(">= {}", number(least)),
            Self::AtMost(most) => format!("<= {}", number(most)),
        }
    }
}

/// What one scenario measures, over its runs, in the order it was first named.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    samples: Vec<(String, &'static str, Vec<f64>)>,
    notes: Vec<String>,
    faults: Vec<String>,
}

impl Samples {
    /// Records one run's value of a figure.
    pub(crate) fn add(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        let name = name.into();
        match self.samples.iter_mut().find(|(known, _, _)| *known == name) {
            Some((_, _, values)) => values.push(value),
            None => self.samples.push((name, unit, vec![value])),
        }
    }

    /// Something a reader of the table must know, said once.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// The measurement itself is not sound: the scenario fails, and goes on for what else it shows.
    pub(crate) fn fault(&mut self, fault: impl Into<String>) {
        let fault = fault.into();
        if !self.faults.contains(&fault) {
            self.faults.push(fault);
        }
    }

    /// The figures: medians beside their goals. A goal whose figure is missing, or has fewer than
    /// `runs_min` runs, could not be measured (H1); without `runs_min` none is judged.
    pub(crate) fn figures(
        self,
        scenario: &'static str,
        goals: &[Goal],
        runs_min: Option<usize>,
        ended: Outcome<()>,
    ) -> Figures {
        let mut faults = self.faults;
        faults.extend(ended.err().map(|fault| fault.to_string()));
        let fault = (!faults.is_empty()).then(|| format!("{scenario}: {}", faults.join("; ")));
        let mut figures: Vec<Figure> = Vec::new();
        for (name, unit, mut values) in self.samples {
            let goal = goals.iter().find(|goal| goal.figure == name);
            values.sort_by(f64::total_cmp);
            let value = median(&values);
            let measured = runs_min.is_some_and(|min| values.len() >= min) && fault.is_none();
            figures.push(Figure {
                scenario,
                unit,
                held: goal
                    .filter(|_| runs_min.is_some())
                    .map(|goal| measured && value.is_some_and(|value| goal.bound.holds(value))),
                goal: goal.map(|goal| goal.bound),
                spread: values.first().copied().zip(values.last().copied()),
                runs: values.len(),
                value,
                name,
            });
        }
        for goal in goals.iter().filter(|_| runs_min.is_some()) {
            if !figures.iter().any(|figure| figure.name == goal.figure) {
                figures.push(Figure::missing(scenario, goal));
            }
        }
        Figures {
            figures,
            notes: self.notes,
            fault,
        }
    }
}

/// The middle value; the mean of the two in the middle where there are two.
fn median(sorted: &[f64]) -> Option<f64> {
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *sorted.get((sorted.len() / 2).checked_sub(1)?)?;
    Some((lower + upper) / 2.0)
}

/// One line of the table.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    scenario: &'static str,
    name: String,
    value: Option<f64>,
    unit: &'static str,
    goal: Option<Bound>,
    held: Option<bool>,
    spread: Option<(f64, f64)>,
    runs: usize,
}

impl Figure {
    fn missing(scenario: &'static str, goal: &Goal) -> Self {
        Self {
            scenario,
            name: goal.figure.to_owned(),
            value: None,
            unit: "",
            goal: Some(goal.bound),
            held: Some(false),
            spread: None,
            runs: 0,
        }
    }

    fn json(&self) -> Value {
        json!({
            "scenario": self.scenario,
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "goal": self.goal.map(Bound::text),
            "held": self.held,
            "least": self.spread.map(|(least, _)| least),
            "most": self.spread.map(|(_, most)| most),
            "runs": self.runs,
        })
    }
}

/// What a scenario came to.
#[derive(Debug)]
pub(crate) struct Figures {
    figures: Vec<Figure>,
    notes: Vec<String>,
    fault: Option<String>,
}

/// A scenario's figures, one line each.
pub(crate) fn table(scenario: &str, figures: &Figures) -> String {
    let mut text = format!("\n== {scenario}\n");
    for figure in &figures.figures {
        let value = figure
            .value
            .map_or_else(|| "not measured".to_owned(), number);
        let spread = match figure.spread {
            Some((least, most)) if figure.runs > 1 => {
                format!("[{} .. {}]", number(least), number(most))
            }
            _ => String::new(),
        };
        let goal = figure.goal.map(Bound::text).unwrap_or_default();
        let held = match figure.held {
            Some(true) => "held",
            Some(false) => "NOT HELD",
            None => "",
        };
        let (name, unit) = (&figure.name, figure.unit);
        let _ = writeln!(
            text,
            "{name:<52} {value:>12} {unit:<9} {spread:<24} {goal:<12} {held}"
        );
    }
    for note in &figures.notes {
        let _ = writeln!(text, "   note: {note}");
    }
    if let Some(fault) = &figures.fault {
        let _ = writeln!(text, "   FAILED: {fault}");
    }
    text
}

/// Everything measured by this process.
#[derive(Debug)]
pub(crate) struct Report {
    quick: bool,
    figures: Vec<Figure>,
    faults: Vec<String>,
}

impl Report {
    /// Nothing yet. A quick report judges no goals, only faults.
    pub(crate) fn new(quick: bool) -> Self {
        Self {
            quick,
            figures: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// Takes a scenario's figures.
    pub(crate) fn extend(&mut self, figures: Figures) {
        self.figures.extend(figures.figures);
        self.faults.extend(figures.fault);
    }

    /// Whether everything promised is held and nothing failed.
    pub(crate) fn held(&self) -> bool {
        self.faults.is_empty() && (self.quick || self.short().is_empty())
    }

    fn short(&self) -> Vec<&Figure> {
        self.figures
            .iter()
            .filter(|figure| figure.held == Some(false))
            .collect()
    }

    /// The last lines: what is held and what is not.
    pub(crate) fn verdict(&self) -> String {
        let mut text = String::new();
        for fault in &self.faults {
            let _ = writeln!(text, "FAILED: {fault}");
        }
        if self.quick {
            text.push_str("quick: data verified, goals not judged");
            return text;
        }
        let short = self.short();
        for figure in &short {
            let value = figure
                .value
                .map_or_else(|| "not measured".to_owned(), number);
            let goal = figure.goal.map(Bound::text).unwrap_or_default();
            let (scenario, name, unit) = (figure.scenario, &figure.name, figure.unit);
            let _ = writeln!(
                text,
                "NOT HELD: {scenario}: {name} = {value} {unit} (goal {goal})"
            );
        }
        let goals = self
            .figures
            .iter()
            .filter(|figure| figure.goal.is_some())
            .count();
        let _ = write!(text, "{} of {goals} goals held", goals - short.len());
        text
    }

    /// The list of {scenario, name, value, unit, goal, held, least, most, runs}; in a quick report no
    /// goal is judged, so `held` is null.
    pub(crate) fn json(&self) -> Outcome<String> {
        let list: Vec<Value> = self.figures.iter().map(Figure::json).collect();
        Ok(serde_json::to_string_pretty(&list)?)
    }
}

/// Four significant digits, no exponent.
fn number(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude == 0.0 || magnitude >= 1000.0 {
        format!("{value:.0}")
    } else if magnitude >= 100.0 {
        format!("{value:.1}")
    } else if magnitude >= 10.0 {
        format!("{value:.2}")
    } else if magnitude >= 1.0 {
        format!("{value:.3}")
    } else {
        format!("{value:.4}")
    }
}

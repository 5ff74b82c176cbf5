//! A case as text: the options of the union, its layers, and the steps. What was found is kept in
//! this form, and replayed from it.

use super::line::Line;
use anyhow::{Context, Result, bail};
use std::fmt;

/// Everything that makes a run.
#[derive(Clone, Debug, Default)]
pub struct Case {
    /// `overlay` or `aufs`: the grammar of the mount.
    pub grammar: String,
    /// Further mount options.
    pub options: String,
    /// What each layer is made by, topmost first; the first is the writable one.
    pub layers: Vec<Vec<Line>>,
    pub steps: Vec<Line>,
}

impl Case {
    pub fn parse(text: &str) -> Result<Self> {
        let mut case = Self::default();
        let mut in_steps = false;
        for line in text.lines() {
            let Some(line) = Line::parse(line)? else {
                continue;
            };
            match line.verb() {
                "union" => {
                    let mut args = line.args();
                    args.text()?.clone_into(&mut case.grammar);
                    args.text().unwrap_or("").clone_into(&mut case.options);
                }
                "layer" => case.layers.push(Vec::new()),
                "steps" => in_steps = true,
                _ if in_steps => case.steps.push(line),
                _ => {
                    let layer = case.layers.last_mut().context("no layer before a line")?;
                    layer.push(line);
                }
            }
        }
        if !matches!(case.grammar.as_str(), "overlay" | "aufs") {
            bail!("union {}: must be overlay or aufs", case.grammar);
        }
        if case.layers.is_empty() {
            bail!("no layer");
        }
        Ok(case)
    }

    /// How many lines there are to leave out.
    pub fn len(&self) -> usize {
        self.layers.iter().map(Vec::len).sum::<usize>() + self.steps.len()
    }

    /// With only these of its lines; layers become empty, they are not left out.
    pub fn with(&self, keep: &[bool]) -> Self {
        let mut keep = keep.iter();
        let mut some = |lines: &[Line]| -> Vec<Line> {
            let kept = lines.iter().filter(|_| keep.next().is_none_or(|k| *k));
            kept.cloned().collect()
        };
        Self {
            grammar: self.grammar.clone(),
            options: self.options.clone(),
            layers: self.layers.iter().map(|lines| some(lines)).collect(),
            steps: some(&self.steps),
        }
    }

    /// Without one of its layers.
    pub fn without_layer(&self, number: usize) -> Self {
        let mut case = self.clone();
        case.layers.remove(number);
        case
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "union {} {}", self.grammar, self.options)?;
        for (number, lines) in self.layers.iter().enumerate() {
            writeln!(f, "layer # {number}")?;
            for line in lines {
                writeln!(f, "{line}")?;
            }
        }
        writeln!(f, "steps")?;
        for line in &self.steps {
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}

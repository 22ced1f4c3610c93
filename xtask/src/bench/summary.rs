//! Over all workloads: what each tool costs, and whether the goals are reached.

use serde::Serialize;

use super::Outcome;

/// What is said at the end.
#[derive(Debug, Serialize)]
pub struct Summary {
    pub tools: Vec<Mean>,
    pub goals: Vec<Goal>,
}

/// One tool's.
#[derive(Debug, Serialize)]
pub struct Mean {
    pub tool: String,
    pub workloads: usize,
    /// Geometric.
    pub mean: f64,
    pub worst: f64,
    pub worst_workload: String,
}

/// Where we want to be.
#[derive(Debug, Serialize)]
pub struct Goal {
    pub goal: String,
    pub reached: bool,
    pub figures: String,
}

impl Summary {
    /// Of everything that was measured. A goal whose figures were not measured is not spoken of.
    pub fn of(outcomes: &[Outcome]) -> Summary {
        let mut names: Vec<&str> = Vec::new();
        for outcome in outcomes {
            if !names.contains(&outcome.tool.as_str()) {
                names.push(&outcome.tool);
            }
        }
        let tools: Vec<Mean> = names.iter().filter_map(|name| mean(outcomes, name)).collect();
        let below = [("heap", "memray"), ("objects", "memray-objects")];
        let goals = [
            at_most(&tools, "pages", 1.02, 1.06),
            at_most(&tools, "heap", 1.30, f64::INFINITY),
            at_most(&tools, "sampled", 1.05, 1.15),
        ]
        .into_iter()
        .chain(below.map(|(ours, theirs)| always_below(outcomes, ours, theirs)))
        .chain([times_cheaper(outcomes, "heap", "memory_profiler", 30.0)])
        .flatten()
        .collect();
        Summary { tools, goals }
    }
}

fn work_ratios<'a>(outcomes: &'a [Outcome], tool: &'a str) -> impl Iterator<Item = (&'a str, f64)> + 'a {
    let of_tool = outcomes.iter().filter(move |outcome| outcome.tool == tool);
    of_tool.filter_map(|outcome| Some((outcome.workload.as_str(), outcome.work_ratio()?)))
}

fn mean(outcomes: &[Outcome], tool: &str) -> Option<Mean> {
    let ratios: Vec<(&str, f64)> = work_ratios(outcomes, tool).collect();
    let (worst_workload, worst) = *ratios.iter().max_by(|left, right| left.1.total_cmp(&right.1))?;
    let count = u32::try_from(ratios.len()).ok()?;
    let mean = (ratios.iter().map(|(_, ratio)| ratio.ln()).sum::<f64>() / f64::from(count)).exp();
    Some(Mean {
        tool: tool.to_owned(),
        workloads: ratios.len(),
        mean,
        worst,
        worst_workload: worst_workload.to_owned(),
    })
}

fn at_most(tools: &[Mean], tool: &str, mean: f64, worst: f64) -> Option<Goal> {
    let found = tools.iter().find(|found| found.tool == tool)?;
    let and_worst = if worst.is_finite() { format!(", worst at most {worst:.2}x") } else { String::new() };
    Some(Goal {
        goal: format!("{tool}: mean at most {mean:.2}x{and_worst}"),
        reached: found.mean <= mean && found.worst <= worst,
        figures: format!("mean {:.3}x, worst {:.3}x", found.mean, found.worst),
    })
}

fn always_below(outcomes: &[Outcome], ours: &str, theirs: &str) -> Option<Goal> {
    let their_ratios: Vec<_> = work_ratios(outcomes, theirs).collect();
    let above: Vec<String> = work_ratios(outcomes, ours)
        .filter_map(|(workload, ours)| {
            let (_, theirs) = their_ratios.iter().find(|(name, _)| *name == workload)?;
            (ours > *theirs).then(|| format!("{workload} {ours:.2}x against {theirs:.2}x"))
        })
        .collect();
    let figures = if above.is_empty() { "on all".to_owned() } else { format!("above it on {}", above.join(", ")) };
    (!their_ratios.is_empty() && work_ratios(outcomes, ours).next().is_some()).then(|| Goal {
        goal: format!("{ours}: below {theirs} on every workload"),
        reached: above.is_empty(),
        figures,
    })
}

fn times_cheaper(outcomes: &[Outcome], ours: &str, theirs: &str, times: f64) -> Option<Goal> {
    let extra = |tool: &str| {
        let found = outcomes.iter().find(|outcome| outcome.workload == "lines" && outcome.tool == tool)?;
        Some(found.figures.as_ref()?.step.as_ref()?.extra_nanoseconds)
    };
    let (ours, theirs_extra) = (extra(ours)?, extra(theirs)?);
    Some(Goal {
        goal: format!("a line of a marked function: at least {times} times cheaper than {theirs}"),
        reached: theirs_extra >= times * ours,
        figures: format!("{ours:.0} ns against {theirs_extra:.0} ns: {:.1} times", theirs_extra / ours),
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Figures, Spread, Step};
    use super::*;

    fn outcome(workload: &'static str, tool: &'static str, ratio: f64, extra: f64) -> Outcome {
        let one = Spread::of([ratio]);
        let step = Some(Step { name: "line".into(), bare_nanoseconds: 1.0, extra_nanoseconds: extra });
        let figures = Figures {
            bare_seconds: one,
            tool_seconds: one,
            ratio: one,
            extra_milliseconds: one,
            work_ratio: Some(one),
            processor_ratio: None,
            step,
            ours: None,
            target: None,
        };
        Outcome { workload: workload.into(), tool: tool.into(), turns: 1, failed: None, figures: Some(figures) }
    }

    #[test]
    fn means_are_geometric_and_goals_are_held_against_the_figures() {
        let outcomes = [
            outcome("a", "heap", 1.0, 0.0),
            outcome("b", "heap", 4.0, 0.0),
            outcome("a", "memray", 2.0, 0.0),
            outcome("b", "memray", 3.0, 0.0),
            outcome("lines", "heap", 100.0, 10.0),
            outcome("lines", "memory_profiler", 100.0, 300.0),
        ];
        let summary = Summary::of(&outcomes);
        let heap = &summary.tools[0];
        assert!((heap.mean - 2.0).abs() < 1e-9, "{heap:?}");
        assert_eq!((heap.workloads, heap.worst, heap.worst_workload.as_str()), (2, 4.0, "b"));
        let reached: Vec<(bool, &str)> =
            summary.goals.iter().map(|goal| (goal.reached, goal.figures.as_str())).collect();
        assert_eq!(
            reached,
            [
                (false, "mean 2.000x, worst 4.000x"),
                (false, "above it on b 4.00x against 3.00x"),
                (true, "10 ns against 300 ns: 30.0 times")
            ]
        );
        assert!(Summary::of(&[]).goals.is_empty());
    }
}

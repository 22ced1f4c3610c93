//! Expressions and statements by chance.

use super::make::{Callable, DEAREST, Holds, Maker, Scope};
use super::program::{Comprehension, Condition, Expression, Flavour, Kind, Shape, Statement, Target, What};
use std::rc::Rc;

const KINDS: [Kind; 5] = [Kind::Bytearray, Kind::Bytes, Kind::Text, Kind::Nones, Kind::Tuple];

/// A name as an expression.
pub fn named(name: &str) -> Expression {
    Expression::Name(name.to_owned())
}

fn assign(name: &str, value: Expression) -> Statement {
    What::Assign(Target::Name(name.to_owned()), value).into()
}

impl Maker {
    /// Whether something of this cost can still be done in the scope. If so it is counted.
    pub fn affords(&mut self, scope: &mut Scope, cost: usize) -> bool {
        let affords = scope.cost + scope.times * cost <= DEAREST;
        if affords {
            scope.cost += scope.times * cost;
        }
        affords
    }

    /// A name of a variable of this sort.
    pub fn variable(&mut self, scope: &Scope, wanted: impl Fn(&Holds) -> bool, free: bool) -> Option<(String, Holds)> {
        let found: Vec<_> =
            scope.variables.iter().filter(|variable| wanted(&variable.holds) && !(free && variable.fixed)).collect();
        if found.is_empty() {
            return None;
        }
        let variable = *self.chance.one_of(&found);
        Some((variable.name.clone(), variable.holds.clone()))
    }

    pub fn new_of(&mut self, scope: &mut Scope, kind: Kind) -> Expression {
        scope.cost += scope.times;
        let length = self.length(kind);
        let number = self.variable(scope, |holds| *holds == Holds::Number, false);
        let more = number.filter(|_| self.chance.once_in(2)).map(|(name, _)| name);
        Expression::New(kind, length, more)
    }

    pub fn new_block(&mut self, scope: &mut Scope) -> Expression {
        let kind = *self.chance.one_of(&KINDS);
        self.new_of(scope, kind)
    }

    /// A block that can be joined, copied and cut, new or of a variable.
    fn joinable(&mut self, scope: &mut Scope, kind: Kind) -> Expression {
        match self.variable(scope, |holds| *holds == Holds::Bytes(kind), false) {
            Some((name, _)) if self.chance.once_in(2) => named(&name),
            _ => self.new_of(scope, kind),
        }
    }

    /// Arguments for a callable; a list that is not there is made on the way.
    pub fn arguments(&mut self, scope: &mut Scope, parameters: &[Holds]) -> Vec<Expression> {
        let mut argument = |maker: &mut Self, holds: &Holds| match holds {
            Holds::Number => Expression::Number(3),
            Holds::List => match maker.variable(scope, |holds| *holds == Holds::List, false) {
                Some((name, _)) => named(&name),
                None => Expression::List(Vec::new()),
            },
            _ => match maker.variable(scope, |holds| matches!(holds, Holds::Bytes(_) | Holds::Any), false) {
                Some((name, _)) if maker.chance.once_in(3) => named(&name),
                _ => maker.new_block(scope),
            },
        };
        parameters.iter().map(|holds| argument(self, holds)).collect()
    }

    /// A callable that the scope can afford, counted.
    pub fn callable(&mut self, scope: &mut Scope, wanted: impl Fn(&Callable) -> bool) -> Option<Callable> {
        // A loop cannot run in another, nor in what another runs.
        let waits = matches!(scope.flavour, Flavour::Coroutine | Flavour::AsyncGenerator);
        let suits = |callable: &&Callable| wanted(callable) && !(waits && callable.runs_loop);
        let found: Vec<Callable> = self.callables.iter().filter(suits).cloned().collect();
        if found.is_empty() {
            return None;
        }
        let callable = self.chance.one_of(&found).clone();
        if !self.affords(scope, callable.cost + callable.parameters.len()) {
            return None;
        }
        scope.runs_loop |= callable.runs_loop;
        Some(callable)
    }

    /// An expression whose value is a block or None.
    pub fn block(&mut self, scope: &mut Scope) -> Expression {
        self.block_of(scope).0
    }

    /// The same, and what a variable holds that is assigned it.
    pub fn block_of(&mut self, scope: &mut Scope) -> (Expression, Holds) {
        for _ in 0..3 {
            if let Some(made) = self.maybe_block(scope) {
                return made;
            }
        }
        (self.new_block(scope), Holds::Any)
    }

    fn maybe_block(&mut self, scope: &mut Scope) -> Option<(Expression, Holds)> {
        let kind = *self.chance.one_of(&[Kind::Bytearray, Kind::Bytes]);
        let any = |holds: &Holds| matches!(holds, Holds::Bytes(_) | Holds::Any);
        let made = match self.chance.below(13) {
            0 | 1 => (self.new_of(scope, kind), Holds::Bytes(kind)),
            2 => (self.new_block(scope), Holds::Any),
            3 => {
                let (left, right) = (self.joinable(scope, kind), self.joinable(scope, kind));
                scope.cost += scope.times;
                (Expression::Join(Box::new(left), Box::new(right)), Holds::Bytes(kind))
            }
            4 => {
                let (name, _) = self.variable(scope, |holds| matches!(holds, Holds::Bytes(_)), false)?;
                scope.cost += scope.times;
                // Bytes of bytes are the same object.
                let to = if scope.holds(&name) == Some(Holds::Bytes(Kind::Bytes)) { Kind::Bytearray } else { kind };
                (Expression::Copy(to, Box::new(named(&name))), Holds::Bytes(to))
            }
            5 => {
                let (name, holds) = self.variable(scope, |holds| matches!(holds, Holds::Bytes(_)), false)?;
                scope.cost += scope.times;
                let from = u64::try_from(self.chance.between(1_000, 50_000)).unwrap();
                (Expression::Rest(Box::new(named(&name)), from), holds)
            }
            6 => {
                let (name, _) = self.variable(scope, |holds| *holds == Holds::Number, false)?;
                let (yes, no) = (self.new_block(scope), self.new_block(scope));
                let condition = Condition::Rest(name, 2, 0);
                (Expression::Either(Box::new(yes), condition, Box::new(no)), Holds::Any)
            }
            7 | 8 => {
                let callable = self.callable(scope, |callable| {
                    callable.returns && callable.raises.is_none() && callable.flavour == Flavour::Plain
                })?;
                let arguments = self.arguments(scope, &callable.parameters);
                (Expression::Call(callable.name, arguments), Holds::Any)
            }
            9 => {
                let (name, holds) = self.variable(scope, |holds| matches!(holds, Holds::Instance(_)), false)?;
                let Holds::Instance(at) = holds else { return None };
                return self.of_instance(scope, &name, at).map(|value| (value, Holds::Any));
            }
            10 => {
                let (name, _) = self.variable(scope, |holds| *holds == Holds::Closure, false)?;
                if !self.affords(scope, 3) {
                    return None;
                }
                (Expression::Call(name, Vec::new()), Holds::Any)
            }
            _ => (named(&self.variable(scope, any, false)?.0), Holds::Any),
        };
        Some(made)
    }

    /// An attribute, a property or a method's result.
    fn of_instance(&mut self, scope: &mut Scope, name: &str, at: usize) -> Option<Expression> {
        let kept = self.kept[at].clone();
        match self.chance.below(3) {
            0 if !kept.properties.is_empty() => {
                let (property, cost) = self.chance.one_of(&kept.properties).clone();
                self.affords(scope, cost).then(|| Expression::Attribute(name.to_owned(), property))
            }
            1 if !kept.methods.is_empty() => {
                let (method, takes, returns, cost) = self.chance.one_of(&kept.methods).clone();
                if !returns || !self.affords(scope, cost + takes) {
                    return None;
                }
                let arguments = self.arguments(scope, &vec![Holds::Any; takes]);
                Some(Expression::Method(name.to_owned(), method, arguments))
            }
            _ => {
                let attribute = *self.chance.one_of(&["a", "b"]);
                Some(Expression::Attribute(name.to_owned(), attribute.to_owned()))
            }
        }
    }

    /// A comprehension of any shape, and what a variable holds that is assigned it.
    pub fn comprehension(&mut self, scope: &mut Scope) -> (Expression, Holds) {
        let shape = *self.chance.one_of(&[Shape::List, Shape::Set, Shape::Dict, Shape::Sum, Shape::Listed]);
        let rounds = self.chance.between(2, 4);
        let variable = self.fresh("each");
        let name = match shape {
            Shape::List => "<listcomp>",
            Shape::Set => "<setcomp>",
            Shape::Dict => "<dictcomp>",
            Shape::Sum | Shape::Listed | Shape::Lazy => "<genexpr>",
        };
        let function = self.function(name, Flavour::Plain, Vec::new(), Vec::new());
        let mut inner = scope.inside(rounds, false);
        // Blocks that come from a list or a generator, or are made here.
        let over_blocks = matches!(shape, Shape::List | Shape::Listed | Shape::Sum) && self.chance.once_in(3);
        let generator =
            if over_blocks { self.callable(scope, |callable| callable.flavour == Flavour::Generator) } else { None };
        inner.cost = scope.cost;
        let (iterable, item) = match (over_blocks, generator) {
            (true, Some(callable)) => {
                let arguments = self.arguments(scope, &callable.parameters);
                (Expression::Call(callable.name, arguments), named(&variable))
            }
            (true, None) => {
                let items = (0..rounds).map(|_| self.new_block(scope)).collect();
                (Expression::List(items), named(&variable))
            }
            (false, _) => {
                inner.bind(&variable, Holds::Number);
                let kind = if shape == Shape::Set { Kind::Bytes } else { *self.chance.one_of(&KINDS) };
                let length = self.length(kind);
                inner.cost += inner.times;
                let item = Expression::New(kind, length, Some(variable.clone()));
                (Expression::Range(u64::try_from(rounds).unwrap()), item)
            }
        };
        if !over_blocks {
            scope.after(&inner);
        }
        // The sum of lengths needs what has one.
        let shape = if shape == Shape::Sum && over_blocks { Shape::Listed } else { shape };
        let counted = matches!(iterable, Expression::Range(_)) && shape != Shape::Dict;
        let condition = (counted && self.chance.once_in(3)).then(|| Condition::Rest(variable.clone(), 2, 0));
        let holds = match shape {
            Shape::List | Shape::Listed => Holds::List,
            _ => Holds::Any,
        };
        let function = Rc::new(function);
        (
            Expression::Comprehension(Rc::new(Comprehension { shape, item, variable, iterable, condition, function })),
            holds,
        )
    }

    /// Statements that use a callable of any kind.
    pub fn use_of(&mut self, scope: &mut Scope, callable: &Callable) -> Vec<Statement> {
        let arguments = self.arguments(scope, &callable.parameters);
        let call = Expression::Call(callable.name.clone(), arguments);
        scope.runs_loop |= callable.runs_loop;
        if let Some(class) = callable.raises {
            return vec![self.guarded(scope, class, vec![What::Evaluate(call).into()])];
        }
        match callable.flavour {
            Flavour::Generator => self.consume(scope, call, callable.yields),
            Flavour::Coroutine => {
                scope.runs_loop = true;
                vec![What::Evaluate(Expression::RunAsync(Box::new(call))).into()]
            }
            // Only a coroutine can.
            Flavour::AsyncGenerator => Vec::new(),
            Flavour::Plain
                if callable.parameters.iter().all(|holds| *holds == Holds::Any) && self.chance.once_in(3) =>
            {
                self.thread(scope, callable)
            }
            Flavour::Plain if callable.returns && self.chance.once_in(2) => {
                let name = self.fresh("kept");
                scope.bind(&name, Holds::Any);
                vec![assign(&name, call)]
            }
            Flavour::Plain => vec![What::Evaluate(call).into()],
        }
    }

    /// An instance of a class, used.
    pub fn instance(&mut self, scope: &mut Scope, at: usize) -> Vec<Statement> {
        let kept = self.kept[at].clone();
        let arguments = self.arguments(scope, &vec![Holds::Any; kept.parameters]);
        let construct = Expression::Call(kept.name, arguments);
        if let Some((waits, _)) = kept.manager {
            return if waits { Vec::new() } else { vec![self.with(scope, construct, false)] };
        }
        let name = self.fresh("object");
        scope.bind(&name, Holds::Instance(at));
        let mut made = vec![assign(&name, construct)];
        for _ in 0..self.chance.between(1, 3) {
            let attribute = self.chance.one_of(&["a", "b"]).to_string();
            match self.chance.below(4) {
                0 => {
                    let value = self.block(scope);
                    made.push(What::Assign(Target::Attribute(name.clone(), attribute), value).into());
                }
                1 => made.push(What::Assign(Target::Attribute(name.clone(), attribute), Expression::None).into()),
                2 => {
                    let value = self.new_block(scope);
                    let target = Target::Attribute(name.clone(), attribute);
                    made.push(What::Delete(vec![target.clone()]).into());
                    made.push(What::Assign(target, value).into());
                }
                _ => {
                    let methods = self.kept[at].methods.clone();
                    let Some((method, takes, _, cost)) = methods.first().cloned() else { continue };
                    if self.affords(scope, cost + takes) {
                        let arguments = self.arguments(scope, &vec![Holds::Any; takes]);
                        made.push(What::Evaluate(Expression::Method(name.clone(), method, arguments)).into());
                    }
                }
            }
        }
        made
    }
}

impl Scope {
    fn holds(&self, name: &str) -> Option<Holds> {
        self.variables.iter().find(|variable| variable.name == name).map(|variable| variable.holds.clone())
    }
}

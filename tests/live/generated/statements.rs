//! Statements by chance.

use std::rc::Rc;

use super::make::{Callable, Holds, Maker, Scope, Variable};
use super::program::{Condition, Expression, Flavour, Function, Handler, Kind, Statement, Target, Try, What, With};
use super::shapes::named;

/// Blocks of statements in each other.
const DEEPEST: usize = 3;

fn assign(name: &str, value: Expression) -> Statement {
    What::Assign(Target::Name(name.to_owned()), value).into()
}

fn simple(name: &str, method: &'static str) -> Statement {
    What::Simple(name.to_owned(), method).into()
}

fn number(number: usize) -> u64 {
    u64::try_from(number).unwrap()
}

impl Maker {
    /// So many statements or somewhat more; at least one.
    pub fn statements(&mut self, scope: &mut Scope, count: usize) -> Vec<Statement> {
        let mut made = Vec::new();
        for _ in 0..4 * count {
            if made.len() >= count {
                break;
            }
            made.extend(self.maybe_statement(scope));
        }
        if made.is_empty() {
            made.push(What::Pass.into());
        }
        made
    }

    /// A block of statements inside, after which the scope goes on.
    fn body(&mut self, scope: &mut Scope, times: usize, in_loop: bool, bound: Option<(&str, Holds)>) -> Vec<Statement> {
        let mut inner = scope.inside(times, in_loop);
        if let Some((name, holds)) = bound {
            inner.bind(name, holds);
        }
        let count = self.chance.between(1, 3);
        let made = self.statements(&mut inner, count);
        scope.after(&inner);
        made
    }

    /// That of a `finally`, which is not left early: an exception would be forgotten.
    fn finally(&mut self, scope: &mut Scope) -> Vec<Statement> {
        let may_return = std::mem::replace(&mut scope.may_return, false);
        let made = self.body(scope, 1, false, None);
        scope.may_return = may_return;
        made
    }

    fn maybe_statement(&mut self, scope: &mut Scope) -> Vec<Statement> {
        let nested = scope.depth < DEEPEST && scope.cost < 20;
        match self.chance.below(26) {
            0..=3 => self.assignment(scope),
            4 => vec![What::Evaluate(Expression::Length(Box::new(self.new_block(scope)))).into()],
            5 | 6 => self.deletion(scope),
            7 | 8 => self.lists(scope),
            9 => {
                let (value, holds) = self.comprehension(scope);
                let name = self.fresh("made");
                scope.bind(&name, holds);
                vec![assign(&name, value)]
            }
            10 | 11 if nested => self.loops(scope),
            12 if nested => self.condition(scope),
            13 | 14 if nested => self.attempt(scope),
            15 if nested => self.managed(scope, |_| true),
            16 | 17 if nested => self.closure(scope),
            18 => {
                let classes: Vec<usize> = (0..self.kept.len()).filter(|at| self.kept[*at].manager.is_none()).collect();
                if classes.is_empty() {
                    return Vec::new();
                }
                let at = *self.chance.one_of(&classes);
                let cost = self.kept[at].init_cost + self.kept[at].parameters;
                if self.affords(scope, cost) { self.instance(scope, at) } else { Vec::new() }
            }
            19 | 20 => self.waiting(scope),
            21 | 22 => {
                let waits = matches!(scope.flavour, Flavour::Coroutine | Flavour::AsyncGenerator);
                let callable = self.callable(scope, |callable| match callable.flavour {
                    Flavour::Coroutine => !waits,
                    Flavour::AsyncGenerator => false,
                    _ => true,
                });
                callable.map_or(Vec::new(), |callable| self.use_of(scope, &callable))
            }
            23 => self.growing(scope),
            24 if scope.in_loop || scope.may_return => self.leaving(scope),
            25 => self.dicts(scope),
            _ => Vec::new(),
        }
    }

    /// A `with` block of a manager that suits the scope.
    fn managed(&mut self, scope: &mut Scope, wanted: impl Fn(bool) -> bool) -> Vec<Statement> {
        let waits = matches!(scope.flavour, Flavour::Coroutine | Flavour::AsyncGenerator);
        let suits = |at: &usize| {
            let manager = self.kept[*at].manager;
            manager.is_some_and(|(manager_waits, _)| wanted(manager_waits) && (waits || !manager_waits))
        };
        let managers: Vec<usize> = (0..self.kept.len()).filter(suits).collect();
        if managers.is_empty() {
            return Vec::new();
        }
        let kept = self.kept[*self.chance.one_of(&managers)].clone();
        let Some((waits, cost)) = kept.manager else { return Vec::new() };
        if !self.affords(scope, cost + kept.init_cost + kept.parameters) {
            return Vec::new();
        }
        let arguments = self.arguments(scope, &vec![Holds::Any; kept.parameters]);
        vec![self.with(scope, Expression::Call(kept.name, arguments), waits)]
    }

    /// A new variable, or another value for one there is.
    fn assignment(&mut self, scope: &mut Scope) -> Vec<Statement> {
        let (value, holds) = self.block_of(scope);
        let again = self.variable(scope, |known| matches!(known, Holds::Any), false);
        let name = match again {
            Some((name, _)) if self.chance.once_in(3) => {
                scope.bind(&name, Holds::Any);
                name
            }
            _ => {
                let name = self.fresh("block");
                scope.bind(&name, holds);
                name
            }
        };
        vec![assign(&name, value)]
    }

    fn deletion(&mut self, scope: &mut Scope) -> Vec<Statement> {
        let gone = |holds: &Holds| !matches!(holds, Holds::Number);
        let Some((name, _)) = self.variable(scope, gone, true) else { return Vec::new() };
        scope.unbind(&name);
        if self.chance.once_in(3) {
            return vec![assign(&name, Expression::None)];
        }
        let mut targets = vec![Target::Name(name)];
        if self.chance.once_in(3)
            && let Some((other, _)) = self.variable(scope, gone, true)
        {
            scope.unbind(&other);
            targets.push(Target::Name(other));
        }
        vec![What::Delete(targets).into()]
    }

    fn lists(&mut self, scope: &mut Scope) -> Vec<Statement> {
        let list = self.variable(scope, |holds| *holds == Holds::List, false);
        match list {
            Some((name, _)) => match self.chance.below(5) {
                0 => vec![simple(&name, "clear")],
                1 => {
                    let than = number(self.chance.below(2));
                    vec![What::While(Condition::Longer(name.clone(), than), vec![simple(&name, "pop")]).into()]
                }
                _ => vec![What::Append(name, self.block(scope)).into()],
            },
            None => {
                let items = (0..self.chance.below(4)).map(|_| self.block(scope)).collect();
                let name = self.fresh("list");
                scope.bind(&name, Holds::List);
                vec![assign(&name, Expression::List(items))]
            }
        }
    }

    fn dicts(&mut self, scope: &mut Scope) -> Vec<Statement> {
        let count = self.chance.between(2, 3);
        let items = (0..count).map(|_| self.block(scope)).collect();
        let name = self.fresh("dict");
        let mut made = vec![assign(&name, Expression::Dict(items))];
        let item = Target::Item(name.clone(), number(self.chance.below(count)));
        match self.chance.below(4) {
            0 => made.push(What::Delete(vec![item]).into()),
            1 => made.push(What::Assign(item, self.block(scope)).into()),
            2 => made.push(simple(&name, "clear")),
            _ => {
                let item = Expression::Item(name.clone(), 0);
                let taken = self.fresh("taken");
                scope.bind(&taken, Holds::Any);
                made.push(assign(&taken, item));
            }
        }
        // Not before: a dict that is an item of its own is released when the collector comes.
        scope.bind(&name, Holds::Any);
        made
    }

    fn loops(&mut self, scope: &mut Scope) -> Vec<Statement> {
        let rounds = self.chance.between(2, 3);
        match self.chance.below(4) {
            0 => {
                let items = (0..rounds).map(|_| self.new_block(scope)).collect();
                let name = self.fresh("item");
                let body = self.body(scope, rounds, true, Some((&name, Holds::Any)));
                vec![What::For(name, Expression::List(items), body).into()]
            }
            1 => {
                let callable = self.callable(scope, |callable| callable.flavour == Flavour::Generator);
                let Some(callable) = callable else { return Vec::new() };
                let arguments = self.arguments(scope, &callable.parameters);
                self.consume(scope, Expression::Call(callable.name, arguments), callable.yields)
            }
            2 => {
                // A generator expression, whose blocks are made as the loop goes on.
                let (name, each) = (self.fresh("item"), self.fresh("each"));
                scope.cost += scope.times * rounds;
                let (kind, function) =
                    (Kind::Bytes, self.function("<genexpr>", Flavour::Plain, Vec::new(), Vec::new()));
                let item = Expression::New(kind, self.length(kind), Some(each.clone()));
                let parts = super::program::Comprehension {
                    shape: super::program::Shape::Lazy,
                    item,
                    variable: each,
                    iterable: Expression::Range(number(rounds)),
                    condition: None,
                    function: Rc::new(function),
                };
                let body = self.body(scope, rounds, true, Some((&name, Holds::Any)));
                vec![What::For(name, Expression::Comprehension(Rc::new(parts)), body).into()]
            }
            _ => {
                let name = self.fresh("count");
                let body = self.body(scope, rounds, true, Some((&name, Holds::Number)));
                vec![What::For(name, Expression::Range(number(rounds)), body).into()]
            }
        }
    }

    fn condition(&mut self, scope: &mut Scope) -> Vec<Statement> {
        let numbered = self.variable(scope, |holds| *holds == Holds::Number, false);
        let listed = self.variable(scope, |holds| *holds == Holds::List, false);
        let condition = match (numbered, listed) {
            (Some((name, _)), _) => Condition::Rest(name, 2, number(self.chance.below(2))),
            (None, Some((name, _))) => Condition::Longer(name, number(self.chance.below(3))),
            (None, None) => return Vec::new(),
        };
        let then = self.body(scope, 1, scope.in_loop, None);
        let otherwise = if self.chance.once_in(2) { self.body(scope, 1, scope.in_loop, None) } else { Vec::new() };
        vec![What::If(condition, then, otherwise).into()]
    }

    /// `break`, `continue` or `return`, sometimes.
    fn leaving(&mut self, scope: &mut Scope) -> Vec<Statement> {
        let numbered = self.variable(scope, |holds| *holds == Holds::Number, false);
        let listed = self.variable(scope, |holds| *holds == Holds::List, false);
        let condition = match (numbered, listed) {
            (Some((name, _)), _) => Condition::Rest(name, 2, 1),
            (None, Some((name, _))) => Condition::Longer(name, number(self.chance.below(3))),
            (None, None) => return Vec::new(),
        };
        let leave = if scope.may_return && (!scope.in_loop || self.chance.once_in(3)) {
            What::Return(self.block(scope))
        } else if self.chance.once_in(2) {
            What::Break
        } else {
            What::Continue
        };
        vec![What::If(condition, vec![leave.into()], Vec::new()).into()]
    }

    /// Raises, with a block among the arguments or not.
    pub fn raise(&mut self, scope: &mut Scope) -> (&'static str, Vec<Statement>) {
        if self.chance.once_in(3)
            && let Some(callable) = self.callable(scope, |callable| callable.raises.is_some())
        {
            let arguments = self.arguments(scope, &callable.parameters);
            let call = Expression::Call(callable.name, arguments);
            return (callable.raises.unwrap(), vec![What::Evaluate(call).into()]);
        }
        let class = *self.chance.one_of(&["ValueError", "KeyError", "RuntimeError"]);
        let arguments = if self.chance.once_in(2) { vec![self.new_block(scope)] } else { Vec::new() };
        let mut raise = vec![What::Raise(class, arguments).into()];
        if self.chance.once_in(4) {
            // It comes through a handler that raises it again.
            let mut body = self.finally(scope);
            body.push(What::Reraise.into());
            let handler = Some(Handler { class, name: self.chance.once_in(2).then(|| self.fresh("error")), body });
            raise = vec![
                What::Try(Box::new(Try { body: raise, handler, otherwise: Vec::new(), finally: Vec::new() })).into(),
            ];
        }
        (class, raise)
    }

    fn attempt(&mut self, scope: &mut Scope) -> Vec<Statement> {
        let mut body = self.body(scope, 1, scope.in_loop, None);
        if self.chance.once_in(4) {
            let finally = self.finally(scope);
            return vec![What::Try(Box::new(Try { body, handler: None, otherwise: Vec::new(), finally })).into()];
        }
        let (class, last) = self.raise(scope);
        body.extend(last);
        vec![self.guarded(scope, class, body)]
    }

    /// `try` with a handler, which ends with a statement of one line: where the exception is forgotten.
    pub fn guarded(&mut self, scope: &mut Scope, class: &'static str, body: Vec<Statement>) -> Statement {
        let caught = if self.chance.once_in(3) { "Exception" } else { class };
        let name = self.chance.once_in(2).then(|| self.fresh("error"));
        let mut handler = self.body(scope, 1, scope.in_loop, None);
        let last = self.fresh("block");
        let value = self.block(scope);
        handler.push(if self.chance.once_in(3) { What::Pass.into() } else { assign(&last, value) });
        let finally = if self.chance.once_in(3) { self.finally(scope) } else { Vec::new() };
        let otherwise = if self.chance.once_in(4) { self.body(scope, 1, scope.in_loop, None) } else { Vec::new() };
        let handler = Some(Handler { class: caught, name, body: handler });
        What::Try(Box::new(Try { body, handler, otherwise, finally })).into()
    }

    pub fn with(&mut self, scope: &mut Scope, manager: Expression, waits: bool) -> Statement {
        let name = (!waits && self.chance.once_in(2)).then(|| self.fresh("held"));
        let bound = name.as_deref().map(|name| (name, Holds::Any));
        let mut body = self.body(scope, 1, scope.in_loop, bound);
        if !waits && self.chance.once_in(3) {
            let (_, last) = self.raise(scope);
            body.extend(last);
        } else {
            // The line on which it is left up to 3.9.
            body.push(What::Evaluate(Expression::Length(Box::new(self.new_block(scope)))).into());
        }
        What::With(Box::new(With { manager, name, body, waits })).into()
    }

    /// A function inside, or a lambda, which has a block of the function around, or one as its default; called, or kept.
    fn closure(&mut self, scope: &mut Scope) -> Vec<Statement> {
        let mut made = Vec::new();
        let captured = self.fresh("captured");
        made.push(assign(&captured, self.new_block(scope)));
        // It stays bound: the function may be called later.
        scope.variables.push(Variable { name: captured.clone(), holds: Holds::Any, fixed: true });
        // What is the module's is not `nonlocal`.
        let kind = if scope.module { 2 } else { self.chance.below(3) };
        let name = self.fresh("inner");
        let defaults = if kind == 1 { vec![self.new_block(scope)] } else { Vec::new() };
        let may_return = true;
        let mut inner = Scope {
            variables: Vec::new(),
            flavour: Flavour::Plain,
            module: false,
            may_return,
            ..scope.inside(3, false)
        };
        let mut parameters = Vec::new();
        let mut body = Vec::new();
        match kind {
            0 => {
                body.push(What::Nonlocal(captured.clone()).into());
                body.push(assign(&captured, self.new_block(&mut inner)));
            }
            1 => {
                parameters.push(self.fresh("given"));
                inner.bind(&parameters[0], Holds::Any);
                body.push(assign(&self.fresh("same"), named(&captured)));
            }
            _ => {}
        }
        if kind == 2 {
            let other = Expression::List(vec![named(&captured), self.new_block(&mut inner)]);
            let lambda = self.function("<lambda>", Flavour::Plain, parameters, vec![What::Return(other).into()]);
            let lambda = Rc::new(Function { captures: vec![captured], ..lambda });
            made.push(assign(&name, Expression::Lambda(lambda)));
        } else {
            body.extend(self.statements(&mut inner, 2));
            body.push(What::Return(self.block(&mut inner)).into());
            let function = self.function(&name, Flavour::Plain, parameters, body);
            let function = Rc::new(Function { captures: vec![captured], ..function });
            made.push(What::Define(function, defaults).into());
        }
        scope.after(&inner);
        scope.bind(&name, Holds::Closure);
        for _ in 0..self.chance.below(3) {
            if self.affords(scope, 3) {
                let called = self.fresh("block");
                made.push(assign(&called, Expression::Call(name.clone(), Vec::new())));
                scope.bind(&called, Holds::Any);
            }
        }
        made
    }

    /// A bytearray that is moved as it grows: by more than an eighth each time, so that it asks for just what it needs.
    fn growing(&mut self, scope: &mut Scope) -> Vec<Statement> {
        let (name, count) = (self.fresh("growing"), self.fresh("count"));
        let (one, other) = (self.length(Kind::Bytearray), self.length(Kind::Bytes));
        let rounds = self.chance.between(1, 3);
        let first = Expression::New(Kind::Bytearray, one.min(other), None);
        let more = Expression::New(Kind::Bytes, one.max(other), None);
        scope.cost += scope.times * (1 + rounds);
        let grow: Statement = What::Extend(name.clone(), more).into();
        let mut made = vec![assign(&name, first)];
        made.push(What::For(count, Expression::Range(number(rounds)), vec![grow]).into());
        if self.chance.once_in(3) {
            made.push(simple(&name, "clear"));
        }
        scope.bind(&name, Holds::Any);
        made
    }

    /// A generator gone through, left early, closed, or dropped.
    pub fn consume(&mut self, scope: &mut Scope, call: Expression, yields: usize) -> Vec<Statement> {
        let item = self.fresh("item");
        match self.chance.below(5) {
            0 | 1 => {
                let body = self.body(scope, yields, true, Some((&item, Holds::Any)));
                vec![What::For(item, call, body).into()]
            }
            2 => {
                let mut body = self.body(scope, 1, false, Some((&item, Holds::Any)));
                body.push(What::Break.into());
                vec![What::For(item, call, body).into()]
            }
            _ => {
                let name = self.fresh("values");
                let mut made = vec![assign(&name, call)];
                let taken = self.chance.between(0, yields);
                for _ in 0..taken {
                    let next = Expression::Next(name.clone());
                    made.push(if self.chance.once_in(2) { assign(&item, next) } else { What::Evaluate(next).into() });
                }
                match self.chance.below(3) {
                    // One that never began keeps its arguments from 3.12 on until it is gone: left out.
                    0 if taken > 0 => made.push(simple(&name, "close")),
                    1 => made.push(What::Delete(vec![Target::Name(name)]).into()),
                    // In the module it would be closed by the end of the interpreter.
                    _ if scope.module => made.push(assign(&name, Expression::None)),
                    // It is left to the end of the function.
                    _ => scope.bind(&name, Holds::Generator(0)),
                }
                made
            }
        }
    }

    /// Threads that call it, and what is done meanwhile.
    pub fn thread(&mut self, scope: &mut Scope, callable: &Callable) -> Vec<Statement> {
        let names: Vec<String> = (0..self.chance.between(1, 2)).map(|_| self.fresh("thread")).collect();
        let mut made = Vec::new();
        for name in &names {
            // New blocks: what two threads have is released by the later of them.
            let arguments = callable.parameters.iter().map(|_| self.new_block(scope)).collect();
            made.push(assign(name, Expression::Thread(callable.name.clone(), arguments)));
        }
        scope.cost += scope.times * callable.cost;
        made.extend(names.iter().map(|name| simple(name, "start")));
        let meanwhile = self.fresh("block");
        made.push(assign(&meanwhile, self.new_block(scope)));
        made.extend(names.iter().map(|name| simple(name, "join")));
        made
    }

    /// What only a coroutine can do; elsewhere, a loop for one.
    fn waiting(&mut self, scope: &mut Scope) -> Vec<Statement> {
        let coroutine = |callable: &Callable| callable.flavour == Flavour::Coroutine;
        if !matches!(scope.flavour, Flavour::Coroutine | Flavour::AsyncGenerator) {
            return Vec::new();
        }
        let chosen = match self.chance.below(5) {
            4 if scope.depth < DEEPEST => return self.managed(scope, |waits| waits),
            0 => return vec![What::Evaluate(Expression::Await(Box::new(Expression::Sleep))).into()],
            1 => self.callable(scope, |callable| callable.flavour == Flavour::AsyncGenerator),
            _ => self.callable(scope, coroutine),
        };
        let Some(chosen) = chosen else { return Vec::new() };
        let arguments = self.arguments(scope, &chosen.parameters);
        let call = Expression::Call(chosen.name.clone(), arguments);
        if chosen.flavour == Flavour::AsyncGenerator {
            let item = self.fresh("item");
            let body = self.body(scope, chosen.yields, false, Some((&item, Holds::Any)));
            return vec![What::AsyncFor(item, call, body).into()];
        }
        if scope.flavour == Flavour::Coroutine
            && self.chance.once_in(2)
            && let Some(other) = self.callable(scope, coroutine)
        {
            let arguments = self.arguments(scope, &other.parameters);
            let both = vec![call, Expression::Call(other.name, arguments)];
            return vec![What::Evaluate(Expression::Gather(both)).into()];
        }
        vec![What::Evaluate(Expression::Await(Box::new(call))).into()]
    }
}

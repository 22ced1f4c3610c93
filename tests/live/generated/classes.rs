//! Classes and context managers by chance.

use std::rc::Rc;

use super::make::{Holds, Kept, Maker, Scope, Variable};
use super::program::{Class, Expression, Flavour, Function, Statement, Target, What};

impl Maker {
    fn method(&mut self, name: &str, flavour: Flavour, scope: Scope, body: Vec<Statement>) -> (Rc<Function>, usize) {
        let own = std::iter::once("self".to_owned());
        let given = scope.variables.iter().map(|variable| variable.name.clone());
        let parameters = own.chain(given.filter(|name| name.starts_with("given"))).collect();
        let mut method = self.function(name, flavour, parameters, body);
        method.decorators = self.marks();
        (Rc::new(method), scope.cost)
    }

    /// `__init__` sets both attributes, and keeps its parameters until it returns: who else has them then depends on more than
    /// the version (3.13 calls it without C code when it has been called often).
    fn init(&mut self, parameters: usize) -> (Rc<Function>, usize) {
        let mut scope = Scope::new(Flavour::Plain);
        let mut body = Vec::new();
        let given: Vec<String> = (0..parameters).map(|_| self.fresh("given")).collect();
        for (at, attribute) in ["a", "b"].into_iter().enumerate() {
            let value = match given.get(at) {
                Some(name) => Expression::Name(name.clone()),
                None if self.chance.once_in(3) => Expression::None,
                None => self.new_block(&mut scope),
            };
            body.push(What::Assign(Target::Attribute("self".into(), attribute.into()), value).into());
        }
        scope.variables = given.into_iter().map(|name| Variable { name, holds: Holds::Any, fixed: true }).collect();
        self.method("__init__", Flavour::Plain, scope, body)
    }

    pub fn class(&mut self) {
        let mut kept = Kept { name: self.fresh("Class"), parameters: self.chance.below(3), ..Kept::default() };
        let (init, init_cost) = self.init(kept.parameters);
        kept.init_cost = init_cost;
        let mut methods = vec![init];
        let at = self.kept.len();
        // The methods know themselves what `self` is, but it has no methods yet.
        self.kept.push(kept.clone());
        for _ in 0..self.chance.between(1, 3) {
            let mut scope = Scope { may_return: true, ..Scope::new(Flavour::Plain) };
            let takes = self.chance.below(3);
            (0..takes).for_each(|_| scope.bind(&self.fresh("given"), Holds::Any));
            let given = scope.variables.clone();
            scope.variables.push(Variable { name: "self".into(), holds: Holds::Instance(at), fixed: true });
            let mut body = self.statements(&mut scope, 3);
            let returns = self.chance.once_in(2);
            if returns {
                body.push(What::Return(self.block(&mut scope)).into());
            }
            scope.variables = given;
            let name = self.fresh("method");
            let (method, cost) = self.method(&name, Flavour::Plain, scope, body);
            methods.push(method);
            kept.methods.push((name, takes, returns, cost));
        }
        if self.chance.once_in(2) {
            let mut scope = Scope::new(Flavour::Plain);
            let mut body = self.statements(&mut scope, 1);
            body.push(What::Return(self.block(&mut scope)).into());
            scope.variables.clear();
            let name = self.fresh("property");
            let (method, cost) = self.method(&name, Flavour::Plain, scope, body);
            let mut method = Rc::into_inner(method).unwrap();
            method.decorators.insert(0, "property".into());
            methods.push(Rc::new(method));
            kept.properties.push((name, cost));
        }
        self.program.classes.push(Rc::new(Class { name: kept.name.clone(), methods }));
        self.kept[at] = kept;
    }

    /// A class of context managers, with `a` and `b` like all.
    pub fn manager(&mut self, waits: bool) {
        let mut kept = Kept { name: self.fresh("Manager"), parameters: self.chance.below(3), ..Kept::default() };
        let (init, init_cost) = self.init(kept.parameters);
        let at = self.kept.len();
        self.kept.push(kept.clone());
        let flavour = if waits { Flavour::Coroutine } else { Flavour::Plain };
        let own = |scope: &mut Scope| {
            scope.variables.push(Variable { name: "self".into(), holds: Holds::Instance(at), fixed: true });
        };
        let mut scope = Scope::new(flavour);
        own(&mut scope);
        let mut body = self.statements(&mut scope, 2);
        if !waits {
            body.push(What::Return(self.block(&mut scope)).into());
        }
        scope.variables.clear();
        let (enter, enter_cost) = self.method(if waits { "__aenter__" } else { "__enter__" }, flavour, scope, body);
        let mut scope = Scope::new(flavour);
        own(&mut scope);
        let mut body = self.statements(&mut scope, 2);
        if !waits {
            // It swallows exceptions.
            body.push(What::Return(Expression::Number(1)).into());
        }
        scope.variables = ["given_type", "given_error", "given_trace"]
            .map(|name| Variable { name: name.into(), holds: Holds::Any, fixed: true })
            .into();
        let (exit, exit_cost) = self.method(if waits { "__aexit__" } else { "__exit__" }, flavour, scope, body);
        kept.init_cost = init_cost;
        kept.manager = Some((waits, enter_cost + exit_cost));
        self.program.classes.push(Rc::new(Class { name: kept.name.clone(), methods: vec![init, enter, exit] }));
        self.kept[at] = kept;
    }
}

//! Makes programs by chance: functions, generators, coroutines, classes, context managers, decorators, and a module that calls them.
//!
//! A function calls those that were made before it. What each scope's variables hold is known while it is made, so that every
//! program runs to its end.

use std::rc::Rc;

use super::chance::Chance;
use super::program::{Condition, Expression, Flavour, Function, Kind, Program, Statement, Target, Try, What};

/// Sizes differ by this at least, and more than all small objects of a line take: see `check.rs`.
pub const STEP: u64 = 40 * 1024;
/// The smallest size in steps.
const SMALLEST: u64 = 5;
/// How many blocks one call of a function may take, its callees included.
pub const DEAREST: usize = 30;
/// How many functions of all kinds a program has.
const FUNCTIONS: usize = 14;

/// What a variable holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holds {
    /// A block that can be joined, copied and cut.
    Bytes(Kind),
    /// Any block, or None.
    Any,
    List,
    Number,
    /// A generator with so many values left.
    Generator(usize),
    /// Returns a block; takes nothing.
    Closure,
    Instance(usize),
}

#[derive(Clone, Debug)]
pub struct Variable {
    pub name: String,
    pub holds: Holds,
    /// Belongs to a block around or is captured: it stays bound, to something of the same sort.
    pub fixed: bool,
}

/// A function that can be called.
#[derive(Clone, Debug)]
pub struct Callable {
    pub name: String,
    pub parameters: Vec<Holds>,
    pub flavour: Flavour,
    pub returns: bool,
    pub raises: Option<&'static str>,
    pub yields: usize,
    pub cost: usize,
    pub runs_loop: bool,
}

/// A class that can be used. Its instances have the attributes `a` and `b`, which hold blocks or None.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    pub name: String,
    pub parameters: usize,
    pub init_cost: usize,
    /// Name, how many blocks it takes, whether it returns one, its cost.
    pub methods: Vec<(String, usize, bool, usize)>,
    pub properties: Vec<(String, usize)>,
    /// A context manager, perhaps of `async with`: its cost.
    pub manager: Option<(bool, usize)>,
}

/// Where statements are made.
#[derive(Clone, Debug)]
pub struct Scope {
    pub variables: Vec<Variable>,
    /// How often a statement here is executed in one call.
    pub times: usize,
    pub depth: usize,
    pub flavour: Flavour,
    pub in_loop: bool,
    pub cost: usize,
    pub runs_loop: bool,
    /// Its variables are the module's.
    pub module: bool,
    /// It may return a block early.
    pub may_return: bool,
}

/// A program, the function that its module is, and every function's name by its id.
pub struct Made {
    pub program: Program,
    pub module: Rc<Function>,
    pub names: Vec<String>,
}

pub struct Maker {
    pub chance: Chance,
    sizes: Vec<u64>,
    pub names: Vec<String>,
    variables: usize,
    pub callables: Vec<Callable>,
    pub kept: Vec<Kept>,
    pub program: Program,
}

/// The program of a seed.
pub fn program(seed: u64) -> Made {
    let mut chance = Chance::new(seed);
    let mut sizes: Vec<u64> = (SMALLEST..SMALLEST + 120).collect();
    chance.shuffle(&mut sizes);
    let mut maker = Maker {
        chance,
        sizes,
        names: Vec::new(),
        variables: 0,
        callables: Vec::new(),
        kept: Vec::new(),
        program: Program::default(),
    };
    let module = maker.function("<module>", Flavour::Plain, Vec::new(), vec![What::Pass.into()]);
    maker.decorator();
    for _ in 0..FUNCTIONS {
        match maker.chance.below(11) {
            0 | 1 => maker.class(),
            2 => {
                let waits = maker.chance.once_in(3);
                maker.manager(waits);
            }
            3 | 4 => maker.generator(Flavour::Generator),
            5 => maker.coroutine(),
            6 => maker.raising(),
            7 => maker.recursive(),
            _ => maker.plain(),
        }
    }
    // Whatever chance has chosen, there is one of each of these, and a function that can use them.
    maker.manager(true);
    maker.generator(Flavour::AsyncGenerator);
    maker.coroutine();
    maker.plain();
    maker.main();
    Made { program: maker.program, module: Rc::new(module), names: maker.names }
}

impl Scope {
    pub fn new(flavour: Flavour) -> Self {
        Self {
            variables: Vec::new(),
            times: 1,
            depth: 0,
            flavour,
            in_loop: false,
            cost: 0,
            runs_loop: false,
            module: false,
            may_return: false,
        }
    }

    /// A block of statements inside, executed so many times each time. What it binds is not counted on after it.
    pub fn inside(&self, times: usize, in_loop: bool) -> Self {
        let variables = self.variables.iter().cloned().map(|variable| Variable { fixed: true, ..variable });
        Self {
            variables: variables.filter(|variable| !matches!(variable.holds, Holds::Generator(_))).collect(),
            times: self.times * times,
            depth: self.depth + 1,
            in_loop,
            ..self.clone()
        }
    }

    /// What a block inside has cost.
    pub fn after(&mut self, inner: &Scope) {
        self.cost = inner.cost;
        self.runs_loop |= inner.runs_loop;
    }

    pub fn bind(&mut self, name: &str, holds: Holds) {
        let fixed = self.variables.iter().any(|variable| variable.name == name && variable.fixed);
        self.variables.retain(|variable| variable.name != name);
        self.variables.push(Variable { name: name.to_owned(), holds, fixed });
    }

    pub fn unbind(&mut self, name: &str) {
        self.variables.retain(|variable| variable.name != name);
    }
}

impl Maker {
    /// A length that no other place of the program has, of a kind.
    pub fn length(&mut self, kind: Kind) -> u64 {
        // Programs that have more places than sizes go through them again.
        let size = self.sizes.remove(0);
        self.sizes.push(size);
        match kind {
            Kind::Nones | Kind::Tuple => size * STEP / 8,
            _ => size * STEP,
        }
    }

    pub fn fresh(&mut self, word: &str) -> String {
        self.variables += 1;
        format!("{word}_{}", self.variables)
    }

    pub fn function(
        &mut self,
        name: &str,
        flavour: Flavour,
        parameters: Vec<String>,
        body: Vec<Statement>,
    ) -> Function {
        let id = u32::try_from(self.names.len()).unwrap();
        self.names.push(name.to_owned());
        let (captures, decorators) = (Vec::new(), Vec::new());
        Function { id, name: name.to_owned(), flavour, parameters, star: false, captures, decorators, body }
    }

    pub fn marks(&mut self) -> Vec<String> {
        if self.chance.once_in(4) { Vec::new() } else { vec!["profile".to_owned()] }
    }

    fn add(&mut self, function: Function, callable: Callable) {
        self.program.functions.push(Rc::new(function));
        self.callables.push(callable);
    }

    /// Parameters of a new function: blocks, perhaps a list.
    fn parameters(&mut self, scope: &mut Scope) -> Vec<Holds> {
        let mut parameters = Vec::new();
        if self.chance.once_in(3) {
            parameters.push(Holds::List);
        }
        for _ in 0..self.chance.below(3) {
            parameters.push(Holds::Any);
        }
        for holds in &parameters {
            let name = self.fresh(if *holds == Holds::List { "shared" } else { "given" });
            scope.bind(&name, holds.clone());
        }
        parameters
    }

    fn plain(&mut self) {
        let mut scope = Scope { may_return: true, ..Scope::new(Flavour::Plain) };
        let parameters = self.parameters(&mut scope);
        let names = scope.variables.iter().map(|variable| variable.name.clone()).collect();
        let count = self.chance.between(4, 8);
        let mut body = self.statements(&mut scope, count);
        let returns = self.chance.once_in(2);
        if returns {
            let value = self.block(&mut scope);
            body.push(What::Return(value).into());
        }
        let name = self.fresh("function");
        let mut function = self.function(&name, Flavour::Plain, names, body);
        function.decorators = self.marks();
        if self.chance.once_in(4) {
            function.decorators.insert(0, "passing".to_owned());
        }
        let Scope { cost, runs_loop, .. } = scope;
        let callable =
            Callable { name, parameters, flavour: Flavour::Plain, returns, raises: None, yields: 0, cost, runs_loop };
        self.add(function, callable);
    }

    /// `def passing(function)` with a wrapper that hands all on.
    fn decorator(&mut self) {
        let call = Expression::CallStar("function".into(), "arguments".into());
        let body = if self.chance.once_in(2) {
            vec![What::Return(call).into()]
        } else {
            let kept = What::Assign(Target::Name("result".into()), call);
            vec![kept.into(), What::Return(Expression::Name("result".into())).into()]
        };
        let mut wrapper = self.function("wrapper", Flavour::Plain, vec!["arguments".into()], body);
        wrapper.star = true;
        wrapper.captures = vec!["function".into()];
        let body = vec![
            What::Define(Rc::new(wrapper), Vec::new()).into(),
            What::Return(Expression::Name("wrapper".into())).into(),
        ];
        let passing = self.function("passing", Flavour::Plain, vec!["function".into()], body);
        self.program.functions.push(Rc::new(passing));
    }

    /// Ends with an exception, which may come through frames, a `finally` and other handlers.
    fn raising(&mut self) {
        let mut scope = Scope::new(Flavour::Plain);
        let parameters = self.parameters(&mut scope);
        let names = scope.variables.iter().map(|variable| variable.name.clone()).collect();
        let count = self.chance.between(1, 4);
        let mut body = self.statements(&mut scope, count);
        let (class, mut last) = self.raise(&mut scope);
        if self.chance.once_in(3) {
            let mut inner = scope.inside(1, false);
            let finally = self.statements(&mut inner, 2);
            scope.after(&inner);
            let parts = Try { body: last, handler: None, otherwise: Vec::new(), finally };
            last = vec![What::Try(Box::new(parts)).into()];
        }
        body.extend(last);
        let name = self.fresh("raising");
        let mut function = self.function(&name, Flavour::Plain, names, body);
        function.decorators = self.marks();
        let Scope { cost, runs_loop, .. } = scope;
        let (returns, raises) = (false, Some(class));
        let callable =
            Callable { name, parameters, flavour: Flavour::Plain, returns, raises, yields: 0, cost, runs_loop };
        self.add(function, callable);
    }

    fn recursive(&mut self) {
        let mut scope = Scope::new(Flavour::Plain);
        scope.times = 4;
        let name = self.fresh("recursive");
        let mut body = self.statements(&mut scope, 2);
        let below = self.fresh("below");
        let again = Expression::Call(name.clone(), vec![Expression::Minus("depth".into(), 1)]);
        let mut deeper = vec![What::Assign(Target::Name(below.clone()), again).into()];
        let mut inner = scope.inside(1, false);
        inner.bind(&below, Holds::Any);
        deeper.extend(self.statements(&mut inner, 2));
        scope.after(&inner);
        body.push(What::If(Condition::Greater("depth".into(), 0), deeper, Vec::new()).into());
        let value = self.block(&mut scope);
        body.push(What::Return(value).into());
        let mut function = self.function(&name, Flavour::Plain, vec!["depth".into()], body);
        function.decorators = self.marks();
        let Scope { cost, runs_loop, .. } = scope;
        let (parameters, raises) = (vec![Holds::Number], None);
        let callable =
            Callable { name, parameters, flavour: Flavour::Plain, returns: true, raises, yields: 0, cost, runs_loop };
        self.add(function, callable);
    }

    fn generator(&mut self, flavour: Flavour) {
        let mut scope = Scope::new(flavour);
        let parameters = self.parameters(&mut scope);
        let names = scope.variables.iter().map(|variable| variable.name.clone()).collect();
        // Closed early, the `finally` runs with what was bound before.
        let finally = flavour == Flavour::Generator && self.chance.once_in(2);
        let mut inner = if finally { scope.inside(1, false) } else { scope.clone() };
        let mut body = self.statements(&mut inner, 1);
        let mut yields = 0;
        for _ in 0..self.chance.between(1, 3) {
            let (more, count) = self.yielding(&mut inner);
            body.extend(more);
            yields += count;
        }
        scope.after(&inner);
        if finally {
            let mut inner = scope.inside(1, false);
            let finally = self.statements(&mut inner, 2);
            scope.after(&inner);
            let parts = Try { body, handler: None, otherwise: Vec::new(), finally };
            body = vec![What::Try(Box::new(parts)).into()];
        }
        let name = self.fresh(if flavour == Flavour::Generator { "generator" } else { "waiting" });
        let mut function = self.function(&name, flavour, names, body);
        function.decorators = self.marks();
        let Scope { cost, runs_loop, .. } = scope;
        let callable = Callable { name, parameters, flavour, returns: false, raises: None, yields, cost, runs_loop };
        self.add(function, callable);
    }

    /// Statements with `yield` among them, and how many values they yield.
    fn yielding(&mut self, scope: &mut Scope) -> (Vec<Statement>, usize) {
        let rounds = self.chance.between(1, 3);
        if rounds == 1 {
            let mut made = vec![What::Yield(self.block(scope)).into()];
            made.extend(self.statements(scope, 1));
            return (made, 1);
        }
        let name = self.fresh("round");
        // Not left early: how many values there are is known.
        let mut inner = scope.inside(rounds, false);
        inner.bind(&name, Holds::Number);
        let mut body = self.statements(&mut inner, 1);
        body.push(What::Yield(self.block(&mut inner)).into());
        scope.after(&inner);
        (vec![What::For(name, Expression::Range(u64::try_from(rounds).unwrap()), body).into()], rounds)
    }

    fn coroutine(&mut self) {
        let mut scope = Scope::new(Flavour::Coroutine);
        let parameters = self.parameters(&mut scope);
        let names = scope.variables.iter().map(|variable| variable.name.clone()).collect();
        let count = self.chance.between(3, 6);
        let body = self.statements(&mut scope, count);
        let name = self.fresh("coroutine");
        let mut function = self.function(&name, Flavour::Coroutine, names, body);
        function.decorators = self.marks();
        let Scope { cost, runs_loop, .. } = scope;
        let flavour = Flavour::Coroutine;
        let callable = Callable { name, parameters, flavour, returns: false, raises: None, yields: 0, cost, runs_loop };
        self.add(function, callable);
    }

    /// The module calls every function, generator and coroutine, and uses every class.
    fn main(&mut self) {
        let mut scope = Scope { module: true, ..Scope::new(Flavour::Plain) };
        let mut body = Vec::new();
        for callable in self.callables.clone() {
            body.extend(self.use_of(&mut scope, &callable));
        }
        for at in 0..self.kept.len() {
            body.extend(self.instance(&mut scope, at));
        }
        body.extend(self.statements(&mut scope, 4));
        self.program.main = body;
    }
}

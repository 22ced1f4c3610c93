//! The abstract program: what is written as Python (`write.rs`) and executed by the model (`run.rs`).

use std::cell::Cell;
use std::rc::Rc;

/// What a block is. Each is one call of the C allocator of a size that its length tells exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `bytearray(n)`
    Bytearray,
    /// `bytes(n)`
    Bytes,
    /// `'x' * n`
    Text,
    /// `[None] * n`
    Nones,
    /// `(None,) * n`
    Tuple,
}

/// An expression. All of it stands on one line.
#[derive(Clone, Debug)]
pub enum Expression {
    None,
    Name(String),
    /// A new block: kind, length, and a variable that is added to the length.
    New(Kind, u64, Option<String>),
    /// `left + right`, blocks of one kind.
    Join(Box<Expression>, Box<Expression>),
    /// `bytes(block)`, `bytearray(block)`
    Copy(Kind, Box<Expression>),
    /// `block[n:]`
    Rest(Box<Expression>, u64),
    Length(Box<Expression>),
    Attribute(String, String),
    /// `name[key]` of a dict or list.
    Item(String, u64),
    List(Vec<Expression>),
    /// `{0: …, 1: …}`
    Dict(Vec<Expression>),
    Range(u64),
    Number(u64),
    /// `name - n`
    Minus(String, u64),
    Either(Box<Expression>, Condition, Box<Expression>),
    /// A function of the module, a class or a callable variable, by name.
    Call(String, Vec<Expression>),
    /// `function(*arguments)`
    CallStar(String, String),
    Method(String, String, Vec<Expression>),
    Lambda(Rc<Function>),
    Comprehension(Rc<Comprehension>),
    /// `next(generator)`, which has one.
    Next(String),
    Await(Box<Expression>),
    /// `asyncio.sleep(0)`
    Sleep,
    /// `await asyncio.gather(…)`
    Gather(Vec<Expression>),
    /// `asyncio.run(…)`
    RunAsync(Box<Expression>),
    /// `threading.Thread(target=…, args=(…,))`
    Thread(String, Vec<Expression>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    List,
    Set,
    Dict,
    /// `sum(len(item) for …)`
    Sum,
    /// `list(item for …)`
    Listed,
    /// `(item for …)`
    Lazy,
}

/// `[item for variable in iterable if condition]` and its like.
#[derive(Clone, Debug)]
pub struct Comprehension {
    pub shape: Shape,
    pub item: Expression,
    pub variable: String,
    pub iterable: Expression,
    pub condition: Option<Condition>,
    /// The function that it is where it is not inlined, and which a generator expression always is.
    pub function: Rc<Function>,
}

#[derive(Clone, Debug)]
pub enum Condition {
    /// `len(name) > n`
    Longer(String, u64),
    /// `name % n == rest`
    Rest(String, u64, u64),
    /// `name > n`
    Greater(String, u64),
}

#[derive(Clone, Debug)]
pub enum Target {
    Name(String),
    Attribute(String, String),
    Item(String, u64),
}

/// A statement and the line it begins on, which is known when it has been written.
#[derive(Clone, Debug)]
pub struct Statement {
    pub line: Cell<u32>,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    Assign(Target, Expression),
    /// `name += block`, by so much that the array must be moved.
    Extend(String, Expression),
    Delete(Vec<Target>),
    Evaluate(Expression),
    Append(String, Expression),
    /// `name.method()` of a list, a bytearray, a generator or a thread.
    Simple(String, &'static str),
    Pass,
    If(Condition, Vec<Statement>, Vec<Statement>),
    For(String, Expression, Vec<Statement>),
    AsyncFor(String, Expression, Vec<Statement>),
    While(Condition, Vec<Statement>),
    Try(Box<Try>),
    With(Box<With>),
    Define(Rc<Function>, Vec<Expression>),
    Nonlocal(String),
    Return(Expression),
    Raise(&'static str, Vec<Expression>),
    Reraise,
    Break,
    Continue,
    Yield(Expression),
}

#[derive(Clone, Debug)]
pub struct Try {
    pub body: Vec<Statement>,
    pub handler: Option<Handler>,
    pub otherwise: Vec<Statement>,
    pub finally: Vec<Statement>,
}

#[derive(Clone, Debug)]
pub struct Handler {
    pub class: &'static str,
    pub name: Option<String>,
    pub body: Vec<Statement>,
}

#[derive(Clone, Debug)]
pub struct With {
    pub manager: Expression,
    pub name: Option<String>,
    pub body: Vec<Statement>,
    /// `async with`
    pub waits: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    Plain,
    Generator,
    Coroutine,
    /// `async def` with `yield`
    AsyncGenerator,
}

/// A function, a method, a lambda, or what a comprehension is.
#[derive(Debug)]
pub struct Function {
    /// Distinct in the program: two functions may have one name.
    pub id: u32,
    pub name: String,
    pub flavour: Flavour,
    pub parameters: Vec<String>,
    /// `*arguments` is its only parameter.
    pub star: bool,
    /// Variables of the function around it.
    pub captures: Vec<String>,
    pub decorators: Vec<String>,
    pub body: Vec<Statement>,
}

#[derive(Debug)]
pub struct Class {
    pub name: String,
    pub methods: Vec<Rc<Function>>,
}

/// Everything of a program, in the order in which it is written.
#[derive(Debug, Default)]
pub struct Program {
    pub functions: Vec<Rc<Function>>,
    pub classes: Vec<Rc<Class>>,
    /// What the module does when all is defined.
    pub main: Vec<Statement>,
}

impl From<What> for Statement {
    fn from(what: What) -> Self {
        Self { line: Cell::new(0), what }
    }
}

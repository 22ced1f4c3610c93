//! What exists while the model runs: frames, blocks with references, and what was charged to which line.
//!
//! References are Rust's own `Rc`s: a block is released where its last one is dropped, as in CPython, and charged to the lines
//! that run at that instant.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::program::{Class, Function, Kind};

/// What is expected of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub allocated: i64,
    pub freed: i64,
    pub own: i64,
    /// Event loops that were run on the line, whose own objects are nothing that the model knows.
    pub loops: i64,
    /// Statements that were executed on the line, those of callees too, whose small objects are no blocks of the model.
    pub steps: i64,
}

/// Of every line of every function: (id of the function, line).
pub type Lines = BTreeMap<(u32, u32), Totals>;

/// The stack and the sums.
#[derive(Default)]
pub struct World {
    /// Outermost first; `None` is library code.
    pub stack: RefCell<Vec<Option<Rc<Frame>>>>,
    pub lines: RefCell<Lines>,
    /// Exceptions being handled, the outermost first.
    pub handled: RefCell<Vec<Exception>>,
}

impl World {
    fn charge(&self, allocated: u64, freed: u64) {
        let (allocated, freed) = (i64::try_from(allocated).unwrap(), i64::try_from(freed).unwrap());
        self.add(|totals| {
            totals.allocated += allocated;
            totals.freed += freed;
        });
        if let Some(Some(frame)) = self.stack.borrow().last() {
            let mut lines = self.lines.borrow_mut();
            lines.entry((frame.function.id, frame.line.get())).or_default().own += allocated - freed;
        }
    }

    /// An event loop runs.
    pub fn note_loop(&self) {
        self.add(|totals| totals.loops += 1);
    }

    /// A statement is executed.
    pub fn note_step(&self) {
        self.add(|totals| totals.steps += 1);
    }

    /// Adds to the lines on the stack, of each function once.
    fn add(&self, mut more: impl FnMut(&mut Totals)) {
        let mut lines = self.lines.borrow_mut();
        let mut seen = HashSet::new();
        for frame in self.stack.borrow().iter().rev().flatten() {
            if seen.insert(frame.function.id) {
                more(lines.entry((frame.function.id, frame.line.get())).or_default());
            }
        }
    }
}

/// Memory of a known size.
pub struct Block {
    world: Rc<World>,
    pub kind: Kind,
    pub length: Cell<u64>,
    asked: Cell<u64>,
}

impl Block {
    pub fn value(world: &Rc<World>, kind: Kind, length: u64, asked: u64) -> Value {
        world.charge(asked, 0);
        let (length, asked) = (Cell::new(length), Cell::new(asked));
        Value::Block(Rc::new(Self { world: world.clone(), kind, length, asked }))
    }

    /// A reallocation.
    pub fn resize(&self, length: u64, asked: u64) {
        self.world.charge(asked, self.asked.get());
        self.length.set(length);
        self.asked.set(asked);
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.world.charge(0, self.asked.get());
    }
}

/// A variable, shared with the functions that capture it.
pub type Variable = Rc<RefCell<Option<Value>>>;

/// An executing function.
pub struct Frame {
    pub function: Rc<Function>,
    pub line: Cell<u32>,
    pub locals: RefCell<HashMap<String, Variable>>,
    /// Of a generator: what it yields, and whether it is being closed.
    pub yielded: RefCell<Option<Value>>,
    pub closing: Cell<bool>,
}

impl Frame {
    pub fn new(function: &Rc<Function>, locals: HashMap<String, Variable>) -> Rc<Self> {
        Rc::new(Self {
            function: function.clone(),
            line: Cell::new(0),
            locals: RefCell::new(locals),
            yielded: RefCell::default(),
            closing: Cell::new(false),
        })
    }

    pub fn variable(&self, name: &str) -> Variable {
        self.locals.borrow_mut().entry(name.to_owned()).or_default().clone()
    }

    /// What the variable held is released when the new value is there.
    pub fn set(&self, name: &str, value: Option<Value>) {
        let variable = self.variable(name);
        let before = variable.replace(value);
        drop(before);
    }
}

pub struct Closure {
    pub function: Rc<Function>,
    pub captured: HashMap<String, Variable>,
    pub defaults: Vec<Value>,
}

pub struct Instance {
    pub class: Rc<Class>,
    pub attributes: RefCell<HashMap<String, Value>>,
}

pub struct Thread {
    pub target: RefCell<Option<Rc<Closure>>>,
    pub arguments: RefCell<Vec<Value>>,
}

/// Anything a variable holds.
#[derive(Clone)]
pub enum Value {
    None,
    Number(u64),
    Block(Rc<Block>),
    /// A list, a set, a tuple.
    List(Rc<RefCell<Vec<Value>>>),
    Dict(Rc<RefCell<BTreeMap<u64, Value>>>),
    Closure(Rc<Closure>),
    Instance(Rc<Instance>),
    Generator(Rc<Generator>),
    Thread(Rc<Thread>),
    #[expect(dead_code, reason = "it is only kept")]
    Raised(Exception),
}

impl Value {
    pub fn list(items: Vec<Value>) -> Self {
        Value::List(Rc::new(RefCell::new(items)))
    }
}

/// An exception keeps its arguments, the frames it came through, and what was handled when it was raised.
pub struct Raised {
    pub class: &'static str,
    #[expect(dead_code, reason = "they are only kept")]
    pub arguments: Vec<Value>,
    pub frames: RefCell<Vec<Rc<Frame>>>,
    #[expect(dead_code, reason = "it is only kept")]
    pub context: Option<Exception>,
}

pub type Exception = Rc<Raised>;
pub type Outcome<T> = Result<T, Exception>;

/// The rest of a generator's execution.
pub type Rest = Pin<Box<dyn Future<Output = Outcome<Value>>>>;

pub struct Generator {
    pub world: Rc<World>,
    state: RefCell<Option<(Rc<Frame>, Rest)>>,
    started: Cell<bool>,
}

impl Generator {
    pub fn value(world: &Rc<World>, frame: Rc<Frame>, rest: Rest) -> Value {
        let state = RefCell::new(Some((frame, rest)));
        Value::Generator(Rc::new(Self { world: world.clone(), state, started: Cell::new(false) }))
    }

    /// The next value, or none at the end.
    pub fn resume(&self) -> Outcome<Option<Value>> {
        let Some((frame, mut rest)) = self.state.take() else { return Ok(None) };
        self.started.set(true);
        self.world.stack.borrow_mut().push(Some(frame.clone()));
        let polled = rest.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let left = self.world.stack.borrow_mut().pop();
        drop(left);
        match polled {
            Poll::Pending => {
                let value = frame.yielded.take();
                self.state.replace(Some((frame, rest)));
                Ok(value)
            }
            // Its locals go when its frame is off the stack: on the line of whoever resumed it.
            Poll::Ready(ended) => {
                if let Err(exception) = &ended {
                    exception.frames.borrow_mut().push(frame.clone());
                }
                drop((frame, rest));
                ended.map(|_| None)
            }
        }
    }

    /// What `close` does, and the end of the last reference.
    pub fn close(&self) {
        if !self.started.get() {
            let state = self.state.take();
            drop(state);
            return;
        }
        if let Some((frame, _)) = &*self.state.borrow() {
            frame.closing.set(true);
        }
        match self.resume() {
            Ok(None) => {}
            Ok(Some(_)) => panic!("a generator yields while it is closed"),
            Err(exception) => assert_eq!(exception.class, "GeneratorExit"),
        }
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        self.close();
    }
}

/// Pending once.
#[derive(Default)]
pub struct Suspension(bool);

impl Future for Suspension {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        match std::mem::replace(&mut self.0, true) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

//! The model: executes the abstract program as CPython would, and notes what each line allocates and releases.
//!
//! Expressions are evaluated at once. Statements are futures, since a generator stops among them; everything else is
//! done when it is polled for the first time.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::program::{Flavour, Function, Program, Statement, Target, Try, What, With};
use super::rules::Rules;
use super::world::{
    Closure, Exception, Frame, Generator, Instance, Lines, Outcome, Raised, Suspension, Value, Variable, World,
};

/// A program under way.
pub struct Machine {
    pub world: Rc<World>,
    pub rules: Rules,
    pub globals: HashMap<String, Value>,
    pub classes: HashMap<String, Rc<super::program::Class>>,
}

/// How a block of statements was left.
enum Flow {
    Next,
    Return(Value),
    Break,
    Continue,
}

type Executing<'a> = Pin<Box<dyn Future<Output = Outcome<Flow>> + 'a>>;

/// Executes the whole program. `module` is the function that the module is.
pub fn expected(program: &Program, module: &Rc<Function>, rules: Rules) -> Lines {
    let closure = |function: &Rc<Function>| Closure {
        function: function.clone(),
        captured: HashMap::new(),
        defaults: Vec::new(),
    };
    let globals = program.functions.iter().map(|function| {
        let mut value = Value::Closure(Rc::new(closure(function)));
        // A decorator of the module's, which takes a function and makes another of it.
        for decorator in function.decorators.iter().rev().filter(|name| *name != "profile") {
            let passing = program.functions.iter().find(|function| function.name == *decorator).unwrap();
            let What::Define(wrapper, _) = &passing.body[0].what else { panic!("a decorator defines its wrapper") };
            let variable = Variable::default();
            variable.replace(Some(value));
            let captured = HashMap::from([(passing.parameters[0].clone(), variable)]);
            value = Value::Closure(Rc::new(Closure { captured, ..closure(wrapper) }));
        }
        (function.name.clone(), value)
    });
    let classes = program.classes.iter().map(|class| (class.name.clone(), class.clone())).collect();
    let machine = Rc::new(Machine { world: Rc::default(), rules, globals: globals.collect(), classes });
    let frame = Frame::new(module, HashMap::new());
    machine.world.stack.borrow_mut().push(Some(frame.clone()));
    let outcome = now(machine.execute(&frame, &program.main));
    assert!(matches!(outcome, Ok(Flow::Next)));
    // What is left is released by the end of the interpreter, on no line.
    machine.world.stack.borrow_mut().clear();
    machine.world.lines.borrow().clone()
}

/// The outcome of what does not wait.
fn now<T>(mut future: Pin<Box<dyn Future<Output = T> + '_>>) -> T {
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => panic!("only generators yield"),
    }
}

impl Machine {
    /// Calls a function. Where the arguments do not move, the caller keeps them until it has returned.
    pub fn call(self: &Rc<Self>, closure: &Rc<Closure>, arguments: Vec<Value>, moved: bool) -> Outcome<Value> {
        let kept = if moved && self.rules.arguments_move { Vec::new() } else { arguments.clone() };
        let function = &closure.function;
        let frame = Frame::new(function, closure.captured.clone());
        if function.star {
            frame.set(&function.parameters[0], Some(Value::list(arguments)));
        } else {
            let missing = function.parameters.len() - arguments.len();
            let defaults = closure.defaults[closure.defaults.len() - missing..].iter().cloned();
            for (name, value) in function.parameters.iter().zip(arguments.into_iter().chain(defaults)) {
                frame.set(name, Some(value));
            }
        }
        let outcome = match function.flavour {
            Flavour::Plain => self.enter(frame),
            // That of a coroutine begins when it is awaited.
            Flavour::Generator | Flavour::Coroutine | Flavour::AsyncGenerator => {
                let (machine, running) = (self.clone(), frame.clone());
                let rest = async move {
                    let function = running.function.clone();
                    let flow = machine.execute(&running, &function.body).await?;
                    drop(running);
                    Ok(if let Flow::Return(value) = flow { value } else { Value::None })
                };
                Ok(Generator::value(&self.world, frame, Box::pin(rest)))
            }
        };
        drop(kept);
        outcome
    }

    /// Executes a frame. Its locals are released when it is off the stack.
    fn enter(self: &Rc<Self>, frame: Rc<Frame>) -> Outcome<Value> {
        self.world.stack.borrow_mut().push(Some(frame.clone()));
        let outcome = now(self.execute(&frame, &frame.function.body));
        let left = self.world.stack.borrow_mut().pop();
        drop(left);
        match outcome {
            Ok(Flow::Return(value)) => Ok(value),
            Ok(_) => Ok(Value::None),
            Err(exception) => {
                exception.frames.borrow_mut().push(frame);
                Err(exception)
            }
        }
    }

    /// Runs `what` below library code.
    pub fn in_library<T>(&self, what: impl FnOnce() -> T) -> T {
        self.world.stack.borrow_mut().push(None);
        let outcome = what();
        self.world.stack.borrow_mut().pop();
        outcome
    }

    pub fn raise<T>(&self, class: &'static str, arguments: Vec<Value>) -> Outcome<T> {
        let context = self.world.handled.borrow().last().cloned();
        Err(Rc::new(Raised { class, arguments, frames: Vec::new().into(), context }))
    }

    /// Calls a method of an instance.
    pub fn method(
        self: &Rc<Self>,
        instance: &Rc<Instance>,
        name: &str,
        arguments: Vec<Value>,
        moved: bool,
    ) -> Outcome<Value> {
        let function = instance.class.methods.iter().find(|method| method.name == name).unwrap();
        let closure = Closure { function: function.clone(), captured: HashMap::new(), defaults: Vec::new() };
        let own = std::iter::once(Value::Instance(instance.clone()));
        let called = self.call(&Rc::new(closure), own.chain(arguments).collect(), moved)?;
        self.awaited(function.flavour == Flavour::Coroutine, called)
    }

    /// What a coroutine returns; any other value as it is. Nothing is charged while a coroutine waits, so that it is run through.
    pub fn awaited(&self, waits: bool, value: Value) -> Outcome<Value> {
        if let (true, Value::Generator(coroutine)) = (waits, &value) {
            let ended = coroutine.resume()?;
            assert!(ended.is_none(), "a coroutine returns nothing");
            return Ok(Value::None);
        }
        Ok(value)
    }

    fn execute<'a>(self: &'a Rc<Self>, frame: &'a Rc<Frame>, body: &'a [Statement]) -> Executing<'a> {
        Box::pin(async move {
            for statement in body {
                frame.line.set(statement.line.get());
                self.world.note_step();
                match self.statement(frame, statement).await? {
                    Flow::Next => {}
                    left => return Ok(left),
                }
            }
            Ok(Flow::Next)
        })
    }

    async fn statement(self: &Rc<Self>, frame: &Rc<Frame>, statement: &Statement) -> Outcome<Flow> {
        match &statement.what {
            What::Assign(target, value) => {
                let value = self.evaluate(frame, value)?;
                self.assign(frame, target, value);
            }
            What::Extend(name, value) => {
                let Value::Block(block) = self.value_of(frame, name) else { panic!("{name} is a block") };
                let Value::Block(more) = self.evaluate(frame, value)? else { panic!("a block is added to {name}") };
                let length = block.length.get() + more.length.get();
                // What asks for less than an eighth more may find room (Objects/bytearrayobject.c).
                assert!(more.length.get() > block.length.get() / 8);
                block.resize(length, self.rules.bytes(block.kind, length));
            }
            What::Delete(targets) => targets.iter().for_each(|target| self.delete(frame, target)),
            What::Evaluate(value) => drop(self.evaluate(frame, value)?),
            What::Append(list, value) => {
                let Value::List(list) = self.value_of(frame, list) else { panic!("{list} is a list") };
                let value = self.evaluate(frame, value)?;
                list.borrow_mut().push(value);
            }
            What::Simple(name, method) => self.simple(frame, name, method)?,
            What::Pass | What::Nonlocal(_) => {}
            What::If(condition, then, otherwise) => {
                let body = if self.test(frame, condition) { then } else { otherwise };
                return self.execute(frame, body).await;
            }
            What::For(name, iterable, body) | What::AsyncFor(name, iterable, body) => {
                let mut iterator = self.iterate(self.evaluate(frame, iterable)?);
                while let Some(value) = iterator.next()? {
                    frame.set(name, Some(value));
                    match self.execute(frame, body).await? {
                        Flow::Next | Flow::Continue => frame.line.set(statement.line.get()),
                        Flow::Break => break,
                        left => return Ok(left),
                    }
                }
            }
            What::While(condition, body) => {
                while self.test(frame, condition) {
                    match self.execute(frame, body).await? {
                        Flow::Next | Flow::Continue => frame.line.set(statement.line.get()),
                        Flow::Break => break,
                        left => return Ok(left),
                    }
                }
            }
            What::Try(parts) => return self.attempt(frame, parts).await,
            What::With(with) => return self.with(frame, statement.line.get(), with).await,
            What::Define(function, defaults) => {
                let defaults: Outcome<Vec<Value>> =
                    defaults.iter().map(|default| self.evaluate(frame, default)).collect();
                let closure = self.closure(frame, function, defaults?);
                frame.set(&function.name, Some(closure));
            }
            What::Return(value) => return Ok(Flow::Return(self.evaluate(frame, value)?)),
            What::Raise(class, arguments) => {
                let arguments: Outcome<Vec<Value>> =
                    arguments.iter().map(|argument| self.evaluate(frame, argument)).collect();
                return self.raise(class, arguments?);
            }
            What::Reraise => return Err(self.world.handled.borrow().last().unwrap().clone()),
            What::Break => return Ok(Flow::Break),
            What::Continue => return Ok(Flow::Continue),
            What::Yield(value) => {
                let value = self.evaluate(frame, value)?;
                frame.yielded.replace(Some(value));
                Suspension::default().await;
                if frame.closing.get() {
                    return self.raise("GeneratorExit", Vec::new());
                }
            }
        }
        Ok(Flow::Next)
    }

    fn assign(self: &Rc<Self>, frame: &Rc<Frame>, target: &Target, value: Value) {
        match target {
            Target::Name(name) => frame.set(name, Some(value)),
            Target::Attribute(name, attribute) => {
                let Value::Instance(instance) = self.value_of(frame, name) else { panic!("{name} is an instance") };
                let before = instance.attributes.borrow_mut().insert(attribute.clone(), value);
                drop(before);
            }
            Target::Item(name, key) => {
                let Value::Dict(dict) = self.value_of(frame, name) else { panic!("{name} is a dict") };
                let before = dict.borrow_mut().insert(*key, value);
                drop(before);
            }
        }
    }

    fn delete(self: &Rc<Self>, frame: &Rc<Frame>, target: &Target) {
        match target {
            Target::Name(name) => {
                assert!(frame.variable(name).borrow().is_some(), "{name} is bound");
                frame.set(name, None);
            }
            Target::Attribute(name, attribute) => {
                let Value::Instance(instance) = self.value_of(frame, name) else { panic!("{name} is an instance") };
                let before = instance.attributes.borrow_mut().remove(attribute).unwrap();
                drop(before);
            }
            Target::Item(name, key) => {
                let Value::Dict(dict) = self.value_of(frame, name) else { panic!("{name} is a dict") };
                let before = dict.borrow_mut().remove(key).unwrap();
                drop(before);
            }
        }
    }

    fn simple(self: &Rc<Self>, frame: &Rc<Frame>, name: &str, method: &str) -> Outcome<()> {
        match (self.value_of(frame, name), method) {
            (Value::List(list), "clear") => {
                let items = list.take();
                drop(items);
            }
            (Value::Dict(dict), "clear") => {
                let items = dict.take();
                drop(items);
            }
            (Value::List(list), "pop") => {
                let item = list.borrow_mut().pop().unwrap();
                drop(item);
            }
            (Value::Block(block), "clear") => block.resize(0, self.rules.cleared(block.kind)),
            (Value::Generator(generator), "close") => generator.close(),
            (Value::Thread(thread), "start") => self.start(&thread)?,
            (Value::Thread(_), "join") => {}
            (_, other) => panic!("{name}.{other}()"),
        }
        Ok(())
    }

    /// A thread's function is called from library code, on a stack of its own; then the thread gives its arguments back.
    fn start(self: &Rc<Self>, thread: &Rc<super::world::Thread>) -> Outcome<()> {
        let waiting = self.world.stack.take();
        let (target, arguments) = (thread.target.take().unwrap(), thread.arguments.take());
        let outcome = self.in_library(|| {
            let outcome = self.call(&target, arguments.clone(), false);
            drop((target, arguments));
            outcome.map(drop)
        });
        self.world.stack.replace(waiting);
        outcome
    }

    async fn attempt(self: &Rc<Self>, frame: &Rc<Frame>, parts: &Try) -> Outcome<Flow> {
        let mut outcome = self.execute(frame, &parts.body).await;
        match (outcome, &parts.handler) {
            (Err(exception), Some(handler)) if exception.class == handler.class || handler.class == "Exception" => {
                assert_ne!(exception.class, "GeneratorExit", "it is no Exception");
                if let Some(name) = &handler.name {
                    frame.set(name, Some(Value::Raised(exception.clone())));
                }
                outcome = self.handling(exception, self.execute(frame, &handler.body)).await;
                if let Some(name) = &handler.name {
                    let left = frame.line.get();
                    if !self.rules.handler_left_in_place && !matches!(outcome, Ok(Flow::Next)) {
                        frame.line.set(handler.body.last().unwrap().line.get());
                    }
                    frame.set(name, None);
                    if !self.rules.unwinds_on_at_the_end || matches!(outcome, Ok(Flow::Next)) {
                        frame.line.set(left);
                    }
                }
            }
            (Ok(Flow::Next), _) => outcome = self.execute(frame, &parts.otherwise).await,
            (other, _) => outcome = other,
        }
        if !parts.finally.is_empty() {
            let line = frame.line.get();
            let left = match &outcome {
                Err(exception) => self.handling(exception.clone(), self.execute(frame, &parts.finally)).await?,
                Ok(_) => self.execute(frame, &parts.finally).await?,
            };
            if !matches!(left, Flow::Next) {
                return Ok(left);
            }
            if self.rules.back_after_finally && !matches!(outcome, Ok(Flow::Next) | Err(_)) {
                frame.line.set(line);
            }
        }
        outcome
    }

    /// Executes with an exception as the one being handled, which is forgotten on the line where that ends.
    async fn handling(&self, exception: Exception, executing: Executing<'_>) -> Outcome<Flow> {
        self.world.handled.borrow_mut().push(exception);
        let outcome = executing.await;
        let handled = self.world.handled.borrow_mut().pop();
        drop(handled);
        outcome
    }

    async fn with(self: &Rc<Self>, frame: &Rc<Frame>, line: u32, with: &With) -> Outcome<Flow> {
        let Value::Instance(manager) = self.evaluate(frame, &with.manager)? else { panic!("a context manager") };
        let (enter, exit) = if with.waits { ("__aenter__", "__aexit__") } else { ("__enter__", "__exit__") };
        let value = self.method(&manager, enter, Vec::new(), false)?;
        match &with.name {
            Some(name) => frame.set(name, Some(value)),
            None => drop(value),
        }
        let outcome = self.execute(frame, &with.body).await;
        if self.rules.with_line_at_exit {
            frame.line.set(line);
        }
        match outcome {
            Ok(flow) => {
                self.method(&manager, exit, vec![Value::None, Value::None, Value::None], false)?;
                Ok(flow)
            }
            // Ours swallow it.
            Err(exception) => {
                self.world.handled.borrow_mut().push(exception.clone());
                let raised = Value::Raised(exception);
                let left = self.method(&manager, exit, vec![Value::None, raised, Value::None], false);
                let handled = self.world.handled.borrow_mut().pop();
                drop(handled);
                left.map(|_| Flow::Next)
            }
        }
    }
}

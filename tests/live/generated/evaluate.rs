//! The model's expressions.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::program::{Comprehension, Condition, Expression, Function, Shape};
use super::run::Machine;
use super::world::{Block, Closure, Frame, Generator, Instance, Outcome, Suspension, Thread, Value};

impl Machine {
    /// The value of a variable that is bound, or of the module's.
    pub fn value_of(&self, frame: &Rc<Frame>, name: &str) -> Value {
        let local = frame.locals.borrow().get(name).cloned();
        let local = local.and_then(|variable| variable.borrow().clone());
        local.or_else(|| self.globals.get(name).cloned()).unwrap_or_else(|| panic!("{name} is not bound"))
    }

    pub fn test(&self, frame: &Rc<Frame>, condition: &Condition) -> bool {
        let number = |name: &str| match self.value_of(frame, name) {
            Value::Number(number) => number,
            _ => panic!("{name} is a number"),
        };
        match condition {
            Condition::Longer(name, than) => length(&self.value_of(frame, name)) > *than,
            Condition::Rest(name, divisor, rest) => number(name) % divisor == *rest,
            Condition::Greater(name, than) => number(name) > *than,
        }
    }

    pub fn closure(&self, frame: &Rc<Frame>, function: &Rc<Function>, defaults: Vec<Value>) -> Value {
        let captured = function.captures.iter().map(|name| (name.clone(), frame.variable(name))).collect();
        Value::Closure(Rc::new(Closure { function: function.clone(), captured, defaults }))
    }

    fn evaluate_all(self: &Rc<Self>, frame: &Rc<Frame>, expressions: &[Expression]) -> Outcome<Vec<Value>> {
        expressions.iter().map(|expression| self.evaluate(frame, expression)).collect()
    }

    fn block(self: &Rc<Self>, frame: &Rc<Frame>, expression: &Expression) -> Outcome<Rc<Block>> {
        match self.evaluate(frame, expression)? {
            Value::Block(block) => Ok(block),
            _ => panic!("{expression:?} is a block"),
        }
    }

    fn new_block(&self, kind: super::program::Kind, length: u64) -> Value {
        Block::value(&self.world, kind, length, self.rules.bytes(kind, length))
    }

    pub fn evaluate(self: &Rc<Self>, frame: &Rc<Frame>, expression: &Expression) -> Outcome<Value> {
        let value = match expression {
            Expression::None => Value::None,
            Expression::Name(name) => self.value_of(frame, name),
            Expression::New(kind, length, more) => {
                let more = more.as_ref().map_or(0, |name| match self.value_of(frame, name) {
                    Value::Number(number) => number,
                    _ => panic!("{name} is a number"),
                });
                self.new_block(*kind, length + more)
            }
            Expression::Join(left, right) => {
                let (left, right) = (self.block(frame, left)?, self.block(frame, right)?);
                self.new_block(left.kind, left.length.get() + right.length.get())
            }
            Expression::Copy(kind, value) => {
                let block = self.block(frame, value)?;
                self.new_block(*kind, block.length.get())
            }
            Expression::Rest(value, from) => {
                let block = self.block(frame, value)?;
                self.new_block(block.kind, block.length.get() - from)
            }
            Expression::Length(value) => Value::Number(length(&self.evaluate(frame, value)?)),
            Expression::Attribute(name, attribute) => {
                let Value::Instance(instance) = self.value_of(frame, name) else { panic!("{name} is an instance") };
                let known = instance.attributes.borrow().get(attribute).cloned();
                match known {
                    Some(value) => value,
                    // A property.
                    None => self.method(&instance, attribute, Vec::new(), true)?,
                }
            }
            Expression::Item(name, key) => match self.value_of(frame, name) {
                Value::Dict(dict) => dict.borrow()[key].clone(),
                Value::List(list) => list.borrow()[usize::try_from(*key).unwrap()].clone(),
                _ => panic!("{name} has items"),
            },
            Expression::List(items) => Value::list(self.evaluate_all(frame, items)?),
            Expression::Dict(items) => {
                let items = self.evaluate_all(frame, items)?;
                Value::Dict(Rc::new(RefCell::new((0..).zip(items).collect())))
            }
            Expression::Number(number) => Value::Number(*number),
            Expression::Minus(name, less) => match self.value_of(frame, name) {
                Value::Number(number) => Value::Number(number - less),
                _ => panic!("{name} is a number"),
            },
            Expression::Range(count) => Value::list((0..*count).map(Value::Number).collect()),
            Expression::Either(yes, condition, no) => {
                return self.evaluate(frame, if self.test(frame, condition) { yes } else { no });
            }
            Expression::Call(name, arguments) => return self.call_named(frame, name, arguments),
            Expression::CallStar(name, arguments) => {
                let Value::Closure(closure) = self.value_of(frame, name) else { panic!("{name} is callable") };
                let Value::List(arguments) = self.value_of(frame, arguments) else { panic!("{arguments} is a tuple") };
                let arguments = arguments.borrow().clone();
                return self.call(&closure, arguments, true);
            }
            Expression::Method(name, method, arguments) => {
                let Value::Instance(instance) = self.value_of(frame, name) else { panic!("{name} is an instance") };
                let arguments = self.evaluate_all(frame, arguments)?;
                return self.method(&instance, method, arguments, true);
            }
            Expression::Lambda(function) => self.closure(frame, function, Vec::new()),
            Expression::Comprehension(parts) => return self.comprehension(frame, parts),
            Expression::Next(name) => {
                let Value::Generator(generator) = self.value_of(frame, name) else { panic!("{name} is a generator") };
                generator.resume()?.unwrap_or_else(|| panic!("{name} has a next value"))
            }
            // While it waits nothing is charged.
            Expression::Sleep => Value::None,
            Expression::Await(value) => {
                let coroutine = self.evaluate(frame, value)?;
                return self.awaited(true, coroutine);
            }
            Expression::Gather(values) => {
                let coroutines = self.evaluate_all(frame, values)?;
                return self.gather(coroutines);
            }
            Expression::RunAsync(value) => {
                let coroutine = self.evaluate(frame, value)?;
                self.world.note_loop();
                return self.in_library(|| self.awaited(true, coroutine));
            }
            Expression::Thread(target, arguments) => {
                let Value::Closure(target) = self.value_of(frame, target) else { panic!("{target} is callable") };
                let arguments = RefCell::new(self.evaluate_all(frame, arguments)?);
                Value::Thread(Rc::new(Thread { target: RefCell::new(Some(target)), arguments }))
            }
        };
        Ok(value)
    }

    fn call_named(self: &Rc<Self>, frame: &Rc<Frame>, name: &str, arguments: &[Expression]) -> Outcome<Value> {
        if let Some(class) = self.classes.get(name) {
            let arguments = self.evaluate_all(frame, arguments)?;
            let instance = Rc::new(Instance { class: class.clone(), attributes: RefCell::default() });
            self.method(&instance, "__init__", arguments, false)?;
            return Ok(Value::Instance(instance));
        }
        let Value::Closure(closure) = self.value_of(frame, name) else { panic!("{name} is callable") };
        let arguments = self.evaluate_all(frame, arguments)?;
        self.call(&closure, arguments, true)
    }

    /// Tasks run when the coroutine that waits for them is off the stack: below them is the loop alone.
    fn gather(self: &Rc<Self>, coroutines: Vec<Value>) -> Outcome<Value> {
        let at = self.world.stack.borrow().iter().rposition(Option::is_none).unwrap() + 1;
        let waiting = self.world.stack.borrow_mut().split_off(at);
        for coroutine in coroutines {
            self.awaited(true, coroutine)?;
        }
        self.world.stack.borrow_mut().extend(waiting);
        Ok(Value::None)
    }

    pub fn iterate(&self, value: Value) -> Iteration {
        match value {
            Value::Generator(generator) => Iteration::Generator(generator),
            Value::List(list) => Iteration::List(Some(list), 0),
            _ => panic!("iterated"),
        }
    }

    fn comprehension(self: &Rc<Self>, frame: &Rc<Frame>, parts: &Rc<Comprehension>) -> Outcome<Value> {
        let iterator = self.iterate(self.evaluate(frame, &parts.iterable)?);
        // A scope of its own, with the variables around it in view. On its line, which is the statement's.
        let mut around: HashMap<_, _> = frame.locals.borrow().clone();
        around.remove(&parts.variable);
        let scope = Frame::new(&parts.function, around);
        scope.line.set(frame.line.get());
        match parts.shape {
            Shape::Lazy => Ok(self.generator_expression(scope, iterator, parts.clone())),
            Shape::Sum | Shape::Listed => {
                let generator = self.generator_expression(scope, iterator, parts.clone());
                let Value::Generator(generator) = generator else { unreachable!() };
                let mut items = Vec::new();
                while let Some(item) = generator.resume()? {
                    items.push(item);
                }
                Ok(if parts.shape == Shape::Sum { Value::None } else { Value::list(items) })
            }
            Shape::List | Shape::Set | Shape::Dict => {
                let framed = !self.rules.inlined_comprehensions;
                if framed {
                    self.world.stack.borrow_mut().push(Some(scope.clone()));
                }
                let items = self.collect(&scope, iterator, parts);
                if framed {
                    self.world.stack.borrow_mut().pop();
                }
                drop(scope);
                items
            }
        }
    }

    fn collect(self: &Rc<Self>, scope: &Rc<Frame>, mut iterator: Iteration, parts: &Comprehension) -> Outcome<Value> {
        let mut items = Vec::new();
        while let Some(value) = iterator.next()? {
            scope.set(&parts.variable, Some(value));
            if parts.condition.as_ref().is_none_or(|condition| self.test(scope, condition)) {
                items.push(self.evaluate(scope, &parts.item)?);
            }
        }
        Ok(if parts.shape == Shape::Dict {
            Value::Dict(Rc::new(RefCell::new((0..).zip(items).collect())))
        } else {
            Value::list(items)
        })
    }

    fn generator_expression(
        self: &Rc<Self>,
        scope: Rc<Frame>,
        mut iterator: Iteration,
        parts: Rc<Comprehension>,
    ) -> Value {
        let (machine, running) = (self.clone(), scope.clone());
        let rest = async move {
            while let Some(value) = iterator.next()? {
                running.set(&parts.variable, Some(value));
                if parts.condition.as_ref().is_none_or(|condition| machine.test(&running, condition)) {
                    let item = machine.evaluate(&running, &parts.item)?;
                    let item = if parts.shape == Shape::Sum { Value::Number(length(&item)) } else { item };
                    running.yielded.replace(Some(item));
                    Suspension::default().await;
                    if running.closing.get() {
                        return machine.raise("GeneratorExit", Vec::new());
                    }
                }
            }
            Ok(Value::None)
        };
        Generator::value(&self.world, scope, Box::pin(rest))
    }
}

/// What a `for` goes through. A list that is at its end is let go (Objects/listobject.c, `listiter_next`).
pub enum Iteration {
    List(Option<Rc<RefCell<Vec<Value>>>>, usize),
    Generator(Rc<Generator>),
}

impl Iteration {
    pub fn next(&mut self) -> Outcome<Option<Value>> {
        match self {
            Iteration::Generator(generator) => generator.resume(),
            Iteration::List(list, at) => {
                let next = list.as_ref().and_then(|list| list.borrow().get(*at).cloned());
                *at += 1;
                if next.is_none() {
                    let ended = list.take();
                    drop(ended);
                }
                Ok(next)
            }
        }
    }
}

fn length(value: &Value) -> u64 {
    let count = match value {
        Value::Block(block) => return block.length.get(),
        Value::List(list) => list.borrow().len(),
        Value::Dict(dict) => dict.borrow().len(),
        _ => panic!("it has no length"),
    };
    u64::try_from(count).unwrap()
}

//! The abstract program as Python text. Every statement gets the number of its line here.

use std::fmt::Write as _;

use super::program::{
    Comprehension, Condition, Expression, Flavour, Function, Kind, Program, Shape, Statement, Target, What,
};

/// Before the program. Small objects of all sizes make and keep pages in Python's arenas, so that those of the program find room;
/// what is imported and run here for the first time is not the program's. The table of the subclasses of `object` grows by
/// 20,000 bytes at the 342nd and the 683rd: it is brought to the middle. 3.6 has no `asyncio.run`, and no event loop in threads but the
/// main one unless it is made: each run has its own, as later.
const HEAD: &str = "\
import asyncio, sys, threading
warm = [[bytes(size) for _ in range(300 if size < 200 else 150)] for size in range(0, 480, 16)]
warm = [row[::30] for row in warm]
if not hasattr(asyncio, 'run'):
    asyncio.run = eval('lambda main: (lambda loop: (loop.run_until_complete(main), loop.close())[0])(asyncio.new_event_loop())')
asyncio.run(asyncio.sleep(0))
warmer = threading.Thread(target=len, args=((),))
warmer.start()
warmer.join()
while len(object.__subclasses__()) < 500:
    warm.append(type('Warm', (), {}))
";

/// In the place of the marks where none is wanted.
const UNMARKED: &str = "profile = lambda function: function\n";

/// How a program is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// With functions marked.
    Marked,
    /// Without.
    Unmarked,
    /// Unmarked, and each block an object that notes itself where it is made and released: see `witness.py`.
    Witnessed,
}

/// The text of a program.
pub fn text(program: &Program, variant: Variant) -> String {
    let mut writer = Writer { text: String::from(HEAD), line: 0, depth: 0, variant };
    match variant {
        Variant::Marked => writer.text.push_str("pass\n"),
        Variant::Unmarked => writer.text.push_str(UNMARKED),
        Variant::Witnessed => writer.text.push_str("from witness import Block, profile\n"),
    }
    writer.line = u32::try_from(writer.text.lines().count()).unwrap();
    for class in &program.classes {
        writer.put(&format!("\nclass {}:", class.name));
        writer.depth += 1;
        for method in &class.methods {
            writer.function(method, &[]);
        }
        writer.depth -= 1;
    }
    for function in &program.functions {
        writer.put("");
        writer.function(function, &[]);
    }
    writer.put("");
    writer.block(&program.main);
    writer.text
}

/// How many lines at the beginning are not the program's.
pub fn head_lines() -> u32 {
    u32::try_from(HEAD.lines().count()).unwrap() + 1
}

struct Writer {
    text: String,
    line: u32,
    depth: usize,
    variant: Variant,
}

impl Writer {
    fn put(&mut self, text: &str) {
        for part in text.split('\n') {
            let indent = if part.is_empty() { 0 } else { 4 * self.depth };
            writeln!(self.text, "{:indent$}{part}", "").unwrap();
            self.line += 1;
        }
    }

    fn function(&mut self, function: &Function, defaults: &[Expression]) {
        for decorator in &function.decorators {
            self.put(&format!("@{decorator}"));
        }
        let waits = matches!(function.flavour, Flavour::Coroutine | Flavour::AsyncGenerator);
        let first_default = function.parameters.len() - defaults.len();
        let parameters = function.parameters.iter().enumerate().map(|(at, name)| match at.checked_sub(first_default) {
            _ if function.star => format!("*{name}"),
            Some(at) => format!("{name}={}", self.expression(&defaults[at])),
            None => name.clone(),
        });
        let parameters: Vec<String> = parameters.collect();
        let word = if waits { "async def" } else { "def" };
        self.put(&format!("{word} {}({}):", function.name, parameters.join(", ")));
        self.inner(&function.body);
    }

    fn inner(&mut self, body: &[Statement]) {
        assert!(!body.is_empty());
        self.depth += 1;
        self.block(body);
        self.depth -= 1;
    }

    fn block(&mut self, body: &[Statement]) {
        for statement in body {
            if let What::Define(function, defaults) = &statement.what {
                // Without decorators: its line is that of `def`, where its defaults are evaluated.
                assert!(function.decorators.is_empty());
                statement.line.set(self.line + 1);
                self.function(function, defaults);
                continue;
            }
            statement.line.set(self.line + 1);
            self.statement(&statement.what);
        }
    }

    fn statement(&mut self, what: &What) {
        match what {
            What::Assign(target, value) => self.put(&format!("{} = {}", place(target), self.expression(value))),
            What::Extend(name, value) => self.put(&format!("{name} += {}", self.expression(value))),
            What::Delete(targets) => {
                let targets: Vec<String> = targets.iter().map(place).collect();
                self.put(&format!("del {}", targets.join(", ")));
            }
            What::Evaluate(value) => self.put(&self.expression(value)),
            What::Append(list, value) => self.put(&format!("{list}.append({})", self.expression(value))),
            What::Simple(name, method) => self.put(&format!("{name}.{method}()")),
            What::Pass => self.put("pass"),
            What::If(condition, then, otherwise) => {
                self.put(&format!("if {}:", test(condition)));
                self.inner(then);
                if !otherwise.is_empty() {
                    self.put("else:");
                    self.inner(otherwise);
                }
            }
            What::For(name, iterable, body) => {
                self.put(&format!("for {name} in {}:", self.expression(iterable)));
                self.inner(body);
            }
            What::AsyncFor(name, iterable, body) => {
                self.put(&format!("async for {name} in {}:", self.expression(iterable)));
                self.inner(body);
            }
            What::While(condition, body) => {
                self.put(&format!("while {}:", test(condition)));
                self.inner(body);
            }
            What::Try(parts) => {
                self.put("try:");
                self.inner(&parts.body);
                if let Some(handler) = &parts.handler {
                    let name = handler.name.as_ref().map_or(String::new(), |name| format!(" as {name}"));
                    self.put(&format!("except {}{name}:", handler.class));
                    self.inner(&handler.body);
                }
                if !parts.otherwise.is_empty() {
                    self.put("else:");
                    self.inner(&parts.otherwise);
                }
                if !parts.finally.is_empty() {
                    self.put("finally:");
                    self.inner(&parts.finally);
                }
            }
            What::With(with) => {
                let word = if with.waits { "async with" } else { "with" };
                let name = with.name.as_ref().map_or(String::new(), |name| format!(" as {name}"));
                self.put(&format!("{word} {}{name}:", self.expression(&with.manager)));
                self.inner(&with.body);
            }
            What::Define(..) => unreachable!("written by its block"),
            What::Nonlocal(name) => self.put(&format!("nonlocal {name}")),
            What::Return(value) => self.put(&format!("return {}", self.expression(value))),
            What::Raise(class, arguments) => self.put(&format!("raise {class}({})", self.list(arguments))),
            What::Reraise => self.put("raise"),
            What::Break => self.put("break"),
            What::Continue => self.put("continue"),
            What::Yield(value) => self.put(&format!("yield {}", self.expression(value))),
        }
    }

    fn list(&self, values: &[Expression]) -> String {
        values.iter().map(|value| self.expression(value)).collect::<Vec<_>>().join(", ")
    }

    fn new_block(&self, kind: Kind, length: u64, more: Option<&String>) -> String {
        let length = more.map_or(length.to_string(), |more| format!("{length} + {more}"));
        if self.variant == Variant::Witnessed {
            return format!("Block({:?}, {length})", format!("{kind:?}"));
        }
        let product = |what: &str| {
            if more.is_some() { format!("{what} * ({length})") } else { format!("{what} * {length}") }
        };
        match kind {
            Kind::Bytearray => format!("bytearray({length})"),
            Kind::Bytes => format!("bytes({length})"),
            Kind::Text => product("'x'"),
            Kind::Nones => product("[None]"),
            Kind::Tuple => product("(None,)"),
        }
    }

    fn expression(&self, expression: &Expression) -> String {
        match expression {
            Expression::None => "None".into(),
            Expression::Name(name) => name.clone(),
            Expression::New(kind, length, more) => self.new_block(*kind, *length, more.as_ref()),
            Expression::Join(left, right) => format!("{} + {}", self.expression(left), self.expression(right)),
            Expression::Copy(kind, value) if self.variant == Variant::Witnessed => {
                format!("Block({:?}, {})", format!("{kind:?}"), self.expression(value))
            }
            Expression::Copy(Kind::Bytes, value) => format!("bytes({})", self.expression(value)),
            Expression::Copy(_, value) => format!("bytearray({})", self.expression(value)),
            Expression::Rest(value, from) => format!("{}[{from}:]", self.expression(value)),
            Expression::Length(value) => format!("len({})", self.expression(value)),
            Expression::Attribute(name, attribute) => format!("{name}.{attribute}"),
            Expression::Item(name, key) => format!("{name}[{key}]"),
            Expression::List(items) => format!("[{}]", self.list(items)),
            Expression::Dict(items) => {
                let items = items.iter().enumerate().map(|(key, value)| format!("{key}: {}", self.expression(value)));
                format!("{{{}}}", items.collect::<Vec<_>>().join(", "))
            }
            Expression::Number(number) => number.to_string(),
            Expression::Minus(name, less) => format!("{name} - {less}"),
            Expression::Range(count) => format!("range({count})"),
            Expression::Either(yes, condition, no) => {
                format!("{} if {} else {}", self.expression(yes), test(condition), self.expression(no))
            }
            Expression::Call(name, arguments) => format!("{name}({})", self.list(arguments)),
            Expression::CallStar(name, arguments) => format!("{name}(*{arguments})"),
            Expression::Method(name, method, arguments) => format!("{name}.{method}({})", self.list(arguments)),
            Expression::Lambda(function) => {
                let What::Return(value) = &function.body[0].what else { panic!("a lambda returns") };
                let parameters = function.parameters.join(", ");
                let space = if parameters.is_empty() { "" } else { " " };
                function.body[0].line.set(self.line + 1);
                format!("lambda{space}{parameters}: {}", self.expression(value))
            }
            Expression::Comprehension(parts) => self.comprehension(parts),
            Expression::Next(name) => format!("next({name})"),
            Expression::Sleep => "asyncio.sleep(0)".into(),
            Expression::Await(value) => format!("await {}", self.expression(value)),
            Expression::Gather(values) => format!("await asyncio.gather({})", self.list(values)),
            Expression::RunAsync(value) => format!("asyncio.run({})", self.expression(value)),
            Expression::Thread(target, arguments) => {
                let comma = if arguments.len() == 1 { "," } else { "" };
                format!("threading.Thread(target={target}, args=({}{comma}))", self.list(arguments))
            }
        }
    }

    fn comprehension(&self, parts: &Comprehension) -> String {
        let Comprehension { variable, .. } = parts;
        let item = self.expression(&parts.item);
        let condition = parts.condition.as_ref().map_or(String::new(), |condition| format!(" if {}", test(condition)));
        let rest = format!("for {variable} in {}{condition}", self.expression(&parts.iterable));
        match parts.shape {
            Shape::List => format!("[{item} {rest}]"),
            Shape::Set => format!("{{{item} {rest}}}"),
            Shape::Dict => format!("{{{variable}: {item} {rest}}}"),
            Shape::Sum => format!("sum(len({item}) {rest})"),
            Shape::Lazy => format!("({item} {rest})"),
            Shape::Listed => format!("list({item} {rest})"),
        }
    }
}

fn test(condition: &Condition) -> String {
    match condition {
        Condition::Longer(name, than) => format!("len({name}) > {than}"),
        Condition::Rest(name, divisor, rest) => format!("{name} % {divisor} == {rest}"),
        Condition::Greater(name, than) => format!("{name} > {than}"),
    }
}

fn place(target: &Target) -> String {
    match target {
        Target::Name(name) => name.clone(),
        Target::Attribute(name, attribute) => format!("{name}.{attribute}"),
        Target::Item(name, key) => format!("{name}[{key}]"),
    }
}

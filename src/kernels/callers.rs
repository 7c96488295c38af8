//! What a caller's WGSL may do, checked before it meets a device.

use super::Kernel;
use crate::error::PlanError;

impl Kernel {
    /// Compiles the WGSL of a kernel that holds a caller's text, up to what needs a device. The text may declare
    /// functions, constants, types and private variables; it may read its buffers and call `diagonal`, and touches
    /// nothing else of the kernel around it.
    ///
    /// # Errors
    /// [`PlanError::Wgsl`], at a line of the caller's text where it is to blame.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn check_callers_text(&self) -> Result<(), PlanError> {
        if self.source.callers().is_empty() {
            return Ok(());
        }
        native::check(self)
    }

    /// On the web the browser compiles it, and tells the caller's own error handler.
    #[cfg(target_arch = "wasm32")]
    #[allow(clippy::unnecessary_wraps, reason = "as elsewhere")]
    pub(crate) fn check_callers_text(&self) -> Result<(), PlanError> {
        Ok(())
    }
}

#[cfg(not(target_arch = "wasm32"))]
mod native {
    use super::{Kernel, PlanError};
    use crate::function::LOOP_CHECK;
    use std::collections::HashSet;
    use std::error::Error;
    use wgpu::naga::valid::{Capabilities, ValidationFlags, Validator};
    use wgpu::naga::{AddressSpace, Block, Expression, Function, Module, Span, Statement, front};

    /// What belongs to the end of loops.
    const RESERVED: [&str; 2] = ["loop_budget", "start_loops"];

    /// Identifiers, numbers and braces.
    fn words(line: &str) -> impl Iterator<Item = &str> {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let mut rest = line;
        std::iter::from_fn(move || {
            rest = rest.trim_start_matches(|c: char| !is_word(c) && !"{}".contains(c));
            let first = rest.chars().next()?;
            let end =
                if is_word(first) { rest.find(|c| !is_word(c)).unwrap_or(rest.len()) } else { 1 };
            let (word, after) = rest.split_at(end);
            rest = after;
            Some(word)
        })
    }

    pub(super) fn check(kernel: &Kernel) -> Result<(), PlanError> {
        let text = Text { kernel, wgsl: kernel.wgsl() };
        text.check_names()?;
        let module = front::wgsl::parse_str(&text.wgsl).map_err(|e| {
            let line = e.location(&text.wgsl).map_or(0, |at| at.line_number as usize);
            text.error(line, e.message().to_owned())
        })?;
        // What a device has whose features are all off, and the f16 of this crate's own.
        let mut used = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        used.set(Capabilities::SHADER_FLOAT16, kernel.needs_f16());
        let of_matrices = Capabilities::COOPERATIVE_MATRIX | Capabilities::SUBGROUP;
        used.set(of_matrices, kernel.needs_matrices());
        Validator::new(ValidationFlags::all(), used).validate(&module).map_err(|e| {
            // Spans go from the whole function to what is wrong in it.
            let span = e.spans().map(|(span, _)| *span).filter(Span::is_defined).last();
            text.error(span.map_or(0, |span| text.line(span)), whole(e.as_inner()))
        })?;
        text.check_declarations(&module)
    }

    /// An error and its causes, in one line.
    fn whole(error: &(dyn Error + 'static)) -> String {
        let causes = std::iter::successors(error.source(), |error| (*error).source());
        causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
    }

    /// A kernel's text.
    struct Text<'a> {
        kernel: &'a Kernel,
        wgsl: String,
    }

    impl Text<'_> {
        fn line(&self, span: Span) -> usize {
            span.location(&self.wgsl).line_number as usize
        }

        /// Whether a place is in a caller's text.
        fn is_callers(&self, span: Span) -> bool {
            span.is_defined() && self.kernel.locate(self.line(span)).0.starts_with('(')
        }

        fn error(&self, line: usize, message: String) -> PlanError {
            let (name, line) = if line == 0 {
                (self.kernel.source.callers()[0].to_string(), 1)
            } else {
                self.kernel.locate(line)
            };
            let callers = name.strip_prefix('(').and_then(|name| name.strip_suffix(')'));
            PlanError::Wgsl { name: callers.map_or(name.clone(), str::to_owned), line, message }
        }

        /// Names that the text declares beside those of the kernel's own files: a name that stands there too would
        /// mean something else there, be it a built-in of WGSL. And words that are not the text's to use.
        fn check_names(&self) -> Result<(), PlanError> {
            let mut kernels: HashSet<&str> = RESERVED.into();
            let mut declared: Vec<(usize, &str)> = Vec::new();
            let mut depth = 0;
            let mut before = "";
            for (number, line) in (1..).zip(self.wgsl.lines()) {
                let callers = self.kernel.locate(number).0.starts_with('(');
                // A caller's has no comments left.
                let line = line.split("//").next().unwrap_or_default();
                // A buffer's own declaration is no use of its name.
                let declares = |name: &str| line.contains(&format!(" {name}: "));
                let mut buffers = self.kernel.bindings.iter().filter(|binding| binding.bits == 0);
                if line.starts_with("@group") && buffers.any(|binding| declares(&binding.name)) {
                    continue;
                }
                // What ends loops was put there.
                let line = line.split(LOOP_CHECK);
                for word in line.flat_map(words) {
                    match word {
                        "{" => depth += 1,
                        "}" => depth -= 1,
                        "ptr" | "loop_budget" | "start_loops" if callers => {
                            return Err(
                                self.error(number, format!("a caller's text may not use {word}"))
                            );
                        }
                        _ if callers => {
                            let declares =
                                ["fn", "const", "alias", "struct", "var", "override", "private"];
                            let spaces = ["private", "workgroup", "storage", "uniform"];
                            let is_name = !spaces.contains(&word);
                            if depth == 0 && declares.contains(&before) && is_name {
                                declared.push((number, word));
                            }
                        }
                        word => {
                            kernels.insert(word);
                        }
                    }
                    before = word;
                }
            }
            let mine = ["score", "d_score", "visible"];
            for (number, name) in declared.into_iter().filter(|(_, name)| !mine.contains(name)) {
                if kernels.contains(name) {
                    let message = format!("{name} means something else in the kernel");
                    return Err(self.error(number, message));
                }
            }
            let mut buffers = self.kernel.bindings.iter().filter(|binding| binding.bits == 0);
            if let Some(buffer) = buffers.find(|buffer| kernels.contains(&*buffer.name)) {
                return Err(self.error(0, format!("a buffer cannot be called {}", buffer.name)));
            }
            Ok(())
        }

        fn refuse(&self, span: Span, what: &str) -> Result<(), PlanError> {
            Err(self.error(self.line(span), format!("a function of the caller's may not {what}")))
        }

        fn check_declarations(&self, module: &Module) -> Result<(), PlanError> {
            for (handle, global) in module.global_variables.iter() {
                let span = module.global_variables.get_span(handle);
                if self.is_callers(span) && global.space != AddressSpace::Private {
                    return self.refuse(span, "declare variables that are not private");
                }
            }
            for (handle, _) in module.overrides.iter() {
                let span = module.overrides.get_span(handle);
                if self.is_callers(span) {
                    return self.refuse(span, "declare an override");
                }
            }
            if module.entry_points.len() != 1 {
                return Err(
                    self.error(0, "a function of the caller's is an entry point".to_owned())
                );
            }
            for (handle, function) in module.functions.iter() {
                if self.is_callers(module.functions.get_span(handle)) {
                    self.check_function(module, function)?;
                }
            }
            Ok(())
        }

        /// What it touches, and whether it waits for other invocations.
        fn check_function(&self, module: &Module, function: &Function) -> Result<(), PlanError> {
            for (handle, expression) in function.expressions.iter() {
                let Expression::GlobalVariable(variable) = *expression else { continue };
                let global = &module.global_variables[variable];
                let name = global.name.as_deref().unwrap_or_default();
                let own = self.is_callers(module.global_variables.get_span(variable));
                let bound = self.kernel.bindings.iter().any(|b| b.bits == 0 && b.name == name);
                // What ends its loops was put there.
                if !own && !bound && name != RESERVED[0] {
                    let span = function.expressions.get_span(handle);
                    return self.refuse(span, &format!("touch {name}"));
                }
            }
            self.check_block(module, &function.body)
        }

        fn check_block(&self, module: &Module, block: &Block) -> Result<(), PlanError> {
            for (statement, span) in block.span_iter() {
                match statement {
                    Statement::Call { function, .. } => {
                        let name = module.functions[*function].name.as_deref().unwrap_or_default();
                        let own = self.is_callers(module.functions.get_span(*function));
                        if !own && name != "diagonal" {
                            return self.refuse(*span, &format!("call {name}"));
                        }
                    }
                    Statement::ControlBarrier(_)
                    | Statement::MemoryBarrier(_)
                    | Statement::WorkGroupUniformLoad { .. } => {
                        return self.refuse(*span, "wait for other invocations");
                    }
                    Statement::Block(block) => self.check_block(module, block)?,
                    Statement::If { accept, reject, .. } => {
                        self.check_block(module, accept)?;
                        self.check_block(module, reject)?;
                    }
                    Statement::Loop { body, continuing, .. } => {
                        self.check_block(module, body)?;
                        self.check_block(module, continuing)?;
                    }
                    Statement::Switch { cases, .. } => {
                        cases.iter().try_for_each(|case| self.check_block(module, &case.body))?;
                    }
                    _ => {}
                }
            }
            Ok(())
        }
    }
}

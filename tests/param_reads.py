"""Which parameters a stage's function reads, found in its source: by whatever name or way a section gets there.

A section is followed through attributes (`self.job.params.x`), local names, tuples taken apart, loops, helpers of the same
module and functions of the library that it is given to. Where this cannot follow it (a constructor, a container, `**`), all
of it counts as read.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from pydantic import BaseModel

from headstart.core.params import Params

Path = tuple[str, ...]  # of a section of Params; () is all of it
Values = frozenset[Path]
Env = dict[str, Values]
NOTHING: Values = frozenset()
Modules = Callable[[str], "ast.Module | None"]  # first-party source by dotted name


def section(path: Path) -> type[BaseModel] | None:
    """The model of a section; None for a leaf or what does not exist."""
    model: type[BaseModel] = Params
    for part in path:
        kind = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return None
        model = kind
    return model


def leaves(path: Path = ()) -> Iterator[str]:
    """Every parameter below a section, `data.source`, …"""
    model = section(path)
    if model is None:
        yield ".".join(path)
        return
    for name in model.model_fields:
        yield from leaves((*path, name))


def by_annotation(text: str) -> Values:
    """Sections that a parameter of this annotation may be."""
    paths = [(), *((name,) for name in Params.model_fields), ("find_lr", "unfrozen"), ("precompute", "augment")]
    kinds = [(path, model) for path in paths if (model := section(path))]
    return frozenset(path for path, model in kinds if text in {one.__name__ for one in model.__mro__} - {"BaseModel", "object"})


class Reads:
    """Collects in `found` what the functions it is led through read.

    Args:
        modules: source by dotted name.
        skip: `module.function` of those that get sections and change no out by them.
    """

    def __init__(self, modules: Modules, skip: frozenset[str] = frozenset()) -> None:
        self.modules = modules
        self.skip = skip
        self.found: set[str] = set()
        self.seen: dict[object, Values] = {}

    def stage(self, module: str, function: str) -> set[str]:
        """All that a function of a module reads, and whatever of the same module it mentions."""
        tree = self.modules(module)
        assert tree is not None, module
        waiting, reached = [function], set()
        while waiting:
            name = waiting.pop()
            for node in definitions(tree, name):
                if node in reached:
                    continue
                reached.add(node)
                self.call(module, node, {}, {})
                waiting += [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
                waiting += [n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)]
        return self.found

    def whole(self, values: Values, but: frozenset[str] = frozenset()) -> None:
        for path in values:
            self.found |= {leaf for leaf in leaves(path) if leaf.split(".")[0] not in but}

    def call(self, module: str, node: ast.AST, outer: Env, bound: Env) -> Values:
        """Read a function's body; the sections that it may return."""
        key = (id(node), tuple(sorted((name, tuple(sorted(v))) for name, v in {**outer, **bound}.items())))
        if key in self.seen:
            return self.seen[key]
        self.seen[key] = NOTHING  # while it is being read: recursion
        assert isinstance(node, ast.FunctionDef | ast.Lambda)
        env = dict(outer)
        for one in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
            annotation = ast.unparse(one.annotation).strip("'\"") if one.annotation else ""
            default = frozenset({()}) if one.arg == "params" and annotation in ("", "Params") else by_annotation(annotation)
            env[one.arg] = bound.get(one.arg) or default
        body = Body(self, module, env)
        if isinstance(node, ast.Lambda):
            body.returned = body.values(node.body)
        else:
            for _ in range(3):  # names that are bound further down, in loops
                for statement in node.body:
                    body.visit(statement)
        self.seen[key] = body.returned
        return body.returned


def definitions(tree: ast.AST, name: str) -> list[ast.FunctionDef]:
    """Functions and methods of a name at a module's top and in its classes."""
    tops = [*getattr(tree, "body", ())]
    tops += [inner for top in tops if isinstance(top, ast.ClassDef) for inner in top.body]
    return [top for top in tops if isinstance(top, ast.FunctionDef) and top.name == name]


def imported(tree: ast.Module) -> dict[str, str]:
    """Local names of what a module imports, dotted."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
    return names


class Body(ast.NodeVisitor):
    """Walks one function's statements with what its names may be."""

    def __init__(self, reads: Reads, module: str, env: Env) -> None:
        self.reads, self.module, self.env = reads, module, env
        self.tree = reads.modules(module)
        assert self.tree is not None
        self.imports = imported(self.tree)
        self.returned = NOTHING

    def values(self, node: ast.AST | None) -> Values:
        """The sections that an expression may be; what it reads on the way is noted."""
        if node is None:
            return NOTHING
        known = getattr(self, f"value_{type(node).__name__}", None)
        if known is not None:
            result: Values = known(node)
            return result
        for child in ast.iter_child_nodes(node):
            self.reads.whole(self.values(child))  # into a container, a text, a comparison: out of sight
        return NOTHING

    def value_Name(self, node: ast.Name) -> Values:
        return self.env.get(node.id, NOTHING)

    def value_Attribute(self, node: ast.Attribute) -> Values:
        base = self.values(node.value)
        if not base:
            if node.attr == "params":
                return frozenset({()})
            assert self.tree is not None
            return self.all_of(definitions(self.tree, node.attr))  # a property, or a method that is about to be called
        inner = frozenset((*path, node.attr) for path in base)
        fields = frozenset(path for path in inner if node.attr in (section(path[:-1]) or Params).model_fields)
        self.reads.whole(frozenset(path[:-1] for path in inner - fields))  # a method of the section's
        self.reads.whole(frozenset(path for path in fields if section(path) is None))
        return frozenset(path for path in fields if section(path) is not None)

    def all_of(self, nodes: list[ast.FunctionDef]) -> Values:
        return frozenset().union(*(self.reads.call(self.module, one, {}, {}) for one in nodes))

    def value_IfExp(self, node: ast.IfExp) -> Values:
        self.values(node.test)
        return self.values(node.body) | self.values(node.orelse)

    def value_BoolOp(self, node: ast.BoolOp) -> Values:
        return frozenset().union(*map(self.values, node.values))

    def value_NamedExpr(self, node: ast.NamedExpr) -> Values:
        self.bind(node.target, node.value)
        return self.values(node.value)

    def value_Lambda(self, node: ast.Lambda) -> Values:
        return self.reads.call(self.module, node, self.env, {})

    def comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> Values:
        for one in node.generators:
            self.loop(one.target, one.iter)
            for test in one.ifs:
                self.values(test)
        parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        for part in parts:
            self.reads.whole(self.values(part))
        return NOTHING

    value_ListComp = value_SetComp = value_GeneratorExp = value_DictComp = comprehension

    def value_Call(self, node: ast.Call) -> Values:
        if isinstance(node.func, ast.Attribute) and node.func.attr == "model_dump":
            left_out = next((word.value for word in node.keywords if word.arg == "exclude"), None)
            names = frozenset(ast.literal_eval(left_out)) if isinstance(left_out, ast.Set) else frozenset()
            self.reads.whole(self.values(node.func.value), names)
            return NOTHING
        given = [(i, self.values(argument)) for i, argument in enumerate(node.args)]
        named = [(word.arg, self.values(word.value)) for word in node.keywords]
        sections = [values for _, values in [*given, *named] if values]
        if isinstance(node.func, ast.Name) and node.func.id == "load_params":
            return frozenset({()})
        place = self.resolve(node.func)
        if place is None:
            for values in sections:
                self.reads.whole(values)
            return self.values(node.func)
        module, function = place
        if f"{module}.{function.name}" in self.reads.skip or (module != self.module and not sections):
            return NOTHING
        names_of = [one.arg for one in [*function.args.posonlyargs, *function.args.args]]
        bound: Env = {names_of[i]: values for i, values in given if values and i < len(names_of)}
        known = {*names_of, *(one.arg for one in function.args.kwonlyargs)}
        bound |= {name: values for name, values in named if name in known and values}
        for key, values in [*given, *named]:
            if values and (key is None or (isinstance(key, str) and key not in known) or key == len(names_of)):
                self.reads.whole(values)  # *args, **kwargs
        return self.reads.call(module, function, {}, bound)

    def resolve(self, function: ast.expr) -> tuple[str, ast.FunctionDef] | None:
        """The module and source of the function that is called; None where it is not ours, or a method, or a class."""
        text = ast.unparse(function)
        assert self.tree is not None
        if isinstance(function, ast.Name) and (own := definitions(self.tree, text)):
            return self.module, own[0]
        first, _, rest = text.partition(".")
        full = f"{self.imports[first]}.{rest}".rstrip(".") if first in self.imports else ""
        module, _, name = full.rpartition(".")
        tree = self.reads.modules(module) if module else None
        found = definitions(tree, name) if tree else []
        return (module, found[0]) if found else None

    def bind(self, target: ast.expr, value: ast.expr | None) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            for inner, part in zip(target.elts, value.elts, strict=True):
                self.bind(inner, part)
            return
        values = self.values(value)
        if isinstance(target, ast.Name):
            self.env[target.id] = self.env.get(target.id, NOTHING) | values
        else:
            self.reads.whole(values)  # self.x = …: out of sight

    def loop(self, target: ast.expr, source: ast.expr) -> None:
        if isinstance(source, ast.Tuple | ast.List):
            for part in source.elts:
                self.bind(target, part)
        else:
            self.reads.whole(self.values(source))

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self.bind(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.bind(node.target, node.value)

    def visit_For(self, node: ast.For) -> None:
        self.loop(node.target, node.iter)
        for statement in [*node.body, *node.orelse]:
            self.visit(statement)

    def visit_Return(self, node: ast.Return) -> None:
        self.returned |= self.values(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.reads.call(self.module, node, self.env, {})

    def generic_visit(self, node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.reads.whole(self.values(child))
            else:
                self.visit(child)
